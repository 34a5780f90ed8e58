/* Global pooling, linear layer, softmax cross entropy with label smoothing, and their gradients. */
#include "nn/cuda/context.h"
#include "nn/cuda/head/head.h"

static HeadShape head_shape_of(const Context *context, int op, int images) {
    const Op *o = &context->program->ops[op];
    const Tensor *input = nn_cuda_shape(context, o->input);
    return (HeadShape){.images = images,
                       .pixels = input->height * input->width,
                       .channels = input->channels,
                       .classes = o->node.out_channels,
                       .pool = o->node.head_pool,
                       .scale = (float)o->node.scale,
                       .precision = context->program->precision};
}

/* The operator's bias in a flat buffer; NULL if it has none. */
static float *bias_in(const Op *op, float *flat) { return op->bias == SIZE_MAX ? NULL : flat + op->bias; }

static HeadBuffers buffers_of(const Context *context, int op) {
    const Op *o = &context->program->ops[op];
    const OpState *state = &context->states[op];
    size_t pooled = (size_t)context->program->batch * (size_t)nn_cuda_shape(context, o->input)->channels;
    return (HeadBuffers){.input = nn_cuda_tensor(context, o->input),
                         .weights = nn_model_parameter_data(context->model) + o->weight,
                         .bias = bias_in(o, nn_model_parameter_data(context->model)),
                         .labels = context->labels,
                         .input_gradient = o->input_gradient < 0 ? NULL : nn_cuda_tensor(context, o->input_gradient),
                         .losses = context->losses,
                         .pooled = state->partials,
                         .gradients = state->partials + pooled,
                         .records = (HeadRecord *)(void *)state->terms};
}

Status nn_cuda_head_op_create(Context *context, int op) {
    OpState *state = &context->states[op];
    size_t batch = (size_t)context->program->batch;
    if (!context->program->training) return STATUS_OK;
    HeadShape shape = head_shape_of(context, op, 0);
    size_t floats = batch * (size_t)(shape.channels + shape.classes);
    TRY(nn_cuda_context_alloc(context, floats * sizeof(float), &state->partials));
    return nn_cuda_context_alloc(context, batch * sizeof(HeadRecord), &state->terms);
}

Status nn_cuda_pass_head_evaluate(Context *context, const Job *job, int op) {
    const Op *o = &context->program->ops[op];
    HeadShape shape = head_shape_of(context, op, job->count);
    float *parameters = nn_model_parameter_data(context->model);
    return nn_cuda_head_evaluate(&shape, nn_cuda_tensor(context, o->input), parameters + o->weight,
                                 bias_in(o, parameters), context->logits, context->stream);
}

Status nn_cuda_pass_head_train(Context *context, const Job *job, int op) {
    HeadShape shape = head_shape_of(context, op, job->count);
    HeadBuffers buffers = buffers_of(context, op);
    context->gradient_factor = job->options->reduction == LOSS_MEAN ? 1.0f / (float)job->count : 1.0f;
    return nn_cuda_head_train(&shape, &buffers, job->options->label_smoothing, context->stream);
}

Status nn_cuda_pass_head_close(Context *context, const Job *job, int op) {
    HeadShape shape = head_shape_of(context, op, job->count);
    HeadBuffers buffers = buffers_of(context, op);
    const Op *o = &context->program->ops[op];
    float *gradients = nn_model_gradient_data(context->model);
    return nn_cuda_head_close(&shape, &buffers, context->gradient_factor, gradients + o->weight, bias_in(o, gradients),
                              context->totals, context->stream);
}

Status nn_cuda_store_totals(Context *context, NnStepTotals *to, const int32_t *index) {
    return nn_cuda_head_store_totals(context->totals, to, index, nn_model_gradient_data(context->model),
                                     context->stream);
}
