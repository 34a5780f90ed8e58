/* The optimizer on a GPU: owns the momentum buffers, the tables that the kernels read, and the rates; launches the
 * kernels on the stream, and leaves Muon's iterations to muon.c. A scheduled step neither allocates nor waits. */
#include "optim/cuda/optim.h"

#include "base/memory.h"

struct OptimState {
    DeviceStream *stream;  /* borrowed */
    const OptimSpec *spec; /* borrowed */
    int64_t *first_chunk;  /* owned: of each tensor */
    int64_t chunk_count;
    float *momentum;        /* owned, device memory, like all that follows */
    OptimGroup *groups;     /* as in spec */
    CudaOptimChunk *chunks; /* of all tensors */
    float *sums;            /* two per chunk */
    OptimRate *row;         /* the rates of a step that is not scheduled */
    uint32_t *flag;         /* of gradients_finite */
    OptimRate *rates;       /* those of load_rates, or NULL */
    int64_t steps;
    CudaMuon *muon; /* NULL without Muon groups */
};

static uint64_t bit(int group) { return (uint64_t)1 << group; }

static size_t row_bytes(const OptimState *optim) { return (size_t)optim->spec->group_count * sizeof(OptimRate); }

static Status put_step(OptimState *optim, CudaOptimSchedule schedule) {
    TRY(optim_cuda_launch_step(optim->chunks, optim->chunk_count, optim->groups, schedule, optim->stream));
    return optim->muon == NULL ? STATUS_OK : optim_cuda_muon_step(optim->muon, schedule);
}

static CudaOptimSchedule scheduled(const OptimState *optim, const int32_t *step, const uint32_t *flag,
                                   uint64_t enabled) {
    return (CudaOptimSchedule){.rates = optim->rates,
                               .step = step,
                               .flag = flag,
                               .enabled = enabled,
                               .steps = optim->steps,
                               .group_count = optim->spec->group_count};
}

static CudaOptimSchedule unscheduled(const OptimState *optim, uint64_t enabled) {
    return (CudaOptimSchedule){
        .rates = optim->row, .enabled = enabled, .steps = 1, .group_count = optim->spec->group_count};
}

static Status cuda_step(OptimState *optim, const OptimRate *rates) {
    uint64_t enabled = 0;
    for (int i = 0; i < optim->spec->group_count; i++) enabled |= rates[i].active ? bit(i) : 0;
    TRY(device_copy(optim->row, rates, row_bytes(optim), optim->stream));
    return put_step(optim, unscheduled(optim, enabled));
}

static Status cuda_gradients_finite(OptimState *optim, const OptimRate *rates, bool *out) {
    uint32_t flag = 0;
    CudaOptimSchedule schedule = unscheduled(optim, UINT64_MAX);
    if (rates == NULL) {
        schedule.rates = NULL;
    } else {
        TRY(device_copy(optim->row, rates, row_bytes(optim), optim->stream));
    }
    TRY(device_fill(optim->flag, 0, sizeof flag, optim->stream));
    TRY(optim_cuda_launch_check(optim->chunks, optim->chunk_count, schedule, optim->flag, optim->stream));
    TRY(device_copy(&flag, optim->flag, sizeof flag, optim->stream));
    TRY(device_stream_synchronize(optim->stream));
    *out = flag == 0;
    return STATUS_OK;
}

static Status cuda_lerp(OptimState *optim, float *slow, float *value, size_t elems, float keep) {
    return optim_cuda_launch_lerp(slow, value, elems, keep, optim->stream);
}

static float *momentum_of(OptimState *optim) { return optim->momentum; }

static Status cuda_load_rates(OptimState *optim, const OptimRate *rates, int64_t steps) {
    size_t bytes = (size_t)steps * row_bytes(optim);
    TRY(device_stream_synchronize(optim->stream));
    if (steps != optim->steps) {
        device_free(optim->rates);
        optim->rates = NULL;
        optim->steps = 0;
        TRY(device_alloc(bytes, &optim->rates));
        optim->steps = steps;
    }
    TRY(device_copy(optim->rates, rates, bytes, optim->stream));
    return device_stream_synchronize(optim->stream);
}

static Status need_rates(const OptimState *optim) {
    if (optim->rates != NULL) return STATUS_OK;
    FAIL(STATUS_ARGUMENT, "a scheduled step needs the rates of all steps: call load_rates first");
}

static Status cuda_check_scheduled(OptimState *optim, const int32_t *step_number, uint32_t *flag) {
    TRY(need_rates(optim));
    return optim_cuda_launch_check(optim->chunks, optim->chunk_count, scheduled(optim, step_number, NULL, UINT64_MAX),
                                   flag, optim->stream);
}

static Status cuda_step_scheduled(OptimState *optim, const int32_t *step_number, const uint32_t *flag,
                                  const bool *enabled) {
    uint64_t groups = 0;
    for (int i = 0; i < optim->spec->group_count; i++) groups |= enabled[i] ? bit(i) : 0;
    TRY(need_rates(optim));
    return put_step(optim, scheduled(optim, step_number, flag, groups));
}

static void cuda_destroy(OptimState *optim) {
    if (optim == NULL) return;
    (void)device_stream_synchronize(optim->stream);
    optim_cuda_muon_destroy(optim->muon);
    device_free(optim->rates);
    device_free(optim->flag);
    device_free(optim->row);
    device_free(optim->sums);
    device_free(optim->chunks);
    device_free(optim->groups);
    device_free(optim->momentum);
    memory_free(optim->first_chunk);
    memory_free(optim);
}

static void fill_chunks(const OptimState *optim, CudaOptimChunk *chunks) {
    for (int i = 0; i < optim->spec->tensor_count; i++) {
        const OptimTensor *t = &optim->spec->tensors[i];
        bool muon = optim->spec->groups[t->group].rule == OPTIM_MUON;
        float *momentum = optim->momentum + optim->spec->offsets[i];
        int64_t elems = optim_tensor_elems(t);
        for (int64_t begin = 0, at = optim->first_chunk[i]; begin < elems; begin += CUDA_OPTIM_CHUNK, at++) {
            int64_t rest = elems - begin;
            chunks[at] = (CudaOptimChunk){.value = t->value + begin,
                                          .gradient = t->gradient + begin,
                                          .momentum = momentum + begin,
                                          .sums = muon ? optim->sums + 2 * at : NULL,
                                          .elems = (int32_t)(rest < CUDA_OPTIM_CHUNK ? rest : CUDA_OPTIM_CHUNK),
                                          .group = t->group};
        }
    }
}

static Status upload_tables(OptimState *optim) {
    Status status = STATUS_OK;
    CudaOptimChunk *chunks = NULL;
    size_t groups_bytes = (size_t)optim->spec->group_count * sizeof(OptimGroup);
    TRY_GOTO(memory_calloc((size_t)optim->chunk_count, sizeof *chunks, &chunks));
    fill_chunks(optim, chunks);
    TRY_GOTO(device_copy(optim->chunks, chunks, (size_t)optim->chunk_count * sizeof *chunks, optim->stream));
    TRY_GOTO(device_copy(optim->groups, optim->spec->groups, groups_bytes, optim->stream));
    TRY_GOTO(device_stream_synchronize(optim->stream));
done:
    memory_free(chunks);
    return status;
}

static Status cuda_allocate(OptimState *optim) {
    const OptimSpec *spec = optim->spec;
    size_t momentum_bytes = (size_t)spec->offsets[spec->tensor_count] * sizeof(float);
    TRY(memory_calloc((size_t)spec->tensor_count + 1, sizeof *optim->first_chunk, &optim->first_chunk));
    for (int i = 0; i < spec->tensor_count; i++) {
        optim->first_chunk[i] = optim->chunk_count;
        optim->chunk_count += optim_cuda_chunks_of(&spec->tensors[i]);
    }
    if (optim->chunk_count > INT32_MAX) {
        FAIL(STATUS_ARGUMENT, "an optimizer on a GPU takes at most %lld elements",
             (long long)INT32_MAX * CUDA_OPTIM_CHUNK);
    }
    TRY(device_alloc(momentum_bytes, &optim->momentum));
    TRY(device_alloc((size_t)spec->group_count * sizeof(OptimGroup), &optim->groups));
    TRY(device_alloc((size_t)optim->chunk_count * sizeof *optim->chunks, &optim->chunks));
    TRY(device_alloc((size_t)optim->chunk_count * 2 * sizeof(float), &optim->sums));
    TRY(device_alloc(row_bytes(optim), &optim->row));
    TRY(device_alloc(sizeof *optim->flag, &optim->flag));
    return device_fill(optim->momentum, 0, momentum_bytes, optim->stream);
}

static const OptimTable cuda_table = {.destroy = cuda_destroy,
                                      .momentum = momentum_of,
                                      .step = cuda_step,
                                      .gradients_finite = cuda_gradients_finite,
                                      .lerp = cuda_lerp,
                                      .load_rates = cuda_load_rates,
                                      .check_scheduled = cuda_check_scheduled,
                                      .step_scheduled = cuda_step_scheduled};

Status optim_cuda_create(const OptimSpec *spec, DeviceStream *stream, const OptimTable **table, OptimState **out) {
    Status status = STATUS_OK;
    OptimState *optim = NULL;
    TRY(memory_calloc(1, sizeof *optim, &optim));
    optim->stream = stream;
    optim->spec = spec;
    TRY_GOTO(cuda_allocate(optim));
    TRY_GOTO(upload_tables(optim));
    TRY_GOTO(optim_cuda_muon_create(spec, optim->groups, optim->momentum, optim->sums, optim->first_chunk, stream,
                                    &optim->muon));
    *table = &cuda_table;
    *out = optim;
    optim = NULL;
done:
    cuda_destroy(optim);
    return status;
}
