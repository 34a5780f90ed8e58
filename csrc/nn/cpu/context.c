/* Creates and frees the CPU backend's memory for one program, and chooses how the batch is split. */
#include "nn/cpu/context.h"

#include "base/checked.h"
#include "base/memory.h"

#define CHUNK_IMAGES 64
#define CHUNKS_AT_LEAST 8
#define GROUP_BYTES (512 * 1024) /* memory that a group may access in a phase */
#define GROUP_MOST 32

int nn_cpu_context_chunks(int count) {
    int chunks = (count + CHUNK_IMAGES - 1) / CHUNK_IMAGES;
    if (chunks < CHUNKS_AT_LEAST) chunks = CHUNKS_AT_LEAST;
    chunks = (chunks + 3) / 4 * 4;
    return chunks < count ? chunks : count;
}

int nn_cpu_context_chunk_begin(int count, int chunk) {
    return (int)((int64_t)count * chunk / nn_cpu_context_chunks(count));
}

void *nn_cpu_group_tensor(const Group *group, int tensor) {
    const Context *context = group->context;
    const Tensor *t = &context->program->tensors[tensor];
    if (t->held) return context->arena + t->offset + (size_t)group->first * t->image_bytes;
    return context->scratch + (size_t)group->thread * context->scratch_bytes + t->offset * (size_t)group->room;
}

Maps nn_cpu_group_maps(const Group *group, int tensor) {
    const Tensor *t = &group->context->program->tensors[tensor];
    return (Maps){group->count, t->height, t->width, t->channels};
}

static char *own_scratch(const Group *group) {
    const Context *context = group->context;
    return context->scratch + (size_t)group->thread * context->scratch_bytes + context->tensors_bytes;
}

void *nn_cpu_group_library_scratch(const Group *group) { return own_scratch(group); }

float *nn_cpu_group_sum_scratch(const Group *group) {
    return (float *)(void *)(own_scratch(group) + group->context->library_bytes);
}

void *nn_cpu_group_row_scratch(const Group *group) {
    return own_scratch(group) + group->context->library_bytes + group->context->sum_bytes;
}

Status nn_cpu_context_alloc(Context *context, size_t count, size_t size, void *out) {
    TRY(memory_calloc(count, size, out));
    context->bytes += count * size;
    return STATUS_OK;
}

/* The phase that has this pass among its ranged ones, or -1. */
static int phase_of(const Program *program, PassKind kind, int op) {
    for (int i = 0; i < program->phase_count; i++) {
        const Phase *phase = &program->phases[i];
        for (int j = 0; j < phase->ranged_count; j++) {
            const Pass *pass = &program->passes[phase->ranged + j];
            if (pass->kind == kind && pass->op == op) return i;
        }
    }
    return -1;
}

int nn_cpu_context_group_sizes(const Context *context, PassKind kind, int op, int sizes[CONV_MAX_SIZES]) {
    int phase = phase_of(context->program, kind, op), batch = context->program->batch, count = 0;
    if (phase < 0) return 0;
    int chunks = nn_cpu_context_chunks(batch), smallest = batch / chunks, largest = (batch + chunks - 1) / chunks;
    for (int chunk = largest; chunk >= smallest; chunk--) {
        int groups = (chunk + context->rooms[phase] - 1) / context->rooms[phase];
        for (int size = (chunk + groups - 1) / groups; size >= chunk / groups; size--) {
            if (count == 0 || size < sizes[count - 1]) sizes[count++] = size;
        }
    }
    return count;
}

/* Marks the tensors that a phase's ranged passes access; if `job` is not NULL, only those of passes that it runs. */
static void mark_tensors(const Program *program, const Phase *phase, const Job *job, bool *used) {
    for (int j = 0; j < phase->ranged_count; j++) {
        const Pass *pass = &program->passes[phase->ranged + j];
        if (job != NULL && !nn_pass_enabled(job, pass)) continue;
        int tensors[PASS_MAX_TENSORS], count = nn_program_tensors_of(program, pass, tensors);
        for (int i = 0; i < count; i++) used[tensors[i]] = true;
    }
}

void nn_cpu_context_ahead(const Group *group, ConvAhead *ahead) {
    const Program *program = group->context->program;
    bool used[CONTEXT_MAX_TENSORS] = {false};
    ahead->count = 0;
    if (group->next_count == 0) return;
    mark_tensors(program, group->phase, group->job, used);
    for (int i = 0; i < program->tensor_count && ahead->count < CONV_MAX_AHEAD; i++) {
        const Tensor *t = &program->tensors[i];
        if (!used[i] || !t->held) continue;
        ahead->from[ahead->count] = group->context->arena + t->offset + (size_t)group->next_first * t->image_bytes;
        ahead->bytes[ahead->count++] = (size_t)group->next_count * t->image_bytes;
    }
}

/* The bytes per image of the tensors that a phase accesses. */
static size_t phase_bytes(const Program *program, const Phase *phase) {
    bool used[CONTEXT_MAX_TENSORS] = {false};
    size_t bytes = 0;
    mark_tensors(program, phase, NULL, used);
    for (int i = 0; i < program->tensor_count; i++) bytes += used[i] ? program->tensors[i].image_bytes : 0;
    return bytes;
}

static void choose_rooms(Context *context) {
    for (int i = 0; i < context->program->phase_count; i++) {
        size_t bytes = phase_bytes(context->program, &context->program->phases[i]);
        size_t room = bytes == 0 ? 1 : GROUP_BYTES / bytes;
        context->rooms[i] = room < 1 ? 1 : room > GROUP_MOST ? GROUP_MOST : (int)room;
    }
}

/* Finds the memory needed for the scratch tensors of the most demanding phase. */
static Status measure_tensors(Context *context) {
    const Program *program = context->program;
    uint64_t bytes;
    for (int i = 0; i < program->tensor_count; i++) {
        const Tensor *tensor = &program->tensors[i];
        for (int j = 0; !tensor->held && j < program->phase_count; j++) {
            int begin = program->phases[j].ranged, end = begin + program->phases[j].ranged_count;
            if (tensor->first_pass >= end || tensor->last_pass < begin) continue;
            uint64_t image_end;
            if (!checked_round_up(tensor->offset + tensor->image_bytes, MEMORY_ALIGNMENT, &image_end) ||
                !checked_mul(image_end, (uint64_t)context->rooms[j], &bytes)) {
                FAIL(STATUS_ARGUMENT, "the images are too large");
            }
            if (bytes > context->tensors_bytes) context->tensors_bytes = bytes;
        }
    }
    return STATUS_OK;
}

static Status create_state(Context *context, int op) {
    switch (context->program->ops[op].node.kind) {
    case NODE_CONV:
        return op == 0 ? nn_cpu_stem_op_create(context, op) : nn_cpu_conv_op_create(context, op);
    case NODE_NORM:
        return nn_cpu_norm_op_create(context, op);
    case NODE_HEAD:
        return nn_cpu_head_op_create(context, op);
    }
    return STATUS_OK;
}

static Status build(Context *context) {
    const Program *program = context->program;
    TRY(nn_cpu_context_alloc(context, (size_t)program->phase_count, sizeof *context->rooms, &context->rooms));
    TRY(nn_cpu_context_alloc(context, (size_t)program->op_count, sizeof *context->states, &context->states));
    choose_rooms(context);
    TRY(measure_tensors(context));
    for (int i = 0; i < program->op_count; i++) TRY(create_state(context, i));
    context->library_bytes = round_up(context->library_bytes, MEMORY_ALIGNMENT);
    context->sum_bytes = round_up(context->sum_bytes, MEMORY_ALIGNMENT);
    context->row_bytes = round_up(context->row_bytes, MEMORY_ALIGNMENT);
    context->scratch_bytes = context->tensors_bytes + context->library_bytes + context->sum_bytes + context->row_bytes;
    TRY(nn_cpu_context_alloc(context, context->scratch_bytes, (size_t)context->threads, &context->scratch));
    TRY(nn_cpu_context_alloc(context, context->shared_elems * (size_t)context->chunks + 1, sizeof(float),
                             &context->shared_partials));
    return nn_cpu_context_alloc(context, program->arena_bytes + 1, 1, &context->arena);
}

Status nn_cpu_context_create(NnModel *model, const Program *program, Context **out) {
    Context *context = NULL;
    TRY(memory_calloc(1, sizeof *context, &context));
    context->model = model;
    context->program = program;
    context->kernels = nn_cpu_kernels_for(program->precision);
    context->threads = pool_threads(nn_model_pool(model));
    context->chunks = nn_cpu_context_chunks(program->batch);
    Status status = build(context);
    if (status == STATUS_OK) {
        *out = context;
        context = NULL;
    }
    nn_cpu_context_destroy(context);
    return status;
}

void nn_cpu_context_destroy(Context *context) {
    if (context == NULL) return;
    for (int i = 0; context->states != NULL && i < context->program->op_count; i++) {
        OpState *state = &context->states[i];
        nn_cpu_conv_destroy(state->forward);
        nn_cpu_conv_destroy(state->data);
        nn_cpu_conv_destroy(state->filter);
        memory_free(state->partials);
        memory_free(state->packed);
        memory_free(state->floats);
        memory_free(state->doubles);
    }
    memory_free(context->pass_ns);
    memory_free(context->partial_totals);
    memory_free(context->shared_partials);
    memory_free(context->scratch);
    memory_free(context->arena);
    memory_free(context->states);
    memory_free(context->rooms);
    memory_free(context);
}
