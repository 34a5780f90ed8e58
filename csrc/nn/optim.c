/* The optimizer: owns the momenta, applies SGD chunk by chunk over all tensors in one parallel loop, and leaves
 * the matrices of Muon groups to muon.c. */
#include "nn/optim.h"

#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "nn/optim_private.h"

/* A run of elements of one tensor: an item of the element-wise loops. */
typedef struct Chunk {
    int tensor;
    int64_t begin, end;
} Chunk;

struct Optim {
    Pool *pool;           /* borrowed */
    OptimGroup *groups;   /* owned */
    OptimTensor *tensors; /* owned; the memory they name is borrowed */
    int group_count, tensor_count;
    float *momentum;   /* owned */
    int64_t *offsets;  /* owned: where each tensor's momentum starts */
    Chunk *chunks;     /* owned: all tensors */
    bool *chunk_clean; /* owned: results of optim_gradients_finite */
    size_t chunk_count;
    Muon *muon;            /* owned; NULL without Muon groups */
    int *muon_group;       /* owned: the group of each Muon matrix */
    OptimRate *muon_rates; /* owned */
    int muon_count;
    const OptimRate *rates; /* borrowed during a call; NULL: all active */
};

static Status check_group(const OptimGroup *group, int index) {
    if (group->rule < OPTIM_SGD || group->rule > OPTIM_MUON) {
        FAIL(STATUS_ARGUMENT, "optimizer group %d: unknown rule %d", index, (int)group->rule);
    }
    if (!(group->momentum >= 0 && group->momentum < 1)) {
        FAIL(STATUS_ARGUMENT, "optimizer group %d: momentum must be in [0, 1), not %g", index, (double)group->momentum);
    }
    if (!(group->decay >= 0) || isinf(group->decay)) {
        FAIL(STATUS_ARGUMENT, "optimizer group %d: weight decay must be 0 or more, not %g", index,
             (double)group->decay);
    }
    if (group->rule == OPTIM_MUON && (group->iterations < 1 || group->iterations > 20)) {
        FAIL(STATUS_ARGUMENT, "optimizer group %d: Newton-Schulz iterations must be 1 to 20, not %d", index,
             group->iterations);
    }
    return STATUS_OK;
}

static Status check(const OptimGroup *groups, int group_count, const OptimTensor *tensors, int tensor_count) {
    if (group_count < 1 || tensor_count < 1) {
        FAIL(STATUS_ARGUMENT, "an optimizer needs at least one group and one tensor, not %d and %d", group_count,
             tensor_count);
    }
    for (int i = 0; i < group_count; i++) TRY(check_group(&groups[i], i));
    for (int i = 0; i < tensor_count; i++) {
        if (tensors[i].group < 0 || tensors[i].group >= group_count) {
            FAIL(STATUS_ARGUMENT, "optimizer tensor %d: group must be 0 to %d, not %d", i, group_count - 1,
                 tensors[i].group);
        }
        if (tensors[i].rows < 1 || tensors[i].columns < 1 || tensors[i].rows > INT64_MAX / 8 / tensors[i].columns) {
            FAIL(STATUS_ARGUMENT, "optimizer tensor %d: impossible size %lld x %lld", i, (long long)tensors[i].rows,
                 (long long)tensors[i].columns);
        }
    }
    return STATUS_OK;
}

static int64_t tensor_elems(const OptimTensor *tensor) { return tensor->rows * tensor->columns; }

static size_t chunks_of(const OptimTensor *tensor) {
    return (size_t)((tensor_elems(tensor) + OPTIM_CHUNK - 1) / OPTIM_CHUNK);
}

static void cut_chunks(Optim *optim) {
    size_t next = 0;
    for (int i = 0; i < optim->tensor_count; i++) {
        int64_t elems = tensor_elems(&optim->tensors[i]);
        for (int64_t begin = 0; begin < elems; begin += OPTIM_CHUNK) {
            int64_t end = elems - begin < OPTIM_CHUNK ? elems : begin + OPTIM_CHUNK;
            optim->chunks[next++] = (Chunk){i, begin, end};
        }
    }
}

static Status create_muon(Optim *optim) {
    Status status = STATUS_OK;
    MuonMatrix *matrices = NULL;
    TRY_GOTO(memory_calloc((size_t)optim->tensor_count, sizeof *matrices, &matrices));
    for (int i = 0; i < optim->tensor_count; i++) {
        const OptimTensor *t = &optim->tensors[i];
        if (optim->groups[t->group].rule != OPTIM_MUON) continue;
        optim->muon_group[optim->muon_count] = t->group;
        matrices[optim->muon_count++] = (MuonMatrix){
            .value = t->value,
            .gradient = t->gradient,
            .momentum = optim->momentum + optim->offsets[i],
            .rows = t->rows,
            .columns = t->columns,
            .group = optim->groups[t->group],
        };
    }
    if (optim->muon_count > 0) {
        TRY_GOTO(muon_create(matrices, optim->muon_count, optim->pool, &optim->muon));
    }
done:
    memory_free(matrices);
    return status;
}

static Status allocate(Optim *optim) {
    size_t tensors = (size_t)optim->tensor_count, groups = (size_t)optim->group_count;
    TRY(memory_calloc(groups, sizeof *optim->groups, &optim->groups));
    TRY(memory_calloc(tensors, sizeof *optim->tensors, &optim->tensors));
    TRY(memory_calloc(tensors + 1, sizeof *optim->offsets, &optim->offsets));
    TRY(memory_calloc(tensors, sizeof *optim->muon_group, &optim->muon_group));
    return memory_calloc(tensors, sizeof *optim->muon_rates, &optim->muon_rates);
}

Status optim_create(const OptimGroup *groups, int group_count, const OptimTensor *tensors, int tensor_count, Pool *pool,
                    Optim **out) {
    Status status = STATUS_OK;
    Optim *optim = NULL;
    TRY(check(groups, group_count, tensors, tensor_count));
    TRY(memory_calloc(1, sizeof *optim, &optim));
    optim->pool = pool;
    optim->group_count = group_count;
    optim->tensor_count = tensor_count;
    TRY_GOTO(allocate(optim));
    memcpy(optim->groups, groups, (size_t)group_count * sizeof *groups);
    memcpy(optim->tensors, tensors, (size_t)tensor_count * sizeof *tensors);
    for (int i = 0; i < tensor_count; i++) {
        optim->offsets[i + 1] = optim->offsets[i] + tensor_elems(&tensors[i]);
        optim->chunk_count += chunks_of(&tensors[i]);
    }
    TRY_GOTO(memory_calloc((size_t)optim->offsets[tensor_count], sizeof(float), &optim->momentum));
    TRY_GOTO(memory_calloc(optim->chunk_count, sizeof *optim->chunks, &optim->chunks));
    TRY_GOTO(memory_calloc(optim->chunk_count, sizeof *optim->chunk_clean, &optim->chunk_clean));
    cut_chunks(optim);
    TRY_GOTO(create_muon(optim));
    *out = optim;
    optim = NULL;
done:
    optim_destroy(optim);
    return status;
}

void optim_destroy(Optim *optim) {
    if (optim == NULL) return;
    muon_destroy(optim->muon);
    memory_free(optim->muon_rates);
    memory_free(optim->muon_group);
    memory_free(optim->chunk_clean);
    memory_free(optim->chunks);
    memory_free(optim->offsets);
    memory_free(optim->momentum);
    memory_free(optim->tensors);
    memory_free(optim->groups);
    memory_free(optim);
}

static void sgd(float *restrict p, const float *restrict gradient, float *restrict v, int64_t elems, float momentum,
                float decay, float rate) {
    for (int64_t i = 0; i < elems; i++) {
        float g = gradient[i] + decay * p[i];
        v[i] = momentum * v[i] + g;
        p[i] -= rate * v[i];
    }
}

static void nesterov(float *restrict p, const float *restrict gradient, float *restrict v, int64_t elems,
                     float momentum, float decay, float rate) {
    for (int64_t i = 0; i < elems; i++) {
        float g = gradient[i] + decay * p[i];
        v[i] = momentum * v[i] + g;
        p[i] -= rate * (g + momentum * v[i]);
    }
}

static Status step_chunk(void *context, size_t item, int thread) {
    (void)thread;
    Optim *optim = context;
    Chunk chunk = optim->chunks[item];
    const OptimTensor *t = &optim->tensors[chunk.tensor];
    const OptimGroup *group = &optim->groups[t->group];
    OptimRate rate = optim->rates[t->group];
    if (!rate.active || group->rule == OPTIM_MUON) return STATUS_OK;
    float *v = optim->momentum + optim->offsets[chunk.tensor] + chunk.begin;
    (group->rule == OPTIM_SGD ? sgd : nesterov)(t->value + chunk.begin, t->gradient + chunk.begin, v,
                                                chunk.end - chunk.begin, group->momentum, group->decay, rate.rate);
    return STATUS_OK;
}

Status optim_step(Optim *optim, const OptimRate *rates) {
    for (int i = 0; i < optim->group_count; i++) {
        if (rates[i].active && !isfinite(rates[i].rate)) {
            FAIL(STATUS_ARGUMENT, "the rate of optimizer group %d must be finite, not %g", i, (double)rates[i].rate);
        }
    }
    optim->rates = rates;
    TRY(pool_run(optim->pool, optim->chunk_count, step_chunk, optim));
    if (optim->muon == NULL) return STATUS_OK;
    for (int i = 0; i < optim->muon_count; i++) optim->muon_rates[i] = rates[optim->muon_group[i]];
    return muon_step(optim->muon, optim->muon_rates);
}

/* Infinities and NaNs are the floats whose bits, without the sign, reach those of infinity. */
static Status check_chunk(void *context, size_t item, int thread) {
    (void)thread;
    Optim *optim = context;
    Chunk chunk = optim->chunks[item];
    optim->chunk_clean[item] = true;
    if (optim->rates != NULL && !optim->rates[optim->tensors[chunk.tensor].group].active) return STATUS_OK;
    const float *g = optim->tensors[chunk.tensor].gradient;
    uint32_t worst = 0;
    for (int64_t i = chunk.begin; i < chunk.end; i++) {
        uint32_t bits;
        memcpy(&bits, &g[i], sizeof bits);
        bits &= 0x7FFFFFFFu;
        worst = bits > worst ? bits : worst;
    }
    optim->chunk_clean[item] = worst < 0x7F800000u;
    return STATUS_OK;
}

Status optim_gradients_finite(Optim *optim, const OptimRate *rates, bool *out) {
    optim->rates = rates;
    TRY(pool_run(optim->pool, optim->chunk_count, check_chunk, optim));
    bool clean = true;
    for (size_t i = 0; i < optim->chunk_count; i++) clean = clean && optim->chunk_clean[i];
    *out = clean;
    return STATUS_OK;
}

float *optim_momentum(Optim *optim, int64_t *elems) {
    *elems = optim->offsets[optim->tensor_count];
    return optim->momentum;
}

double optim_step_flops(const Optim *optim) { return optim->muon == NULL ? 0.0 : muon_step_flops(optim->muon); }
