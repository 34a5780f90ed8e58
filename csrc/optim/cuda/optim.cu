/* The optimizer's kernels. Each launch covers a table of equal pieces of all tensors, so that small tensors need no
 * launches of their own; a block looks up its piece's rate when it runs, and returns at once if there is nothing to do.
 * Everything is memory-bound: 16-byte accesses where the alignment allows, a single pass over the data.
 *
 * Block x of step and check: chunks[x], at most 4096 elements of one tensor; thread t: elements 4 t to 4 t + 3, then
 * every 1024. Block x of Muon's kernels: tiles[x], 4096 elements of one X; thread t: elements 8 t to 8 t + 7, then
 * every 2048. Buffers: values, gradients, momenta, as large as their tensor, float32; sums, two per chunk, float32;
 * rates (steps, group_count); X (rows and columns, each padded with zeros to a multiple of 8), float16. */
#include "device/kernel.cuh"

extern "C" {
#include "optim/cuda/optim.h"
}

#define BLOCK 256
#define LANES 4 /* floats in 16 bytes */

/* Whether the group takes part, and its rate in *out. The same for all threads of a block. */
static __device__ __forceinline__ bool find_rate(const CudaOptimSchedule &schedule, int group, OptimRate *out) {
    if (schedule.flag != nullptr && *schedule.flag != 0) return false;
    if ((schedule.enabled >> group & 1) == 0) return false;
    int64_t step = schedule.step == nullptr ? 0 : *schedule.step;
    if (step < 0 || step >= schedule.steps) return false;
    *out = schedule.rates[step * schedule.group_count + group];
    return out->active;
}

static __device__ __forceinline__ bool aligned(const void *pointer) { return (uintptr_t)pointer % 16 == 0; }

/* ---- the first stage: SGD, momentum of Muon ---- */

/* One element's step, and its terms of the two sums of squares. */
struct Element {
    OptimRule rule;
    float momentum, decay, rate;
    float update_square = 0, weight_square = 0;

    __device__ __forceinline__ void step(float &p, float gradient, float &v) {
        float g = rule == OPTIM_MUON ? gradient : gradient + decay * p;
        v = momentum * v + g;
        float u = rule == OPTIM_SGD ? v : g + momentum * v;
        if (rule == OPTIM_MUON) {
            update_square += u * u;
            weight_square += p * p;
        } else {
            p -= rate * u;
        }
    }
};

static __device__ __forceinline__ void step_pack(const CudaOptimChunk &chunk, int at, Element &element) {
    float p[LANES], g[LANES], v[LANES];
    load_floats(chunk.value + at, p);
    load_floats(chunk.gradient + at, g);
    load_floats(chunk.momentum + at, v);
#pragma unroll
    for (int lane = 0; lane < LANES; lane++) element.step(p[lane], g[lane], v[lane]);
    store_floats(chunk.momentum + at, v);
    if (element.rule != OPTIM_MUON) store_floats(chunk.value + at, p);
}

static __device__ __forceinline__ void step_one(const CudaOptimChunk &chunk, int at, Element &element) {
    float p = chunk.value[at], v = chunk.momentum[at];
    element.step(p, chunk.gradient[at], v);
    chunk.momentum[at] = v;
    if (element.rule != OPTIM_MUON) chunk.value[at] = p;
}

static __global__ void __launch_bounds__(BLOCK)
    optim_step_kernel(const CudaOptimChunk *chunks, const OptimGroup *groups, CudaOptimSchedule schedule) {
    grid_begin();
    const CudaOptimChunk chunk = chunks[blockIdx.x];
    OptimRate rate;
    if (!find_rate(schedule, chunk.group, &rate)) return;
    const OptimGroup &group = groups[chunk.group];
    Element element = {group.rule, group.momentum, group.decay, rate.rate};
    int packed = 0;
    if (aligned(chunk.value) && aligned(chunk.gradient) && aligned(chunk.momentum)) {
        packed = chunk.elems / LANES * LANES;
#pragma unroll 4
        for (int at = (int)threadIdx.x * LANES; at < packed; at += BLOCK * LANES) step_pack(chunk, at, element);
    }
    for (int at = packed + (int)threadIdx.x; at < chunk.elems; at += BLOCK) step_one(chunk, at, element);
    if (group.rule != OPTIM_MUON) return;
    float update = block_sum(element.update_square), weight = block_sum(element.weight_square);
    if (threadIdx.x == 0) {
        chunk.sums[0] = update;
        chunk.sums[1] = weight;
    }
}

extern "C" Status optim_cuda_launch_step(const CudaOptimChunk *chunks, int64_t chunk_count, const OptimGroup *groups,
                                         CudaOptimSchedule schedule, DeviceStream *stream) {
    return LAUNCH_AFTER(optim_step_kernel, (unsigned)chunk_count, BLOCK, 0, stream, chunks, groups, schedule);
}

/* ---- gradients that are not finite ---- */

/* Infinities and NaNs are the floats whose bits, without the sign, are at least those of infinity. */
static __device__ __forceinline__ bool finite_bits(float value) {
    return (__float_as_uint(value) & 0x7FFFFFFFu) < 0x7F800000u;
}

static __global__ void __launch_bounds__(BLOCK)
    optim_check_kernel(const CudaOptimChunk *chunks, CudaOptimSchedule schedule, uint32_t *flag) {
    grid_begin();
    const CudaOptimChunk chunk = chunks[blockIdx.x];
    OptimRate rate;
    if (schedule.rates != nullptr && !find_rate(schedule, chunk.group, &rate)) return;
    bool finite = true;
    int packed = 0;
    if (aligned(chunk.gradient)) {
        packed = chunk.elems / LANES * LANES;
#pragma unroll 4
        for (int at = (int)threadIdx.x * LANES; at < packed; at += BLOCK * LANES) {
            float g[LANES];
            load_floats(chunk.gradient + at, g);
#pragma unroll
            for (int lane = 0; lane < LANES; lane++) finite = finite && finite_bits(g[lane]);
        }
    }
    for (int at = packed + (int)threadIdx.x; at < chunk.elems; at += BLOCK) {
        finite = finite && finite_bits(chunk.gradient[at]);
    }
    if (!finite) atomicOr(flag, 1u);
}

extern "C" Status optim_cuda_launch_check(const CudaOptimChunk *chunks, int64_t chunk_count, CudaOptimSchedule schedule,
                                          uint32_t *flag, DeviceStream *stream) {
    return LAUNCH_AFTER(optim_check_kernel, (unsigned)chunk_count, BLOCK, 0, stream, chunks, schedule, flag);
}

/* ---- averaging ---- */

static __global__ void __launch_bounds__(BLOCK) optim_lerp_kernel(float *slow, float *value, size_t elems, float keep) {
    grid_begin();
    GRID_LOOP(i, elems) {
        float average = keep * slow[i] + (1.0f - keep) * value[i];
        slow[i] = average;
        value[i] = average;
    }
}

extern "C" Status optim_cuda_launch_lerp(float *slow, float *value, size_t elems, float keep, DeviceStream *stream) {
    size_t blocks = ceil_div(elems, BLOCK);
    return LAUNCH_AFTER(optim_lerp_kernel, (unsigned)(blocks < 65535 ? blocks : 65535), BLOCK, 0, stream, slow, value,
                        elems, keep);
}

/* ---- Muon: into and out of the iterations ---- */

typedef __half Storage; /* must match CUDA_MUON_TYPE */
#define PACK (Pack<Storage>::PACK)

/* The matrix's sum number `which`, the same for all threads; every block adds the same parts in the same order. */
static __device__ __forceinline__ double matrix_sum(const CudaMuonMatrix &matrix, int which) {
    double sum = 0;
    for (int i = (int)threadIdx.x; i < matrix.chunk_count; i += BLOCK) sum += (double)matrix.sums[2 * i + which];
    return block_sum(sum);
}

/* Where a pack of X is in the parameter: its first element, and how many there are; the others are padding. A pack is
 * always in one row, since rows are padded to whole packs. */
struct PackPlace {
    int64_t first;
    int count;
};

static __device__ __forceinline__ PackPlace pack_place_of(const CudaMuonMatrix &matrix, int64_t at) {
    int64_t row = at / matrix.row_elems, column = at - row * matrix.row_elems;
    int64_t rest = row < matrix.rows ? matrix.columns - column : 0;
    return {row * matrix.columns + column, rest < 0 ? 0 : rest < PACK ? (int)rest : PACK};
}

static __global__ void __launch_bounds__(BLOCK)
    muon_begin_kernel(const CudaMuonMatrix *matrices, const CudaMuonTile *tiles, const OptimGroup *groups,
                      CudaOptimSchedule schedule) {
    const CudaMuonTile tile = tiles[blockIdx.x];
    const CudaMuonMatrix matrix = matrices[tile.matrix];
    OptimRate rate;
    if (!find_rate(schedule, matrix.group, &rate)) return;
    double update = matrix_sum(matrix, 0), weight = matrix_sum(matrix, 1);
    if (tile.begin == 0 && threadIdx.x == 0) {
        bool project = rate.project && weight > 0;
        *matrix.scale = project ? (float)(sqrt((double)matrix.rows) / sqrt(weight)) : 1.0f;
    }
    float scale = (float)(1.0 / (sqrt(update) + (double)groups[matrix.group].epsilon));
    float momentum = groups[matrix.group].momentum;
    Storage *x = (Storage *)matrix.x;
    int64_t end = tile.begin + CUDA_OPTIM_CHUNK < matrix.elems ? tile.begin + CUDA_OPTIM_CHUNK : matrix.elems;
    for (int64_t at = tile.begin + (int64_t)threadIdx.x * PACK; at < end; at += BLOCK * PACK) {
        PackPlace place = pack_place_of(matrix, at);
        const float *gradient = matrix.gradient + place.first, *v = matrix.momentum + place.first;
        float u[PACK];
        if (place.count == PACK && aligned(gradient) && aligned(v)) {
            Pack<float> g0 = load_pack(gradient), g1 = load_pack(gradient + LANES);
            Pack<float> v0 = load_pack(v), v1 = load_pack(v + LANES);
#pragma unroll
            for (int lane = 0; lane < LANES; lane++) {
                u[lane] = scale * (g0[lane] + momentum * v0[lane]);
                u[lane + LANES] = scale * (g1[lane] + momentum * v1[lane]);
            }
        } else {
#pragma unroll
            for (int lane = 0; lane < PACK; lane++) {
                u[lane] = lane < place.count ? scale * (gradient[lane] + momentum * v[lane]) : 0;
            }
        }
        store_floats(x + at, u);
    }
}

extern "C" Status optim_cuda_muon_launch_begin(const CudaMuonMatrix *matrices, const CudaMuonTile *tiles,
                                               int64_t tile_count, const OptimGroup *groups, CudaOptimSchedule schedule,
                                               DeviceStream *stream) {
    return LAUNCH(muon_begin_kernel, (unsigned)tile_count, BLOCK, 0, stream, matrices, tiles, groups, schedule);
}

static __global__ void __launch_bounds__(BLOCK)
    muon_end_kernel(const CudaMuonMatrix *matrices, const CudaMuonTile *tiles, const OptimGroup *groups,
                    CudaOptimSchedule schedule) {
    const CudaMuonTile tile = tiles[blockIdx.x];
    const CudaMuonMatrix matrix = matrices[tile.matrix];
    OptimRate rate;
    if (!find_rate(schedule, matrix.group, &rate)) return;
    float keep = 1.0f - rate.rate * groups[matrix.group].decay;
    float scale = keep * *matrix.scale, step_size = keep * rate.rate;
    const Storage *x = (const Storage *)matrix.last;
    int64_t end = tile.begin + CUDA_OPTIM_CHUNK < matrix.elems ? tile.begin + CUDA_OPTIM_CHUNK : matrix.elems;
    for (int64_t at = tile.begin + (int64_t)threadIdx.x * PACK; at < end; at += BLOCK * PACK) {
        PackPlace place = pack_place_of(matrix, at);
        float *w = matrix.value + place.first, direction[PACK];
        load_floats(x + at, direction);
        if (place.count == PACK && aligned(w)) {
            Pack<float> low = load_pack(w), high = load_pack(w + LANES);
#pragma unroll
            for (int lane = 0; lane < LANES; lane++) {
                low[lane] = scale * low[lane] - step_size * direction[lane];
                high[lane] = scale * high[lane] - step_size * direction[lane + LANES];
            }
            store_pack(w, low);
            store_pack(w + LANES, high);
        } else {
#pragma unroll
            for (int lane = 0; lane < PACK; lane++) {
                if (lane < place.count) w[lane] = scale * w[lane] - step_size * direction[lane];
            }
        }
    }
}

extern "C" Status optim_cuda_muon_launch_end(const CudaMuonMatrix *matrices, const CudaMuonTile *tiles,
                                             int64_t tile_count, const OptimGroup *groups, CudaOptimSchedule schedule,
                                             DeviceStream *stream) {
    return LAUNCH(muon_end_kernel, (unsigned)tile_count, BLOCK, 0, stream, matrices, tiles, groups, schedule);
}
