/* Convolutions between activations as operators: runs conv.h on groups of images, and sums the partial filter gradients
 * of the chunks. */
#include "base/memory.h"
#include "nn/cpu/context.h"

#define UNPACK_PARTS 8

static ConvShape conv_shape_of(const Context *context, const Op *op) {
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
    ConvNeed need = {.shape = conv_shape_of(context, &context->program->ops[op]),
                     .direction = direction,
                     .precision = context->program->precision,
                     .method = nn_model_convolution(context->model),
                     .threads = context->threads};
    need.size_count = nn_cpu_context_group_sizes(context, kind, op, need.sizes);
    if (need.size_count == 0) return STATUS_OK;
    TRY(nn_cpu_conv_create(&need, out));
    size_t scratch = (*out)->scratch_bytes, sum = (*out)->sum_elems * sizeof(float);
    if (scratch > context->library_bytes) context->library_bytes = scratch;
    if (sum > context->sum_bytes) context->sum_bytes = sum;
    return STATUS_OK;
}

Status nn_cpu_conv_op_create(Context *context, int op) {
    OpState *state = &context->states[op];
    Status status = STATUS_OK;
    TRY_GOTO(create_direction(context, op, PASS_CONV_FORWARD, CONV_FORWARD, &state->forward));
    TRY_GOTO(create_direction(context, op, PASS_CONV_DATA, CONV_DATA, &state->data));
    TRY_GOTO(create_direction(context, op, PASS_CONV_FILTER, CONV_FILTER, &state->filter));
    if (state->filter != NULL) {
        state->partial_elems = state->filter->partial_elems;
        if (state->partial_elems > context->shared_elems) context->shared_elems = state->partial_elems;
    }
done:
    return error_at_operation(status, context->program->ops[op].node.name);
}

static ConvCall call_of(const Group *group, PassKind kind, int op) {
    ConvCall call = {.thread = group->thread,
                     .images = group->count,
                     .scratch = nn_cpu_group_library_scratch(group),
                     .sum = nn_cpu_group_sum_scratch(group),
                     .begins = group->begins,
                     .ends = group->ends};
    if (group->fetching->kind == kind && group->fetching->op == op) nn_cpu_context_ahead(group, &call.ahead);
    return call;
}

Status nn_cpu_pass_conv_forward(const Group *group, int op) {
    const Op *o = &group->context->program->ops[op];
    ConvCall call = call_of(group, PASS_CONV_FORWARD, op);
    Conv *conv = group->context->states[op].forward;
    return conv->table->run(conv, &call, nn_cpu_group_tensor(group, o->input), nn_cpu_group_tensor(group, o->output));
}

Status nn_cpu_pass_conv_data(const Group *group, int op) {
    const Op *o = &group->context->program->ops[op];
    ConvCall call = call_of(group, PASS_CONV_DATA, op);
    Conv *conv = group->context->states[op].data;
    return conv->table->run(conv, &call, nn_cpu_group_tensor(group, o->output_gradient),
                            nn_cpu_group_tensor(group, o->input_gradient));
}

Status nn_cpu_pass_conv_filter(const Group *group, int op) {
    const Op *o = &group->context->program->ops[op];
    const OpState *state = &group->context->states[op];
    ConvCall call = call_of(group, PASS_CONV_FILTER, op);
    float *partial = group->context->shared_partials + (size_t)group->chunk * state->partial_elems;
    return state->filter->table->run_filter(state->filter, &call, nn_cpu_group_tensor(group, o->input),
                                            nn_cpu_group_tensor(group, o->output_gradient), partial);
}

typedef struct Unpack {
    const Context *context;
    const OpState *state;
    int chunks;
    float *gradient;
} Unpack;

static Status unpack_part(void *argument, size_t item, int thread) {
    const Unpack *unpack = argument;
    const Conv *conv = unpack->state->filter;
    (void)thread;
    conv->table->unpack(conv, unpack->context->shared_partials, unpack->chunks, unpack->gradient, (int)item,
                        UNPACK_PARTS);
    return STATUS_OK;
}

Status nn_cpu_close_conv(Context *context, const Job *job, int op) {
    float *gradients = nn_model_gradient_data(context->model);
    Unpack unpack = {context, &context->states[op], nn_cpu_context_chunks(job->count),
                     gradients + context->program->ops[op].weight};
    return pool_run(nn_model_pool(context->model), UNPACK_PARTS, unpack_part, &unpack);
}
