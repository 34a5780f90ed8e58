/* Convolutions between activations as operators: hands groups of images to conv.h, and sums the partial filter
 * gradients of the chunks. */
#include "base/memory.h"
#include "nn/cpu/context.h"

#define UNPACK_PARTS 8

static ConvShape shape_of(const Context *context, const Op *op) {
    const Tensor *input = &context->program->tensors[op->input], *output = &context->program->tensors[op->output];
    return (ConvShape){.in_height = input->height,
                       .in_width = input->width,
                       .in_channels = input->channels,
                       .out_height = output->height,
                       .out_width = output->width,
                       .out_channels = output->channels,
                       .kernel = op->node.kernel,
                       .stride = op->node.stride,
                       .padding = op->node.padding};
}

static Status create_direction(Context *context, int op, PassKind kind, ConvDirection direction, Conv **out) {
    int sizes[CONTEXT_MAX_GROUP_SIZES], count = context_group_sizes(context, kind, op, sizes);
    if (count == 0) return STATUS_OK;
    ConvShape shape = shape_of(context, &context->program->ops[op]);
    TRY(conv_create(&shape, direction, context->program->precision, sizes, count, context->threads, out));
    size_t scratch = conv_scratch_bytes(*out);
    if (scratch > context->library_bytes) context->library_bytes = scratch;
    return STATUS_OK;
}

Status conv_op_create(Context *context, int op) {
    OpState *state = &context->states[op];
    Status status = STATUS_OK;
    TRY_GOTO(create_direction(context, op, PASS_CONV_FORWARD, CONV_FORWARD, &state->forward));
    TRY_GOTO(create_direction(context, op, PASS_CONV_DATA, CONV_DATA, &state->data));
    TRY_GOTO(create_direction(context, op, PASS_CONV_FILTER, CONV_FILTER, &state->filter));
    if (state->filter != NULL) {
        state->partial_elems = conv_partial_elems(state->filter);
        if (state->partial_elems > context->shared_elems) context->shared_elems = state->partial_elems;
        size_t bytes = state->partial_elems * sizeof(float);
        if (bytes > context->sum_bytes) context->sum_bytes = bytes;
    }
done:
    return error_at_operation(status, context->program->ops[op].node.name);
}

Status pass_conv_forward(const Group *group, int op) {
    const Op *o = &group->context->program->ops[op];
    return conv_run(group->context->states[op].forward, group->thread, group->count, group_tensor(group, o->input),
                    group_tensor(group, o->output), group_library_scratch(group));
}

Status pass_conv_data(const Group *group, int op) {
    const Op *o = &group->context->program->ops[op];
    return conv_run(group->context->states[op].data, group->thread, group->count,
                    group_tensor(group, o->output_gradient), group_tensor(group, o->input_gradient),
                    group_library_scratch(group));
}

Status pass_conv_filter(const Group *group, int op) {
    const Op *o = &group->context->program->ops[op];
    const OpState *state = &group->context->states[op];
    float *partial = group->context->shared_partials + (size_t)group->chunk * state->partial_elems;
    return conv_run_filter(state->filter, group->thread, group->count, group_tensor(group, o->input),
                           group_tensor(group, o->output_gradient), !group->begins, partial, group_sum_scratch(group),
                           group_library_scratch(group));
}

typedef struct Unpack {
    const Context *context;
    const OpState *state;
    int chunks;
    float *gradient;
} Unpack;

static Status unpack_part(void *argument, size_t item, int thread) {
    const Unpack *unpack = argument;
    (void)thread;
    conv_unpack(unpack->state->filter, unpack->context->shared_partials, unpack->chunks, unpack->state->partial_elems,
                unpack->gradient, (int)item, UNPACK_PARTS);
    return STATUS_OK;
}

Status close_conv(Context *context, const Job *job, int op) {
    float *gradients = model_gradient_data(context->model);
    Unpack unpack = {context, &context->states[op], context_chunks(job->count),
                     gradients + context->program->ops[op].weight};
    return pool_run(model_pool(context->model), UNPACK_PARTS, unpack_part, &unpack);
}
