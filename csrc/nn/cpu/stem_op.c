/* The operator that reads the images: converts them (type, layout, normalisation, view, zero border), convolves in
 * float32 with bias and activation, and computes the gradients of its filters and bias. */
#include <string.h>

#include "base/checked.h"
#include "base/half.h"
#include "nn/cpu/context.h"

static StemShape stem_shape_of(const Group *group, int op) {
    const Op *o = &group->context->program->ops[op];
    const Tensor *output = &group->context->program->tensors[o->output];
    return (StemShape){.input = nn_cpu_group_maps(group, o->input),
                       .out_height = output->height,
                       .out_width = output->width,
                       .out_channels = output->channels,
                       .kernel = o->node.kernel,
                       .stride = o->node.stride,
                       .activation = o->node.activation};
}

static size_t taps_of(const Context *context, int op) {
    const Op *o = &context->program->ops[op];
    return (size_t)(o->node.kernel * o->node.kernel * context->program->tensors[o->input].channels);
}

Status nn_cpu_stem_op_create(Context *context, int op) {
    const Op *o = &context->program->ops[op];
    OpState *state = &context->states[op];
    const Tensor *output = &context->program->tensors[o->output];
    size_t row = ((size_t)output->width * (size_t)output->channels + KERNELS_ROUND) * sizeof(float);
    if (row > context->row_bytes) context->row_bytes = row;
    size_t columns = (size_t)context->program->tensors[o->input].width * sizeof(int32_t);
    if (columns > context->row_bytes) context->row_bytes = columns;
    state->partial_elems = (taps_of(context, op) + 1) * round_up((size_t)output->channels, KERNELS_ROUND);
    TRY(nn_cpu_context_alloc(context, state->partial_elems, sizeof(float), &state->packed));
    if (!context->program->training) return STATUS_OK;
    return nn_cpu_context_alloc(context, state->partial_elems * (size_t)context->chunks, sizeof(float),
                                &state->partials);
}

Status nn_cpu_stem_op_pack(Context *context, int op) {
    const Op *o = &context->program->ops[op];
    const float *parameters = nn_model_parameter_data(context->model);
    float *packed = context->states[op].packed;
    size_t taps = taps_of(context, op), channels = (size_t)o->node.out_channels,
           row = round_up(channels, KERNELS_ROUND);
    for (size_t c = 0; c < channels; c++) {
        for (size_t tap = 0; tap < taps; tap++) packed[tap * row + c] = parameters[o->weight + c * taps + tap];
        packed[taps * row + c] = o->bias == SIZE_MAX ? 0.0f : parameters[o->bias + c];
    }
    return STATUS_OK;
}

/* Reflects an index into 0..size-1 at the edges, which are not repeated; `at` is less than a size outside. */
static int reflect(int at, int size) {
    if (size == 1) return 0;
    if (at < 0) at = -at;
    return at < size ? at : 2 * (size - 1) - at;
}

/* Where element (y, x, c) of an image is, and how it becomes a float. */
typedef struct Source {
    const char *image;
    size_t row, column, channel; /* distances in elements */
    const NnImages *images;
    float factor[NN_MAX_IMAGE_CHANNELS];
    int channels;
} Source;

static void stem_load_row(const Source *restrict source, size_t row_at, const int32_t *columns, int width,
                          float *restrict to) {
    for (int x = 0; x < width; x++, to += source->channels) {
        size_t at = row_at + (size_t)columns[x] * source->column;
        for (int c = 0; c < source->channels; c++, at += source->channel) {
            if (source->images->type == PIXELS_U8) {
                to[c] = ((float)((const uint8_t *)source->image)[at] - source->images->mean[c]) * source->factor[c];
            } else if (source->images->type == PIXELS_F32) {
                to[c] = ((const float *)(const void *)source->image)[at];
            } else {
                to[c] = bfloat16_to_float(((const uint16_t *)(const void *)source->image)[at]);
            }
        }
    }
}

static void load_image(const Source *source, const int32_t *columns, int height, int width, int border, float *to) {
    size_t row = (size_t)((width + 2 * border) * source->channels), edge = (size_t)(border * source->channels);
    memset(to, 0, (size_t)border * row * sizeof *to);
    to += (size_t)border * row;
    for (int y = 0; y < height; y++, to += row) {
        int from = reflect(y + source->images->shift_y, height);
        memset(to, 0, edge * sizeof *to);
        stem_load_row(source, (size_t)from * source->row, columns, width, to + edge);
        memset(to + row - edge, 0, edge * sizeof *to);
    }
    memset(to, 0, (size_t)border * row * sizeof *to);
}

Status nn_cpu_pass_load(const Group *group, int op) {
    const Op *o = &group->context->program->ops[op];
    const NnImages *images = group->job->images;
    Maps maps = nn_cpu_group_maps(group, o->input);
    int border = o->node.padding, height = maps.height - 2 * border, width = maps.width - 2 * border;
    size_t channels = (size_t)maps.channels, pixels = (size_t)(height * width);
    static const size_t item_bytes[] = {[PIXELS_U8] = 1, [PIXELS_F32] = 4, [PIXELS_BF16] = 2};
    bool planar = images->layout == PIXELS_NCHW;
    /* The model guarantees that it is not more, but gcc 13 and 14 warn without this. */
    int count = maps.channels < NN_MAX_IMAGE_CHANNELS ? maps.channels : NN_MAX_IMAGE_CHANNELS;
    Source source = {.images = images, .channels = count, .channel = planar ? pixels : 1};
    source.column = planar ? 1 : channels;
    source.row = (size_t)width * source.column;
    for (int c = 0; c < count; c++) source.factor[c] = 1.0f / images->std[c];
    int32_t *columns = nn_cpu_group_row_scratch(group);
    for (int x = 0; x < width; x++) {
        columns[x] = reflect((images->mirror ? width - 1 - x : x) + images->shift_x, width);
    }
    float *to = nn_cpu_group_tensor(group, o->input);
    size_t padded = (size_t)(maps.height * maps.width) * channels;
    for (int i = 0; i < group->count; i++, to += padded) {
        source.image =
            (const char *)images->data + (size_t)(group->first + i) * pixels * channels * item_bytes[images->type];
        load_image(&source, columns, height, width, border, to);
    }
    return STATUS_OK;
}

Status nn_cpu_pass_stem_forward(const Group *group, int op) {
    const Op *o = &group->context->program->ops[op];
    const float *packed = group->context->states[op].packed;
    StemShape shape = stem_shape_of(group, op);
    const float *bias = packed + taps_of(group->context, op) * round_up((size_t)shape.out_channels, KERNELS_ROUND);
    group->context->kernels->stem_forward(&shape, nn_cpu_group_tensor(group, o->input), packed, bias,
                                          nn_cpu_group_row_scratch(group), nn_cpu_group_tensor(group, o->output));
    return STATUS_OK;
}

Status nn_cpu_pass_stem_backward(const Group *group, int op) {
    const Op *o = &group->context->program->ops[op];
    const OpState *state = &group->context->states[op];
    StemShape shape = stem_shape_of(group, op);
    size_t weights = taps_of(group->context, op) * round_up((size_t)shape.out_channels, KERNELS_ROUND);
    float *partial = state->partials + (size_t)group->chunk * state->partial_elems;
    if (group->begins) memset(partial, 0, state->partial_elems * sizeof *partial);
    group->context->kernels->stem_backward(&shape, nn_cpu_group_tensor(group, o->input), state->packed,
                                           state->packed + weights, nn_cpu_group_tensor(group, o->output_gradient),
                                           nn_cpu_group_row_scratch(group), o->train_filters ? partial : NULL,
                                           o->train_bias ? partial + weights : NULL);
    return STATUS_OK;
}

Status nn_cpu_close_stem(Context *context, const Job *job, int op) {
    const Op *o = &context->program->ops[op];
    const OpState *state = &context->states[op];
    float *gradients = nn_model_gradient_data(context->model);
    size_t taps = taps_of(context, op), channels = (size_t)o->node.out_channels,
           row = round_up(channels, KERNELS_ROUND);
    int chunks = nn_cpu_context_chunks(job->count);
    for (size_t c = 0; c < channels; c++) {
        for (size_t tap = 0; tap <= taps; tap++) {
            bool bias = tap == taps;
            if (bias ? !o->train_bias : !o->train_filters) continue;
            float sum = 0;
            for (int k = 0; k < chunks; k++) {
                sum += state->partials[(size_t)k * state->partial_elems + tap * row + c];
            }
            gradients[bias ? o->bias + c : o->weight + c * taps + tap] = sum;
        }
    }
    return STATUS_OK;
}
