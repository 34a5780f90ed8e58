/* Convolutions between activations as operators. Every plan is for the whole batch. A smaller batch uses the same
 * plans, so that it needs no search and can be recorded: the remaining images are ignored, and for filter gradients,
 * which sum over the images, they are set to zero. */
#include "nn/cuda/context.h"
#include "nn/cuda/conv/narrow.h"

static CudaConvShape conv_shape_of(const Context *context, const Op *op, CudaConvPass pass) {
    const Tensor *input = nn_cuda_shape(context, op->input), *output = nn_cuda_shape(context, op->output);
    return (CudaConvShape){.images = context->program->batch,
                           .in_height = input->height,
                           .in_width = input->width,
                           .in_channels = input->channels,
                           .out_height = output->height,
                           .out_width = output->width,
                           .out_channels = output->channels,
                           .kernel = op->node.kernel,
                           .stride = op->node.stride,
                           .padding = op->node.padding,
                           .pass = pass,
                           .precision = context->program->precision,
                           .deterministic = nn_model_deterministic(context->model)};
}

static bool has_pass(const Program *program, PassKind kind, int op) {
    for (int i = 0; i < program->pass_count; i++) {
        if (program->passes[i].kind == kind && program->passes[i].op == op) return true;
    }
    return false;
}

/* *narrow: set to whether the pass uses narrow.cu; `narrow` NULL: it may not. */
static Status create_pass(Context *context, int op, PassKind kind, CudaConvPass pass, bool *narrow, CudaConv **out) {
    if (!has_pass(context->program, kind, op)) return STATUS_OK;
    CudaConvShape shape = conv_shape_of(context, &context->program->ops[op], pass);
    if (narrow != NULL) *narrow = (context->fusions & FUSION_NARROW) != 0 && nn_cuda_conv_narrow_fits(&shape);
    if (narrow != NULL && *narrow) return STATUS_OK;
    return nn_cuda_conv_create(context->convs, &shape, out);
}

Status nn_cuda_conv_op_create(Context *context, int op) {
    const Op *o = &context->program->ops[op];
    OpState *state = &context->states[op];
    Status status = STATUS_OK;
    if (!state->pooled) {
        TRY_GOTO(
            create_pass(context, op, PASS_CONV_FORWARD, CUDA_CONV_FORWARD, &state->narrow_forward, &state->forward));
    }
    TRY_GOTO(create_pass(context, op, PASS_CONV_DATA, CUDA_CONV_DATA, &state->narrow_data, &state->data));
    if (o->train_filters && has_pass(context->program, PASS_CONV_FILTER, op)) {
        TRY_GOTO(nn_cuda_pooled_filter_op_create(context, op));
        if (!state->pooled_filter)
            TRY_GOTO(create_pass(context, op, PASS_CONV_FILTER, CUDA_CONV_FILTER, NULL, &state->filter));
    }
done:
    return error_at_operation(status, o->node.name);
}

void nn_cuda_conv_op_destroy(OpState *state) {
    nn_cuda_conv_destroy(state->filter);
    nn_cuda_conv_destroy(state->data);
    nn_cuda_conv_destroy(state->forward);
    state->forward = state->data = state->filter = NULL;
}

static size_t element_bytes(const Context *context) { return context->program->precision == PRECISION_FLOAT32 ? 4 : 2; }

const void *nn_cuda_filters(const Context *context, const Op *op) {
    return (const char *)context->filters + op->weight * element_bytes(context);
}

/* Sets the images that a smaller batch lacks to zero. */
static Status clear_rest(Context *context, const Job *job, int tensor) {
    size_t image_bytes = nn_cuda_shape(context, tensor)->image_bytes;
    size_t used = (size_t)job->count * image_bytes, all = (size_t)context->program->batch * image_bytes;
    if (used == all) return STATUS_OK;
    return device_fill((char *)nn_cuda_tensor(context, tensor) + used, 0, all - used, context->stream);
}

static Status run_narrow(Context *context, const Job *job, const Op *op, CudaConvPass pass, int from, int to) {
    CudaConvShape shape = conv_shape_of(context, op, pass);
    return nn_cuda_conv_narrow(&shape, job->count, nn_cuda_tensor(context, from), nn_cuda_filters(context, op),
                               nn_cuda_tensor(context, to), context->stream);
}

Status nn_cuda_pass_conv_forward(Context *context, const Job *job, int op) {
    const Op *o = &context->program->ops[op];
    const OpState *state = &context->states[op];
    if (state->pooled) return STATUS_OK;
    if (state->narrow_forward) return run_narrow(context, job, o, CUDA_CONV_FORWARD, o->input, o->output);
    return nn_cuda_conv_run(state->forward, nn_cuda_tensor(context, o->input), nn_cuda_filters(context, o),
                            nn_cuda_tensor(context, o->output), context->workspace);
}

Status nn_cuda_pass_conv_data(Context *context, const Job *job, int op) {
    const Op *o = &context->program->ops[op];
    const OpState *state = &context->states[op];
    if (state->narrow_data) return run_narrow(context, job, o, CUDA_CONV_DATA, o->output_gradient, o->input_gradient);
    return nn_cuda_conv_run(state->data, nn_cuda_tensor(context, o->output_gradient), nn_cuda_filters(context, o),
                            nn_cuda_tensor(context, o->input_gradient), context->workspace);
}

Status nn_cuda_pass_conv_filter(Context *context, const Job *job, int op) {
    const Op *o = &context->program->ops[op];
    const NnNodeDesc *node = &o->node;
    CudaConv *conv = context->states[op].filter;
    if (context->states[op].pooled_filter) return nn_cuda_pass_pooled_filter(context, job, op);
    if (conv == NULL) return STATUS_OK;
    void *gradient = (char *)context->filter_gradients + o->weight * element_bytes(context);
    size_t taps = (size_t)node->kernel * (size_t)node->kernel;
    size_t elems = (size_t)node->out_channels * taps * (size_t)nn_cuda_shape(context, o->input)->channels;
    TRY(clear_rest(context, job, o->input));
    TRY(clear_rest(context, job, o->output_gradient));
    TRY(nn_cuda_conv_run(conv, nn_cuda_tensor(context, o->input), nn_cuda_tensor(context, o->output_gradient), gradient,
                         context->workspace));
    return nn_cuda_to_float(gradient, elems, context->program->precision, context->gradient_factor,
                            nn_model_gradient_data(context->model) + o->weight, context->stream);
}
