/* The CPU backend's table: runs phases on the pool's threads. */
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/cpu.h"
#include "base/memory.h"
#include "nn/cpu/context.h"

#define PACK_PARTS 4

static const RangedPass ranged_passes[PASS_KINDS] = {
    [PASS_LOAD] = nn_cpu_pass_load,
    [PASS_CONV_FORWARD] = nn_cpu_pass_conv_forward,
    [PASS_CONV_FILTER] = nn_cpu_pass_conv_filter,
    [PASS_CONV_DATA] = nn_cpu_pass_conv_data,
    [PASS_NORM_STATISTICS] = nn_cpu_pass_norm_statistics,
    [PASS_NORM_APPLY] = nn_cpu_pass_norm_apply,
    [PASS_NORM_REDUCE] = nn_cpu_pass_norm_reduce,
    [PASS_NORM_BACKWARD] = nn_cpu_pass_norm_backward,
    [PASS_NORM_EVALUATE] = nn_cpu_pass_norm_evaluate,
    [PASS_HEAD_EVALUATE] = nn_cpu_pass_head_evaluate,
    [PASS_HEAD_TRAIN] = nn_cpu_pass_head_train,
};

static const ClosingPass closing_passes[PASS_KINDS] = {
    [PASS_CONV_CLOSE] = nn_cpu_close_conv,
    [PASS_NORM_CLOSE] = nn_cpu_close_norm,
    [PASS_NORM_BACKWARD_CLOSE] = nn_cpu_close_norm_backward,
    [PASS_NORM_RUNNING] = nn_cpu_close_norm_running,
    [PASS_HEAD_CLOSE] = nn_cpu_close_head,
};

/* The convolution that reads the images has its own passes. */
static RangedPass ranged_pass(const Pass *pass) {
    if (pass->op == 0 && pass->kind == PASS_CONV_FORWARD) return nn_cpu_pass_stem_forward;
    if (pass->op == 0 && pass->kind == PASS_CONV_FILTER) return nn_cpu_pass_stem_backward;
    return ranged_passes[pass->kind];
}

static ClosingPass closing_pass(const Pass *pass) {
    return pass->op == 0 && pass->kind == PASS_CONV_CLOSE ? nn_cpu_close_stem : closing_passes[pass->kind];
}

static Status cpu_choose_precision(Precision requested, Precision *out) {
    if (requested == PRECISION_AUTO) {
        const CpuFeatures *cpu = cpu_features();
        requested = cpu->avx512_bf16 || cpu->amx_bf16 ? PRECISION_BFLOAT16 : PRECISION_FLOAT32;
    }
    if (requested == PRECISION_FLOAT16)
        FAIL(STATUS_ARGUMENT, "the CPU computes in float32 or bfloat16, not in float16");
    TRY(nn_cpu_dnnl_supported(requested));
    *out = requested;
    return STATUS_OK;
}

static Status cpu_buffer_create(size_t elems, float **out) { return memory_calloc(elems + 1, sizeof **out, out); }

static void cpu_buffer_destroy(float *buffer) { memory_free(buffer); }

static Status cpu_copy(void *to, const void *from, size_t bytes) {
    memmove(to, from, bytes);
    return STATUS_OK;
}

static Status pack_part(void *argument, size_t item, int thread) {
    Context *context = argument;
    int op = (int)(item / (2 * PACK_PARTS)), part = (int)(item % PACK_PARTS);
    bool data = item / PACK_PARTS % 2 == 1;
    const Op *o = &context->program->ops[op];
    (void)thread;
    if (o->node.kind != NODE_CONV) return STATUS_OK;
    if (op == 0) return data || part > 0 ? STATUS_OK : nn_cpu_stem_op_pack(context, op);
    Conv *conv = data ? context->states[op].data : context->states[op].forward;
    if (conv == NULL) return STATUS_OK;
    conv->table->pack(conv, nn_model_parameter_data(context->model) + o->weight, part, PACK_PARTS);
    return STATUS_OK;
}

static Status cpu_begin(Context *context, const Job *job) {
    (void)job;
    return pool_run(nn_model_pool(context->model), (size_t)context->program->op_count * 2 * PACK_PARTS, pack_part,
                    context);
}

typedef struct Walk {
    Context *context;
    const Job *job;
    const Phase *phase;
    int room;
} Walk;

/* Processor time of the calling thread. */
static int64_t thread_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static Status run_ranged(const Group *group, const Pass *pass) {
    Context *context = group->context;
    if (context->pass_ns == NULL) return ranged_pass(pass)(group, pass->op);
    int64_t *counter = context->pass_ns + group->thread * context->program->pass_count;
    int64_t start = thread_ns();
    Status status = ranged_pass(pass)(group, pass->op);
    counter[pass - context->program->passes] += thread_ns() - start;
    return status;
}

static Status cpu_profile(Context *context, double *seconds) {
    int passes = context->program->pass_count;
    if (seconds == NULL) {
        memory_free(context->pass_ns);
        context->pass_ns = NULL;
        return memory_calloc((size_t)context->threads * (size_t)passes, sizeof *context->pass_ns, &context->pass_ns);
    }
    for (int i = 0; i < passes; i++) {
        seconds[i] = 0;
        for (int t = 0; t < context->threads && context->pass_ns != NULL; t++) {
            seconds[i] += (double)context->pass_ns[t * passes + i] * 1e-9;
        }
    }
    memory_free(context->pass_ns);
    context->pass_ns = NULL;
    return STATUS_OK;
}

static const Pass *last_conv(const Walk *walk) {
    const Pass *last = NULL;
    for (int j = 0; j < walk->phase->ranged_count; j++) {
        const Pass *pass = &walk->context->program->passes[walk->phase->ranged + j];
        bool conv = pass->kind == PASS_CONV_FORWARD || pass->kind == PASS_CONV_DATA || pass->kind == PASS_CONV_FILTER;
        if (conv && pass->op > 0 && nn_pass_enabled(walk->job, pass)) last = pass;
    }
    return last;
}

/* Takes one chunk through all ranged passes of the phase, group by group. */
static Status walk_chunk(void *argument, size_t item, int thread) {
    const Walk *walk = argument;
    int chunk = (int)item, begin_image = nn_cpu_context_chunk_begin(walk->job->count, chunk);
    int images = nn_cpu_context_chunk_begin(walk->job->count, chunk + 1) - begin_image;
    int groups = (images + walk->room - 1) / walk->room;
    Group group = {.context = walk->context,
                   .job = walk->job,
                   .thread = thread,
                   .chunk = chunk,
                   .room = walk->room,
                   .phase = walk->phase,
                   .fetching = last_conv(walk)};
    for (int i = 0; i < groups; i++) {
        int first = images * i / groups;
        group.first = begin_image + first;
        group.count = images * (i + 1) / groups - first;
        group.begins = i == 0;
        group.ends = i == groups - 1;
        group.next_first = group.first + group.count;
        group.next_count = group.ends ? 0 : images * (i + 2) / groups - images * (i + 1) / groups;
        for (int j = 0; j < walk->phase->ranged_count; j++) {
            const Pass *pass = &walk->context->program->passes[walk->phase->ranged + j];
            if (nn_pass_enabled(walk->job, pass)) TRY(run_ranged(&group, pass));
        }
    }
    return STATUS_OK;
}

static Status cpu_run(Context *context, const Job *job, const Phase *phase) {
    const Program *program = context->program;
    Walk walk = {context, job, phase, context->rooms[phase - program->phases]};
    bool any = false;
    for (int i = 0; i < phase->ranged_count; i++)
        any = any || nn_pass_enabled(job, &program->passes[phase->ranged + i]);
    if (any) TRY(pool_run(nn_model_pool(context->model), (size_t)nn_cpu_context_chunks(job->count), walk_chunk, &walk));
    for (int i = 0; i < phase->closing_count; i++) {
        const Pass *pass = &program->passes[phase->closing + i];
        int64_t start = thread_ns();
        if (nn_pass_enabled(job, pass)) TRY(closing_pass(pass)(context, job, pass->op));
        if (context->pass_ns != NULL) context->pass_ns[phase->closing + i] += thread_ns() - start;
    }
    return STATUS_OK;
}

static Status cpu_take_totals(Context *context, NnStepTotals *out) {
    *out = context->totals;
    context->totals = (NnStepTotals){0};
    return STATUS_OK;
}

static Status cpu_read_tensor(Context *context, int tensor, int count, float *to) {
    const Tensor *t = &context->program->tensors[tensor];
    const Kernels *kernels = t->type == TENSOR_STORAGE ? context->kernels : nn_cpu_kernels_for(PRECISION_FLOAT32);
    kernels->to_float(context->arena + t->offset, nn_tensor_elems(t, count), to);
    return STATUS_OK;
}

static Status cpu_write_tensor(Context *context, int tensor, int count, const float *from) {
    const Tensor *t = &context->program->tensors[tensor];
    context->kernels->from_float(from, nn_tensor_elems(t, count), context->arena + t->offset);
    return STATUS_OK;
}

static bool cpu_algorithm(const Context *context, const Pass *pass, NnAlgorithm *out) {
    const OpState *state = &context->states[pass->op];
    const Conv *conv = pass->kind == PASS_CONV_FORWARD  ? state->forward
                       : pass->kind == PASS_CONV_DATA   ? state->data
                       : pass->kind == PASS_CONV_FILTER ? state->filter
                                                        : NULL;
    if (conv == NULL) return false;
    *out = (NnAlgorithm){.name = conv->name, .text = conv->name, .source = ALGORITHM_FIXED};
    return true;
}

static void cpu_library(const Context *context, NnPlanLibrary *out) {
    (void)context;
    snprintf(out->name, sizeof out->name, "%s", nn_cpu_dnnl_name());
}

static size_t cpu_context_bytes(const Context *context) { return context->bytes; }

Status nn_ops_cpu(const OpsTable **out) {
    static const OpsTable table = {
        .name = "cpu",
        .precision = cpu_choose_precision,
        .buffer_create = cpu_buffer_create,
        .buffer_destroy = cpu_buffer_destroy,
        .copy = cpu_copy,
        .context_create = nn_cpu_context_create,
        .context_destroy = nn_cpu_context_destroy,
        .context_bytes = cpu_context_bytes,
        .begin = cpu_begin,
        .run = cpu_run,
        .take_totals = cpu_take_totals,
        .profile = cpu_profile,
        .algorithm = cpu_algorithm,
        .library = cpu_library,
        .read = cpu_read_tensor,
        .write = cpu_write_tensor,
    };
    *out = &table;
    return STATUS_OK;
}
