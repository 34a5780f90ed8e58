/* Convolutions whose norm pools first, both in one kernel: which ones, and their passes. The convolution's own pass
 * does nothing, and its output is never stored. */
#include "nn/cuda/context.h"
#include "nn/cuda/conv/pool.h"

static ConvPoolShape conv_pool_shape_of(const Context *context, const Op *conv, int images) {
    const Tensor *input = nn_cuda_shape(context, conv->input);
    return (ConvPoolShape){.precision = context->program->precision,
                           .images = images,
                           .height = input->height,
                           .width = input->width,
                           .in_channels = input->channels,
                           .out_channels = conv->node.out_channels};
}

static bool read_by_others(const Program *program, int tensor, int reader) {
    for (int i = 0; i < program->op_count; i++) {
        const Op *op = &program->ops[i];
        if (i != reader && (op->input == tensor || op->residual == tensor || op->saved == tensor)) return true;
    }
    return program->tensors[tensor].held || program->ops[reader].residual == tensor;
}

/* A residual is allowed only in training, where another pass adds it. */
static bool can_pool(const Context *context, int conv) {
    const Program *program = context->program;
    if ((context->fusions & FUSION_FORWARD) == 0) return false;
    const Op *o = &program->ops[conv], *norm = o + 1;
    if (o->node.kind != NODE_CONV || conv + 1 >= program->op_count || norm->node.kind != NODE_NORM) return false;
    if (o->node.kernel != 3 || o->node.stride != 1 || o->node.padding != 1 || o->node.bias) return false;
    if (norm->node.pool_place != POOL_BEFORE_NORM || norm->node.pool != 2) return false;
    if (!program->training && norm->residual >= 0) return false;
    ConvPoolShape shape = conv_pool_shape_of(context, o, program->batch);
    return !read_by_others(program, o->output, conv + 1) && nn_cuda_conv_pool_fits(&shape);
}

void nn_cuda_conv_pool_choose(Context *context) {
    for (int i = 1; i < context->program->op_count; i++) {
        if (can_pool(context, i)) context->states[i].pooled = context->states[i + 1].pooled = true;
    }
}

static ConvPool args_of(const Context *context, const Op *conv) {
    return (ConvPool){.input = nn_cuda_tensor(context, conv->input), .filters = nn_cuda_filters(context, conv)};
}

Status nn_cuda_pass_conv_pool_statistics(Context *context, const Job *job, int norm, NormClose close) {
    const Op *o = &context->program->ops[norm], *conv = o - 1;
    ConvPoolShape shape = conv_pool_shape_of(context, conv, job->count);
    ConvPool args = args_of(context, conv);
    args.pooled = nn_cuda_tensor(context, o->saved);
    args.index = nn_cuda_tensor(context, o->index);
    args.close = close;
    return nn_cuda_conv_pool_statistics(&shape, args, context->stream);
}

Status nn_cuda_pass_conv_pool_evaluate(Context *context, const Job *job, int norm) {
    const Op *o = &context->program->ops[norm], *conv = o - 1;
    ConvPoolShape shape = conv_pool_shape_of(context, conv, job->count);
    ConvPool args = args_of(context, conv);
    args.terms = context->states[norm].terms;
    args.output = nn_cuda_tensor(context, o->output);
    args.activation = o->node.activation;
    return nn_cuda_conv_pool_output(&shape, args, context->stream);
}
