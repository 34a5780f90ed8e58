/* The optimizer in host memory: owns the momentum buffers, applies SGD chunk by chunk over all tensors in one parallel
 * loop, and leaves the matrices of Muon groups to muon.c. */
#include <string.h>

#include "base/memory.h"
#include "optim/private.h"

/* A run of elements of one tensor: an item of the element-wise loops. */
typedef struct OptimChunk {
    int tensor;
    int64_t begin, end;
} OptimChunk;

struct OptimState {
    Pool *pool;            /* borrowed */
    const OptimSpec *spec; /* borrowed */
    float *momentum;       /* owned */
    OptimChunk *chunks;    /* owned: of all tensors */
    bool *chunk_finite;    /* owned: results of gradients_finite */
    size_t chunk_count;
    Muon *muon;            /* owned; NULL without Muon groups */
    int *muon_group;       /* owned: the group of each Muon matrix */
    OptimRate *muon_rates; /* owned */
    int muon_count;
    const OptimRate *rates; /* borrowed during a call; NULL: all groups are active */
};

static size_t chunks_of(const OptimTensor *tensor) {
    return (size_t)((optim_tensor_elems(tensor) + OPTIM_CHUNK - 1) / OPTIM_CHUNK);
}

static void cut_chunks(OptimState *optim) {
    size_t next = 0;
    for (int i = 0; i < optim->spec->tensor_count; i++) {
        int64_t elems = optim_tensor_elems(&optim->spec->tensors[i]);
        for (int64_t begin = 0; begin < elems; begin += OPTIM_CHUNK) {
            int64_t end = elems - begin < OPTIM_CHUNK ? elems : begin + OPTIM_CHUNK;
            optim->chunks[next++] = (OptimChunk){i, begin, end};
        }
    }
}

static Status create_muon(OptimState *optim) {
    Status status = STATUS_OK;
    MuonMatrix *matrices = NULL;
    TRY_GOTO(memory_calloc((size_t)optim->spec->tensor_count, sizeof *matrices, &matrices));
    for (int i = 0; i < optim->spec->tensor_count; i++) {
        const OptimTensor *t = &optim->spec->tensors[i];
        if (optim->spec->groups[t->group].rule != OPTIM_MUON) continue;
        optim->muon_group[optim->muon_count] = t->group;
        matrices[optim->muon_count++] = (MuonMatrix){
            .value = t->value,
            .gradient = t->gradient,
            .momentum = optim->momentum + optim->spec->offsets[i],
            .rows = t->rows,
            .columns = t->columns,
            .group = optim->spec->groups[t->group],
        };
    }
    if (optim->muon_count > 0) {
        TRY_GOTO(optim_muon_create(matrices, optim->muon_count, optim->pool, &optim->muon));
    }
done:
    memory_free(matrices);
    return status;
}

static Status host_allocate(OptimState *optim) {
    size_t tensors = (size_t)optim->spec->tensor_count;
    size_t elems = (size_t)optim->spec->offsets[tensors];
    for (size_t i = 0; i < tensors; i++) optim->chunk_count += chunks_of(&optim->spec->tensors[i]);
    TRY(memory_calloc(elems, sizeof(float), &optim->momentum));
    TRY(memory_calloc(optim->chunk_count, sizeof *optim->chunks, &optim->chunks));
    TRY(memory_calloc(optim->chunk_count, sizeof *optim->chunk_finite, &optim->chunk_finite));
    TRY(memory_calloc(tensors, sizeof *optim->muon_group, &optim->muon_group));
    return memory_calloc(tensors, sizeof *optim->muon_rates, &optim->muon_rates);
}

static void host_destroy(OptimState *optim) {
    if (optim == NULL) return;
    optim_muon_destroy(optim->muon);
    memory_free(optim->muon_rates);
    memory_free(optim->muon_group);
    memory_free(optim->chunk_finite);
    memory_free(optim->chunks);
    memory_free(optim->momentum);
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
    OptimState *optim = context;
    OptimChunk chunk = optim->chunks[item];
    const OptimTensor *t = &optim->spec->tensors[chunk.tensor];
    const OptimGroup *group = &optim->spec->groups[t->group];
    OptimRate rate = optim->rates[t->group];
    if (!rate.active || group->rule == OPTIM_MUON) return STATUS_OK;
    float *v = optim->momentum + optim->spec->offsets[chunk.tensor] + chunk.begin;
    (group->rule == OPTIM_SGD ? sgd : nesterov)(t->value + chunk.begin, t->gradient + chunk.begin, v,
                                                chunk.end - chunk.begin, group->momentum, group->decay, rate.rate);
    return STATUS_OK;
}

static Status host_step(OptimState *optim, const OptimRate *rates) {
    optim->rates = rates;
    TRY(pool_run(optim->pool, optim->chunk_count, step_chunk, optim));
    if (optim->muon == NULL) return STATUS_OK;
    for (int i = 0; i < optim->muon_count; i++) optim->muon_rates[i] = rates[optim->muon_group[i]];
    return optim_muon_step(optim->muon, optim->muon_rates);
}

/* Infinities and NaNs are the floats whose bits, without the sign, are at least those of infinity. */
static Status check_chunk(void *context, size_t item, int thread) {
    (void)thread;
    OptimState *optim = context;
    OptimChunk chunk = optim->chunks[item];
    optim->chunk_finite[item] = true;
    if (optim->rates != NULL && !optim->rates[optim->spec->tensors[chunk.tensor].group].active) return STATUS_OK;
    const float *g = optim->spec->tensors[chunk.tensor].gradient;
    uint32_t worst = 0;
    for (int64_t i = chunk.begin; i < chunk.end; i++) {
        uint32_t bits;
        memcpy(&bits, &g[i], sizeof bits);
        bits &= 0x7FFFFFFFu;
        worst = bits > worst ? bits : worst;
    }
    optim->chunk_finite[item] = worst < 0x7F800000u;
    return STATUS_OK;
}

static Status host_gradients_finite(OptimState *optim, const OptimRate *rates, bool *out) {
    optim->rates = rates;
    TRY(pool_run(optim->pool, optim->chunk_count, check_chunk, optim));
    bool finite = true;
    for (size_t i = 0; i < optim->chunk_count; i++) finite = finite && optim->chunk_finite[i];
    *out = finite;
    return STATUS_OK;
}

typedef struct Lerp {
    float *slow, *value; /* borrowed */
    size_t elems;
    float keep;
} Lerp;

static Status lerp_chunk(void *context, size_t item, int thread) {
    (void)thread;
    const Lerp *job = context;
    size_t begin = item * OPTIM_CHUNK, rest = job->elems - begin;
    float *restrict slow = job->slow + begin, *restrict value = job->value + begin;
    for (size_t i = 0; i < (rest < OPTIM_CHUNK ? rest : OPTIM_CHUNK); i++) {
        slow[i] = value[i] = job->keep * slow[i] + (1.0f - job->keep) * value[i];
    }
    return STATUS_OK;
}

static Status host_lerp(OptimState *optim, float *slow, float *value, size_t elems, float keep) {
    Lerp job = {slow, value, elems, keep};
    return pool_run(optim->pool, (elems + OPTIM_CHUNK - 1) / OPTIM_CHUNK, lerp_chunk, &job);
}

static float *momentum_of(OptimState *optim) { return optim->momentum; }

static const OptimTable host_table = {.destroy = host_destroy,
                                      .momentum = momentum_of,
                                      .step = host_step,
                                      .gradients_finite = host_gradients_finite,
                                      .lerp = host_lerp};

Status optim_host_create(const OptimSpec *spec, Pool *pool, const OptimTable **table, OptimState **out) {
    Status status = STATUS_OK;
    OptimState *optim = NULL;
    TRY(memory_calloc(1, sizeof *optim, &optim));
    optim->pool = pool;
    optim->spec = spec;
    TRY_GOTO(host_allocate(optim));
    cut_chunks(optim);
    TRY_GOTO(create_muon(optim));
    *table = &host_table;
    *out = optim;
    optim = NULL;
done:
    host_destroy(optim);
    return status;
}
