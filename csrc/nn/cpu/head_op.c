/* Global pooling, linear layer, softmax cross entropy with label smoothing, and their gradients, image by image. */
#include <math.h>
#include <string.h>

#include "base/checked.h"
#include "nn/cpu/context.h"

/* One image's values, in the thread's row scratch memory. */
typedef struct HeadRow {
    float *pooled, *pooled_gradient, *logits, *gradient;
    int32_t *index;
} HeadRow;

static HeadRow head_row(const Group *group, int channels, int classes) {
    float *row = nn_cpu_group_row_scratch(group);
    size_t width = round_up((size_t)channels, KERNELS_ROUND), classes_room = round_up((size_t)classes, KERNELS_ROUND);
    return (HeadRow){.pooled = row,
                     .pooled_gradient = row + width,
                     .logits = row + 2 * width,
                     .gradient = row + 2 * width + classes_room,
                     .index = (int32_t *)(void *)(row + 2 * width + 2 * classes_room)};
}

Status nn_cpu_head_op_create(Context *context, int op) {
    const Op *o = &context->program->ops[op];
    OpState *state = &context->states[op];
    int channels = context->program->tensors[o->input].channels, classes = o->node.out_channels;
    size_t row =
        (3 * round_up((size_t)channels, KERNELS_ROUND) + 2 * round_up((size_t)classes, KERNELS_ROUND)) * sizeof(float);
    if (row > context->row_bytes) context->row_bytes = row;
    state->partial_elems = ((size_t)channels + (o->bias == SIZE_MAX ? 0 : 1)) * (size_t)classes;
    if (!context->program->training) return STATUS_OK;
    TRY(nn_cpu_context_alloc(context, (size_t)context->chunks, sizeof *context->partial_totals,
                             &context->partial_totals));
    return nn_cpu_context_alloc(context, state->partial_elems * (size_t)context->chunks, sizeof(float),
                                &state->partials);
}

static void compute_logits(const Group *group, int op, const void *image, const HeadRow *row, float *logits) {
    const Op *o = &group->context->program->ops[op];
    const Tensor *input = &group->context->program->tensors[o->input];
    const Kernels *kernels = group->context->kernels;
    const float *parameters = nn_model_parameter_data(group->context->model);
    float scale = (float)o->node.scale;
    int pixels = input->height * input->width;
    if (o->node.head_pool == HEAD_POOL_AVERAGE) {
        kernels->global_average(image, pixels, input->channels, row->pooled);
    } else {
        kernels->global_pool(image, pixels, input->channels, row->pooled, row->index);
    }
    kernels->linear(row->pooled, input->channels, parameters + o->weight, o->node.out_channels, scale, logits);
    for (int k = 0; o->bias != SIZE_MAX && k < o->node.out_channels; k++)
        logits[k] += scale * parameters[o->bias + (size_t)k];
}

/* Adds the parameters' gradients to the chunk's `partial` (weights, then biases); the input's gradient goes to `to`
 * (NULL: not wanted). */
static void head_backward(const Group *group, int op, const HeadRow *row, float *partial, void *to) {
    const Op *o = &group->context->program->ops[op];
    const Tensor *input = &group->context->program->tensors[o->input];
    const Kernels *kernels = group->context->kernels;
    const float *weights = nn_model_parameter_data(group->context->model) + o->weight;
    int classes = o->node.out_channels, channels = input->channels, pixels = input->height * input->width;
    float scale = (float)o->node.scale;
    kernels->linear_backward(row->pooled, channels, weights, classes, scale, row->gradient, row->pooled_gradient,
                             partial);
    float *biases = partial + (size_t)channels * (size_t)classes;
    for (int k = 0; o->bias != SIZE_MAX && k < classes; k++) biases[k] += scale * row->gradient[k];
    if (to == NULL) return;
    if (o->node.head_pool == HEAD_POOL_AVERAGE) {
        kernels->global_spread(row->pooled_gradient, pixels, channels, to);
    } else {
        kernels->global_unpool(row->pooled_gradient, row->index, pixels, channels, to);
    }
}

Status nn_cpu_pass_head_evaluate(const Group *group, int op) {
    const Op *o = &group->context->program->ops[op];
    const Tensor *input = &group->context->program->tensors[o->input];
    HeadRow row = head_row(group, input->channels, o->node.out_channels);
    const char *image = nn_cpu_group_tensor(group, o->input);
    for (int i = 0; i < group->count; i++, image += input->image_bytes) {
        float *to = group->job->logits + (size_t)(group->first + i) * (size_t)o->node.out_channels;
        compute_logits(group, op, image, &row, to);
    }
    return STATUS_OK;
}

/* Adds one image to the totals and returns its loss; gradient = factor * (softmax - target). */
static double cross_entropy(const float *logits, int classes, int64_t label, double smoothing, double factor,
                            float *gradient, NnStepTotals *totals) {
    int best = 0;
    double sum = 0, expected = 0, share = smoothing / classes;
    for (int k = 1; k < classes; k++) {
        if (logits[k] > logits[best]) best = k;
    }
    double most = (double)logits[best];
    for (int k = 0; k < classes; k++) {
        sum += exp((double)logits[k] - most);
        expected += ((double)logits[k] - most) * (share + (k == label ? 1 - smoothing : 0));
    }
    for (int k = 0; k < classes; k++) {
        double target = share + (k == label ? 1 - smoothing : 0);
        gradient[k] = (float)(factor * (exp((double)logits[k] - most) / sum - target));
    }
    double loss = log(sum) - expected;
    totals->loss += loss;
    totals->correct += best == label;
    totals->images++;
    return loss;
}

Status nn_cpu_pass_head_train(const Group *group, int op) {
    Context *context = group->context;
    const Op *o = &context->program->ops[op];
    const OpState *state = &context->states[op];
    const Tensor *input = &context->program->tensors[o->input];
    const NnStepOptions *options = group->job->options;
    int classes = o->node.out_channels;
    double factor = options->reduction == LOSS_MEAN ? 1.0 / group->job->count : 1.0;
    HeadRow row = head_row(group, input->channels, classes);
    float *partial = state->partials + (size_t)group->chunk * state->partial_elems;
    NnStepTotals *totals = &context->partial_totals[group->chunk];
    if (group->begins) {
        memset(partial, 0, state->partial_elems * sizeof *partial);
        *totals = (NnStepTotals){0};
    }
    const char *image = nn_cpu_group_tensor(group, o->input);
    char *to = o->input_gradient < 0 ? NULL : nn_cpu_group_tensor(group, o->input_gradient);
    for (int i = 0; i < group->count; i++, image += input->image_bytes) {
        compute_logits(group, op, image, &row, row.logits);
        double loss = cross_entropy(row.logits, classes, group->job->labels[group->first + i], options->label_smoothing,
                                    factor, row.gradient, totals);
        if (options->losses != NULL) options->losses[group->first + i] = (float)loss;
        head_backward(group, op, &row, partial, to);
        to = to == NULL ? NULL : to + input->image_bytes;
    }
    return STATUS_OK;
}

Status nn_cpu_close_head(Context *context, const Job *job, int op) {
    const Op *o = &context->program->ops[op];
    const OpState *state = &context->states[op];
    float *gradients = nn_model_gradient_data(context->model);
    size_t weights = (size_t)context->program->tensors[o->input].channels * (size_t)o->node.out_channels;
    int chunks = nn_cpu_context_chunks(job->count);
    for (size_t i = 0; i < state->partial_elems; i++) {
        float sum = 0;
        for (int k = 0; k < chunks; k++) sum += state->partials[(size_t)k * state->partial_elems + i];
        gradients[i < weights ? o->weight + i : o->bias + (i - weights)] = sum;
    }
    for (int k = 0; k < chunks; k++) {
        context->totals.loss += context->partial_totals[k].loss;
        context->totals.correct += context->partial_totals[k].correct;
        context->totals.images += context->partial_totals[k].images;
    }
    return STATUS_OK;
}
