/* The memory of a context: one arena for held tensors, one for the others, and what the operators allocate. */
#include "nn/cuda/context.h"

#include <string.h>

#include "base/checked.h"
#include "base/environment.h"
#include "base/memory.h"

#define CHANNEL_MULTIPLE 8 /* for activations: the kernels read 16 bytes at a time */

void *nn_cuda_tensor(const Context *context, int tensor) {
    const Tensor *t = &context->program->tensors[tensor];
    if (t->held) return context->arena + t->offset;
    return context->scratch + t->offset * (size_t)context->program->batch;
}

static Status read_fusions(uint32_t *fusions) {
    static const char *const words[] = {"forward", "filter", "narrow", "1", "0", NULL}; /* first Fusion's bits */
    const uint32_t one = FUSION_ALL + 1;
    uint32_t chosen = one;
    TRY(environment_words("CGXFFCV_FUSED", words, &chosen));
    *fusions = (chosen & one) != 0 ? FUSION_ALL : chosen & FUSION_ALL;
    return STATUS_OK;
}

Status nn_cuda_context_alloc(Context *context, size_t bytes, void *out) {
    void *block = NULL;
    if (context->block_count == context->block_room) {
        FAIL(STATUS_LIBRARY, "a context with more than %d memory blocks", context->block_room);
    }
    TRY(device_alloc(bytes, &block));
    context->blocks[context->block_count++] = block;
    context->bytes += bytes;
    TRY(device_fill(block, 0, bytes, context->stream));
    memcpy(out, &block, sizeof block);
    return STATUS_OK;
}

static Status check_channels(const Context *context) {
    const Program *program = context->program;
    for (int i = 0; i < program->op_count; i++) {
        const Op *op = &program->ops[i];
        if (op->output < 0 || program->tensors[op->output].channels % CHANNEL_MULTIPLE == 0) continue;
        FAIL(STATUS_ARGUMENT, "node \"%s\" has %d channels; on a GPU their number must be a multiple of %d",
             op->node.name, program->tensors[op->output].channels, CHANNEL_MULTIPLE);
    }
    return STATUS_OK;
}

/* Bytes per image of the tensors that are not held; tensors with disjoint lifetimes share memory. */
static size_t scratch_bytes(const Program *program) {
    size_t most = 0;
    for (int i = 0; i < program->tensor_count; i++) {
        const Tensor *t = &program->tensors[i];
        if (!t->held && t->offset + t->image_bytes > most) most = t->offset + t->image_bytes;
    }
    return most;
}

static Status create_op(Context *context, int op) {
    const Op *o = &context->program->ops[op];
    if (o->node.kind == NODE_NORM) return nn_cuda_norm_op_create(context, op);
    if (o->node.kind == NODE_HEAD) return nn_cuda_head_op_create(context, op);
    return op == 0 ? nn_cuda_stem_op_create(context, op) : nn_cuda_conv_op_create(context, op);
}

static Status allocate_workspace(Context *context) {
    size_t most = 0;
    for (int i = 0; i < context->program->op_count; i++) {
        const OpState *state = &context->states[i];
        CudaConv *const convs[] = {state->forward, state->data, state->filter};
        for (int k = 0; k < 3; k++) {
            size_t bytes = convs[k] == NULL ? 0 : nn_cuda_conv_workspace_bytes(convs[k]);
            if (bytes > most) most = bytes;
        }
    }
    return nn_cuda_context_alloc(context, most, &context->workspace);
}

/* Allocates device copies for what callers have in host memory. */
static Status allocate_host_copies(Context *context) {
    const Program *program = context->program;
    const Tensor *input = &program->tensors[program->ops[0].input];
    size_t batch = (size_t)program->batch, classes = (size_t)program->ops[program->op_count - 1].node.out_channels;
    size_t pixels = (size_t)(input->height * input->width * input->channels);
    TRY(nn_cuda_context_alloc(context, batch * pixels * sizeof(float), &context->host_images));
    TRY(nn_cuda_context_alloc(context, batch * sizeof(int64_t), &context->host_labels));
    TRY(nn_cuda_context_alloc(context, batch * sizeof(float), &context->host_losses));
    return nn_cuda_context_alloc(context, batch * (classes + 1) * sizeof(float), &context->host_logits);
}

static Status context_allocate(Context *context) {
    const Program *program = context->program;
    NnModel *model = context->model;
    TRY(nn_cuda_context_alloc(context, program->arena_bytes, &context->arena));
    TRY(nn_cuda_context_alloc(context, scratch_bytes(program) * (size_t)program->batch, &context->scratch));
    TRY(nn_cuda_context_alloc(context, sizeof *context->totals, &context->totals));
    if (program->precision == PRECISION_FLOAT32) {
        context->filters = nn_model_parameter_data(model);
        context->filter_gradients = nn_model_gradient_data(model);
    } else {
        TRY(nn_cuda_context_alloc(context, nn_model_parameter_elems(model) * 2, &context->filters));
        if (program->training) {
            TRY(nn_cuda_context_alloc(context, nn_model_gradient_elems(model, 0) * 2, &context->filter_gradients));
        }
    }
    return allocate_host_copies(context);
}

Status nn_cuda_context_create(NnModel *model, const Program *program, Context **out) {
    Status status = STATUS_OK;
    Context *context = NULL;
    TRY(memory_calloc(1, sizeof *context, &context));
    context->model = model;
    context->program = program;
    context->stream = nn_model_stream(model);
    context->gradient_factor = 1;
    context->block_room = 16 + 4 * program->op_count;
    TRY_GOTO(check_channels(context));
    TRY_GOTO(read_fusions(&context->fusions));
    TRY_GOTO(memory_calloc((size_t)context->block_room, sizeof *context->blocks, &context->blocks));
    TRY_GOTO(memory_calloc((size_t)program->op_count, sizeof *context->states, &context->states));
    TRY_GOTO(nn_cuda_convs_create(context->stream, &context->convs));
    TRY_GOTO(context_allocate(context));
    nn_cuda_conv_pool_choose(context);
    for (int i = 0; i < program->op_count; i++) TRY_GOTO(create_op(context, i));
    TRY_GOTO(allocate_workspace(context));
    TRY_GOTO(device_stream_synchronize(context->stream));
    *out = context;
    context = NULL;
done:
    nn_cuda_context_destroy(context);
    return status;
}

void nn_cuda_context_destroy(Context *context) {
    if (context == NULL) return;
    (void)device_stream_synchronize(context->stream);
    for (int i = 0; context->states != NULL && i < context->program->op_count; i++) {
        nn_cuda_conv_op_destroy(&context->states[i]);
    }
    nn_cuda_convs_destroy(context->convs);
    for (int i = 0; i < context->block_count; i++) device_free(context->blocks[i]);
    memory_free(context->blocks);
    memory_free(context->states);
    memory_free(context);
}
