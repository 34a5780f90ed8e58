/* The filter gradient of a convolution fused with the backward pass of the norm after it: the gradient between them is
 * computed only if the convolution's data gradient needs it. What the norm's pass reads is still valid in the
 * convolution's pass: both are in the same phase, and no tensor's lifetime begins between them. */
#include "nn/cuda/context.h"
#include "nn/cuda/conv/pooled_filter.h"

/* A held gradient has other readers: it is a test's plan. */
Status nn_cuda_pooled_filter_op_create(Context *context, int op) {
    const Program *program = context->program;
    const Op *o = &program->ops[op];
    const NnNodeDesc *node = &o->node;
    OpState *state = &context->states[op];
    if ((context->fusions & FUSION_FILTER) == 0 || op + 1 == program->op_count) return STATUS_OK;
    if (program->ops[op + 1].node.kind != NODE_NORM || nn_cuda_shape(context, o->output_gradient)->held)
        return STATUS_OK;
    if (node->kernel != 3 || node->stride != 1 || node->padding != 1) return STATUS_OK;
    int gradient;
    NormShape shape = nn_cuda_norm_backward_shape(context, op + 1, program->batch, &gradient);
    int in_channels = nn_cuda_shape(context, o->input)->channels;
    if (!nn_cuda_pooled_filter_fits(&shape, in_channels)) return STATUS_OK;
    TRY(nn_cuda_context_alloc(context, nn_cuda_pooled_filter_partial_elems(&shape, in_channels) * sizeof(float),
                              &state->partials));
    state->pooled_filter = true;
    return STATUS_OK;
}

bool nn_cuda_backward_is_pooled(const Context *context, const Job *job, int op) {
    const Program *program = context->program;
    if (!context->states[op].pooled_filter) return false;
    for (int i = 0; i < program->pass_count; i++) {
        const Pass *pass = &program->passes[i];
        if (pass->kind != PASS_CONV_DATA || pass->op != op) continue;
        if (job->options == NULL || pass->block >= job->options->first_block) return false;
    }
    return true;
}

Status nn_cuda_pass_pooled_filter(Context *context, const Job *job, int op) {
    const Op *conv = &context->program->ops[op], *norm = &context->program->ops[op + 1];
    int gradient;
    NormShape shape = nn_cuda_norm_backward_shape(context, op + 1, job->count, &gradient);
    PooledFilter args = {.input = nn_cuda_tensor(context, conv->input),
                         .saved = nn_cuda_tensor(context, norm->saved),
                         .gradient = nn_cuda_tensor(context, gradient),
                         .index = nn_cuda_tensor(context, norm->index),
                         .terms = context->states[op + 1].terms,
                         .partials = context->states[op].partials,
                         .factor = context->gradient_factor,
                         .filter_gradient = nn_model_gradient_data(context->model) + conv->weight};
    return nn_cuda_pooled_filter(&shape, nn_cuda_shape(context, conv->input)->channels, args, context->stream);
}
