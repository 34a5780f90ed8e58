/* The operator that reads the images: its kernels read the batch itself. A float32 copy of the images is made only in
 * plans that keep all tensors, for nn_plan_read and for backward passes without a batch. */
#include "nn/cuda/context.h"
#include "nn/cuda/stem/stem.h"

static bool keeps_images(const Context *context) {
    for (int i = 0; i < context->program->tensor_count; i++) {
        if (!context->program->tensors[i].held) return false;
    }
    return true;
}

static StemShape stem_shape_of(const Context *context, int op, int images) {
    const Op *o = &context->program->ops[op];
    const Tensor *output = nn_cuda_shape(context, o->output);
    return (StemShape){.images = images,
                       .out_height = output->height,
                       .out_width = output->width,
                       .out_channels = output->channels,
                       .channels = nn_cuda_shape(context, o->input)->channels,
                       .kernel = o->node.kernel,
                       .stride = o->node.stride,
                       .activation = o->node.activation,
                       .precision = context->program->precision};
}

static StemFilters filters_of(const Context *context, int op) {
    const Op *o = &context->program->ops[op];
    const float *parameters = nn_model_parameter_data(context->model);
    return (StemFilters){.weights = parameters + o->weight, .bias = o->bias == SIZE_MAX ? NULL : parameters + o->bias};
}

/* The images of the call, in the caller's type and layout. */
static StemSource source_of_batch(const Context *context, const NnImages *images, int op) {
    const Op *o = &context->program->ops[op];
    const Tensor *input = nn_cuda_shape(context, o->input);
    int border = o->node.padding, height = input->height - 2 * border, width = input->width - 2 * border;
    bool planar = images->layout == PIXELS_NCHW;
    StemSource source = {.data = context->images,
                         .type = images->type,
                         .height = height,
                         .width = width,
                         .channels = input->channels,
                         .border = border,
                         .row = planar ? width : width * input->channels,
                         .column = planar ? 1 : input->channels,
                         .channel = planar ? height * width : 1,
                         .mirror = images->mirror,
                         .shift_y = images->shift_y,
                         .shift_x = images->shift_x};
    for (int c = 0; c < input->channels; c++) {
        source.mean[c] = images->mean[c];
        source.factor[c] = 1.0f / images->std[c];
    }
    return source;
}

/* Their float32 copy, which includes its border of zeros. */
static StemSource source_of_copy(const Context *context, int op) {
    const Op *o = &context->program->ops[op];
    const Tensor *input = nn_cuda_shape(context, o->input);
    return (StemSource){.data = nn_cuda_tensor(context, o->input),
                        .type = PIXELS_F32,
                        .height = input->height,
                        .width = input->width,
                        .channels = input->channels,
                        .row = input->width * input->channels,
                        .column = input->channels,
                        .channel = 1};
}

static StemSource source_of(const Context *context, const Job *job, int op) {
    return keeps_images(context) ? source_of_copy(context, op) : source_of_batch(context, job->images, op);
}

Status nn_cuda_stem_op_create(Context *context, int op) {
    size_t elems = 0;
    if (!context->program->training) return STATUS_OK;
    StemShape shape = stem_shape_of(context, op, context->program->batch);
    TRY(nn_cuda_stem_partial_elems(&shape, &elems));
    return nn_cuda_context_alloc(context, elems * sizeof(float), &context->states[op].partials);
}

Status nn_cuda_pass_load(Context *context, const Job *job, int op) {
    if (!keeps_images(context)) return STATUS_OK;
    StemSource source = source_of_batch(context, job->images, op);
    float *to = nn_cuda_tensor(context, context->program->ops[op].input);
    return nn_cuda_stem_load(&source, job->count, to, context->stream);
}

Status nn_cuda_pass_stem_forward(Context *context, const Job *job, int op) {
    StemShape shape = stem_shape_of(context, op, job->count);
    StemSource source = source_of(context, job, op);
    void *output = nn_cuda_tensor(context, context->program->ops[op].output);
    return nn_cuda_stem_forward(&shape, &source, filters_of(context, op), output, context->stream);
}

Status nn_cuda_pass_stem_backward(Context *context, const Job *job, int op) {
    const Op *o = &context->program->ops[op];
    StemShape shape = stem_shape_of(context, op, job->count);
    StemSource source = source_of(context, job, op);
    StemFilters filters = filters_of(context, op);
    const void *gradient = nn_cuda_tensor(context, o->output_gradient);
    float *partials = context->states[op].partials, *to = nn_model_gradient_data(context->model);
    if (o->train_filters) {
        TRY(nn_cuda_stem_filter_gradient(&shape, &source, filters, gradient, context->gradient_factor, partials,
                                         to + o->weight, context->stream));
    }
    if (!o->train_bias) return STATUS_OK;
    return nn_cuda_stem_bias_gradient(&shape, &source, filters, gradient, context->gradient_factor, partials,
                                      to + o->bias, context->stream);
}
