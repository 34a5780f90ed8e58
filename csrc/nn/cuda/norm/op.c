/* Batch norm with its pool, activation and residual in the CUDA backend: which kernel runs over which tensors. */
#include "nn/cuda/context.h"
#include "nn/cuda/norm/norm.h"

/* The shape of the maps of `count` images before the pool. */
static NormShape norm_shape_of(const Context *context, int op, int count) {
    const Op *o = &context->program->ops[op];
    const Tensor *input = nn_cuda_shape(context, o->input);
    return (NormShape){.precision = context->program->precision,
                       .activation = o->node.activation,
                       .images = count,
                       .height = input->height,
                       .width = input->width,
                       .channels = input->channels,
                       .pool_place = o->node.pool_place,
                       .pool = o->node.pool};
}

static void *tensor_or_null(const Context *context, int tensor) {
    return tensor < 0 ? NULL : nn_cuda_tensor(context, tensor);
}

Status nn_cuda_norm_op_create(Context *context, int op) {
    const Program *program = context->program;
    const Tensor *input = nn_cuda_shape(context, program->ops[op].input);
    OpState *state = &context->states[op];
    int64_t pixels = (int64_t)program->batch * input->height * input->width;
    if (pixels > INT32_MAX / 2) {
        FAIL(STATUS_ARGUMENT, "a batch of %d images has maps of %d x %d at node \"%s\", in total more than %d pixels",
             program->batch, input->height, input->width, program->ops[op].node.name, INT32_MAX / 2);
    }
    TRY(nn_cuda_context_alloc(context, (size_t)NORM_TERMS * (size_t)input->channels * sizeof(float), &state->terms));
    if (!program->training) return STATUS_OK;
    return nn_cuda_context_alloc(context, nn_cuda_norm_partial_elems(input->channels) * sizeof(float),
                                 &state->partials);
}

static NormClose close_of(const Context *context, int op) {
    const Op *o = &context->program->ops[op];
    const float *parameters = nn_model_parameter_data(context->model);
    float *statistics = nn_model_statistic_data(context->model);
    return (NormClose){.partials = context->states[op].partials,
                       .scale = o->scale == SIZE_MAX ? NULL : parameters + o->scale,
                       .shift = parameters + o->bias,
                       .terms = context->states[op].terms,
                       .running_mean = statistics + o->mean,
                       .running_variance = statistics + o->variance,
                       .eps = o->node.eps,
                       .keep = o->node.keep};
}

Status nn_cuda_pass_norm_statistics(Context *context, const Job *job, int op) {
    const Op *o = &context->program->ops[op];
    if (context->states[op].pooled) return nn_cuda_pass_conv_pool_statistics(context, job, op, close_of(context, op));
    NormShape shape = norm_shape_of(context, op, job->count);
    bool pool = o->node.pool_place == POOL_BEFORE_NORM;
    return nn_cuda_norm_statistics(
        &shape, nn_cuda_tensor(context, o->input), pool ? nn_cuda_tensor(context, o->saved) : NULL,
        pool ? nn_cuda_tensor(context, o->index) : NULL, close_of(context, op), context->stream);
}

/* Does all norms' work in the pass of the first one. */
Status nn_cuda_pass_norm_running(Context *context, const Job *job, int op) {
    const Program *program = context->program;
    NormRunning running = {.count = 0};
    for (int i = 0; i < program->op_count; i++) {
        if (program->ops[i].node.kind != NODE_NORM) continue;
        if (i < op) return STATUS_OK;
        running.channels[running.count] = norm_shape_of(context, i, job->count).channels;
        running.norms[running.count++] = close_of(context, i);
        if (running.count < NORM_RUNNING_MOST) continue;
        TRY(nn_cuda_norm_running(&running, context->stream));
        running.count = 0;
    }
    return running.count == 0 ? STATUS_OK : nn_cuda_norm_running(&running, context->stream);
}

static NormApply apply_of(const Context *context, int op, int input, int index) {
    const Op *o = &context->program->ops[op];
    return (NormApply){.input = nn_cuda_tensor(context, input),
                       .residual = tensor_or_null(context, o->residual),
                       .terms = context->states[op].terms,
                       .output = nn_cuda_tensor(context, o->output),
                       .index = tensor_or_null(context, index),
                       .place = o->node.residual_place};
}

Status nn_cuda_pass_norm_apply(Context *context, const Job *job, int op) {
    const Op *o = &context->program->ops[op];
    NormShape shape = norm_shape_of(context, op, job->count);
    NormApply apply = apply_of(context, op, o->saved, o->index);
    if (o->node.pool_place == POOL_AFTER_ACTIVATION) return nn_cuda_norm_apply_pooled(&shape, apply, context->stream);
    return nn_cuda_norm_apply(&shape, apply, context->stream);
}

Status nn_cuda_pass_norm_evaluate(Context *context, const Job *job, int op) {
    const Op *o = &context->program->ops[op];
    if (context->states[op].pooled) return nn_cuda_pass_conv_pool_evaluate(context, job, op);
    NormShape shape = norm_shape_of(context, op, job->count);
    NormApply apply = apply_of(context, op, o->input, -1);
    if (o->node.pool_place != POOL_NONE) return nn_cuda_norm_apply_pooled(&shape, apply, context->stream);
    return nn_cuda_norm_apply(&shape, apply, context->stream);
}

Status nn_cuda_pass_norm_reduce(Context *context, const Job *job, int op) {
    const Op *o = &context->program->ops[op];
    NormShape shape = norm_shape_of(context, op, job->count);
    bool before = o->node.residual_place == RESIDUAL_BEFORE_ACTIVATION;
    float *gradients = nn_model_gradient_data(context->model);
    NormReduce reduce = {.saved = nn_cuda_tensor(context, o->saved),
                         .gradient = nn_cuda_tensor(context, o->output_gradient),
                         .skip = tensor_or_null(context, o->skip_gradient),
                         .residual = before ? nn_cuda_tensor(context, o->residual) : NULL,
                         .index = tensor_or_null(context, o->index),
                         .activation_gradient = tensor_or_null(context, o->activation_gradient),
                         .terms = context->states[op].terms,
                         .partials = context->states[op].partials,
                         .scale_gradient = o->scale == SIZE_MAX ? NULL : gradients + o->scale,
                         .bias_gradient = gradients + o->bias,
                         .factor = context->gradient_factor};
    return nn_cuda_norm_reduce(&shape, reduce, context->stream);
}

NormShape nn_cuda_norm_backward_shape(const Context *context, int op, int count, int *gradient) {
    const Op *o = &context->program->ops[op];
    NormShape shape = norm_shape_of(context, op, count);
    bool made = o->activation_gradient >= 0; /* a residual passes it on */
    if (made) shape.activation = ACTIVATION_NONE;
    *gradient = made ? o->activation_gradient : o->output_gradient;
    return shape;
}

Status nn_cuda_pass_norm_backward(Context *context, const Job *job, int op) {
    /* The convolution's pass does this one's work, too. */
    if (nn_cuda_backward_is_pooled(context, job, op - 1)) return STATUS_OK;
    const Op *o = &context->program->ops[op];
    int gradient;
    NormShape shape = nn_cuda_norm_backward_shape(context, op, job->count, &gradient);
    NormBackward backward = {.saved = nn_cuda_tensor(context, o->saved),
                             .gradient = nn_cuda_tensor(context, gradient),
                             .index = tensor_or_null(context, o->index),
                             .terms = context->states[op].terms,
                             .input_gradient = nn_cuda_tensor(context, o->input_gradient)};
    return nn_cuda_norm_backward(&shape, backward, context->stream);
}
