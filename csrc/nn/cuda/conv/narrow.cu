/* Convolutions to 64 channels with the channels as the rows of products, so that a product has as many columns as a map
 * has positions: with the positions as rows, a product of 64 columns would be limited by shared memory, not by the
 * tensor cores.
 *
 * A block takes two images at a time, one for each of two warp groups; a third group copies. A map is in shared memory,
 * surrounded by zeros, 64 of its channels at a time: one column of zeros both ends a row and begins the next one, so
 * the positions under a tap are those of the output, shifted by a constant. So one copy serves all nine taps, and the
 * filters of a tap serve both images. The columns of zeros are computed, too, but not stored.
 *
 * Block x: images 2 x and 2 x + 1, then every 2 gridDim.x. Warp group 0 or 1: the first or the second of them; its warp
 * w the output channels 16 w to 16 w + 15, all positions. Warp group 2: copies, 8 threads per position or filter.
 * Buffers, of type T, where n = 64 slabs: from (images, height, width, n), to (images, height, width, 64), filters
 * (64, 3, 3, n), or for data gradients (n, 3, 3, 64). Shared memory: maps [2 stages][2 images][position][64 channels]
 * and filters [9 taps][64][64], rows of 128 bytes in the order of factor_offset. */
#include "device/wgmma.cuh"
#include "nn/cuda/norm/grid.cuh"

extern "C" {
#include "nn/cuda/conv/narrow.h"
}

#define CHANNELS 64 /* of the output, and of the input at a time */
#define EIGHTS (CHANNELS / 8)
#define TAPS 9
#define GROUPS 2 /* of warps that multiply */
#define THREADS ((GROUPS + 1) * WARP_GROUP)
#define STAGES 2   /* of maps */
#define SLOTS TAPS /* for the filters of one tap each; the filters for 64 input channels stay */
#define LATE 4     /* the least number of taps between the start of a copy and its arrival */
#define SLOT_BYTES (CHANNELS * FACTOR_ROW)

__host__ __device__ constexpr int map_rows(int pitch, int columns) { return columns + 2 * pitch + 2; }
__host__ __device__ constexpr int map_bytes(int pitch, int columns) {
    return (map_rows(pitch, columns) * FACTOR_ROW + FACTOR_ALIGNMENT - 1) / FACTOR_ALIGNMENT * FACTOR_ALIGNMENT;
}
__host__ __device__ constexpr int shared_bytes(int pitch, int columns) {
    return FACTOR_ALIGNMENT + STAGES * GROUPS * map_bytes(pitch, columns) + SLOTS * SLOT_BYTES;
}

typedef struct Narrow {
    const void *from, *filters;
    void *to;
    int images, height; /* the width is the kernel's pitch minus 1 */
    int slabs;          /* of 64 channels of `from` */
} Narrow;

typedef struct Barriers {
    CopyBarrier there[SLOTS], read[SLOTS]; /* a tap's filters have arrived, have been read; tap 0 includes the maps */
} Barriers;

/* Cycles through COUNT slots, with the parity of the round. */
struct PipelineState {
    int index, parity;

    template <int COUNT> __device__ __forceinline__ void next(void) {
        if (++index == COUNT) {
            index = 0;
            parity ^= 1;
        }
    }
};

/* ---- copies ---- */

/* Copies maps: each thread 8 channels of every STEP-th position; where they come from is computed once. */
template <typename T, int PITCH, int COLUMNS> struct MapCopy {
    static constexpr int WIDTH = PITCH - 1, STEP = WARP_GROUP / EIGHTS, ROWS = map_rows(PITCH, COLUMNS);
    static constexpr int TURNS = (ROWS + STEP - 1) / STEP;
    int offsets[TURNS]; /* in elements; negative: outside the map */
    int row, eight;

    __device__ __forceinline__ MapCopy(const Narrow &args) {
        int thread = (int)threadIdx.x % WARP_GROUP, channels = args.slabs * CHANNELS;
        row = thread / EIGHTS;
        eight = thread % EIGHTS;
#pragma unroll
        for (int i = 0; i < TURNS; i++) {
            int place = row + i * STEP, y = place / PITCH - 1, x = place % PITCH - 1;
            bool inside = x >= 0 && y >= 0 && y < args.height;
            offsets[i] = inside ? (y * WIDTH + x) * channels + eight * 8 : -1;
        }
    }

    __device__ __forceinline__ void run(const Narrow &args, int image, int slab, char *to) const {
        size_t map_elems = (size_t)(args.height * WIDTH * args.slabs * CHANNELS);
        bool there = image < args.images;
        const T *from = static_cast<const T *>(args.from) + (there ? image : 0) * map_elems + slab * CHANNELS;
        to += row * FACTOR_ROW + factor_offset(row, eight);
#pragma unroll
        for (int i = 0; i < TURNS; i++) {
            bool inside = there && offsets[i] >= 0;
            if (row + i * STEP < ROWS)
                cp_async_16(to + i * STEP * FACTOR_ROW, from + (inside ? offsets[i] : 0), !inside);
        }
    }
};

/* Forward: filters (64, taps, input channels), in pieces of 8 input channels. For data gradients: filters (input
 * channels, taps, 64) of the mirrored tap, in pieces of 8 of the 64. */
template <typename T, bool DATA>
__device__ __forceinline__ void copy_filters(const Narrow &args, int slab, int tap, char *to) {
    constexpr int STEP = WARP_GROUP / EIGHTS;
    int thread = (int)threadIdx.x % WARP_GROUP, eight = thread % EIGHTS, row = thread / EIGHTS;
    int channels = args.slabs * CHANNELS, row_elems = TAPS * (DATA ? CHANNELS : channels);
    int first = DATA ? slab * CHANNELS * row_elems + (TAPS - 1 - tap) * CHANNELS : tap * channels + slab * CHANNELS;
    const T *from = static_cast<const T *>(args.filters) + first + row * row_elems + eight * 8;
    to += row * FACTOR_ROW + factor_offset(row, eight);
#pragma unroll
    for (int i = 0; i < CHANNELS / STEP; i++)
        cp_async_16(to + i * STEP * FACTOR_ROW, from + i * STEP * row_elems, false);
}

/* A warp's copies of a tap arrive `LATE` taps after they are started. */
struct Arrivals {
    PipelineState slot = {0, 0};
    int pending = 0;

    __device__ __forceinline__ void arrive(CopyBarrier *there) {
        __syncwarp();
        if (threadIdx.x % WARP == 0) copy_barrier_arrive(&there[slot.index]);
        slot.next<SLOTS>();
    }

    __device__ __forceinline__ void started(CopyBarrier *there) {
        cp_async_commit();
        if (++pending <= LATE) return;
        cp_async_wait<LATE>();
        arrive(there);
        pending--;
    }

    __device__ __forceinline__ void end(CopyBarrier *there) {
        cp_async_wait<0>();
        for (; pending > 0; pending--) arrive(there);
    }
};

/* A stage's maps may be overwritten once its last tap has been read; waiting for the slot of tap 0 ensures that. */
template <typename T, int PITCH, int COLUMNS, bool DATA>
__device__ __forceinline__ void copy_all(const Narrow &args, char *maps, char *slots, Barriers &barriers) {
    PipelineState slot = {0, 0}, stage = {0, 0};
    Arrivals arrivals;
    const MapCopy<T, PITCH, COLUMNS> map_copy(args);
    for (int first = (int)blockIdx.x * GROUPS; first < args.images; first += (int)gridDim.x * GROUPS) {
        for (int slab = 0; slab < args.slabs; slab++, stage.next<STAGES>()) {
            for (int tap = 0; tap < TAPS; tap++, slot.next<SLOTS>()) {
                copy_barrier_wait(&barriers.read[slot.index], slot.parity ^ 1);
                bool kept = args.slabs == 1 && first >= (int)gridDim.x * GROUPS;
                if (!kept) copy_filters<T, DATA>(args, slab, tap, slots + slot.index * SLOT_BYTES);
                for (int g = 0; tap == 0 && g < GROUPS; g++) {
                    char *to = maps + (stage.index * GROUPS + g) * map_bytes(PITCH, COLUMNS);
                    map_copy.run(args, first + g, slab, to);
                }
                arrivals.started(barriers.there);
            }
        }
    }
    arrivals.end(barriers.there);
}

/* ---- products ---- */

/* The products of one tap. */
template <typename T, int PITCH, int COLUMNS, bool DATA>
__device__ __forceinline__ void add_tap(float (&sums)[COLUMNS / 2], const char *map, const char *filters, int tap,
                                        bool add) {
    const char *moved = map + (tap / 3 * PITCH + tap % 3) * FACTOR_ROW;
    wgmma_begin();
#pragma unroll
    for (int k = 0; k < CHANNELS; k += 16) {
        uint64_t a = factor_descriptor(filters + k * (DATA ? FACTOR_ROW : 2)), b = factor_descriptor(moved + k * 2);
        WarpGroupProduct<COLUMNS, T, DATA>::run(sums, a, b, add || k > 0);
    }
    wgmma_commit();
}

template <typename T> __device__ __forceinline__ uint32_t pair_of(float first, float second) {
    T pair[2] = {from_float<T>(first), from_float<T>(second)};
    uint32_t bits;
    memcpy(&bits, pair, sizeof bits);
    return bits;
}

/* Four lanes store 16 channels of a position: the even ones 4 each of the lower 8, the odd ones of the upper 8. */
template <typename T, int PITCH, int COLUMNS>
__device__ __forceinline__ void store(const Narrow &args, int image, const float (&sums)[COLUMNS / 2]) {
    constexpr int WIDTH = PITCH - 1;
    int lane = (int)(threadIdx.x % WARP), warp = (int)threadIdx.x % WARP_GROUP / WARP, odd = lane % 2;
    T *to = static_cast<T *>(args.to) + (size_t)image * (size_t)(args.height * WIDTH * CHANNELS);
    to += warp * 16 + odd * 8 + lane % 4 / 2 * 4;
#pragma unroll
    for (int i = 0; i < COLUMNS / 8; i++) {
        uint32_t lower = movmatrix_trans(pair_of<T>(sums[4 * i], sums[4 * i + 1]));
        uint32_t upper = movmatrix_trans(pair_of<T>(sums[4 * i + 2], sums[4 * i + 3]));
        uint32_t other = __shfl_xor_sync(WHOLE_WARP, odd ? lower : upper, 1);
        int position = i * 8 + lane / 4, y = position / PITCH, x = position % PITCH;
        if (x == WIDTH || y >= args.height) continue;
        uint2 four = odd ? make_uint2(other, upper) : make_uint2(lower, other);
        *reinterpret_cast<uint2 *>(to + (y * WIDTH + x) * CHANNELS) = four;
    }
}

template <typename T, int PITCH, int COLUMNS, bool DATA>
__device__ __forceinline__ void multiply_all(const Narrow &args, const char *maps, const char *slots,
                                             Barriers &barriers) {
    PipelineState slot = {0, 0}, stage = {0, 0}, done = {0, 0};
    int group = (int)threadIdx.x / WARP_GROUP;
    bool first_lane = threadIdx.x % WARP == 0;
    for (int first = (int)blockIdx.x * GROUPS; first < args.images; first += (int)gridDim.x * GROUPS) {
        float sums[COLUMNS / 2];
        for (int slab = 0; slab < args.slabs; slab++, stage.next<STAGES>()) {
            const char *map = maps + (stage.index * GROUPS + group) * map_bytes(PITCH, COLUMNS);
            for (int tap = 0; tap < TAPS; tap++, slot.next<SLOTS>()) {
                copy_barrier_wait(&barriers.there[slot.index], slot.parity);
                add_tap<T, PITCH, COLUMNS, DATA>(sums, map, slots + slot.index * SLOT_BYTES, tap, slab + tap > 0);
                if (slab + tap == 0) continue;
                wgmma_wait<1>();
                if (first_lane) copy_barrier_arrive(&barriers.read[done.index]);
                done.next<SLOTS>();
            }
        }
        wgmma_wait<0>();
        if (first_lane) copy_barrier_arrive(&barriers.read[done.index]);
        done.next<SLOTS>();
        if (first + group < args.images) store<T, PITCH, COLUMNS>(args, first + group, sums);
    }
}

/* Code without these products has no barriers, by which nn_cuda_conv_narrow_fits recognises it. */
template <typename T, int PITCH, int COLUMNS, bool DATA>
__global__ void __launch_bounds__(THREADS, 1) conv_narrow_kernel(Narrow args) {
#if HAS_WGMMA
    DYNAMIC_SHARED(char, memory);
    __shared__ Barriers barriers;
    char *maps = memory + (0u - shared_address(memory)) % FACTOR_ALIGNMENT;
    char *slots = maps + STAGES * GROUPS * map_bytes(PITCH, COLUMNS);
    if (threadIdx.x == 0) {
        for (int i = 0; i < SLOTS; i++) {
            copy_barrier_init(&barriers.there[i], WARP_GROUP / WARP);
            copy_barrier_init(&barriers.read[i], GROUPS * WARP_GROUP / WARP);
        }
    }
    __syncthreads();
    grid_begin();
    if (threadIdx.x / WARP_GROUP == GROUPS) {
        copy_all<T, PITCH, COLUMNS, DATA>(args, maps, slots, barriers);
    } else {
        multiply_all<T, PITCH, COLUMNS, DATA>(args, maps, slots, barriers);
    }
#endif
}

/* ---- launchers ---- */

/* The kernels: for maps of 15 columns and up to 15 rows (images of 32 pixels), and of 11 and up to 12 (24 pixels). */
#define WIDE 16, 240
#define SMALL 12, 144

static bool maps_fit(const CudaConvShape *shape) {
    return (shape->in_width == 15 && shape->in_height <= 15) || (shape->in_width == 11 && shape->in_height <= 12);
}

static bool device_fits(void) {
    struct cudaFuncAttributes code;
    DeviceInfo info;
    int device;
    const void *kernel = reinterpret_cast<const void *>(conv_narrow_kernel<__half, WIDE, false>);
    if (cudaGetDevice(&device) != cudaSuccess || device_describe(device, &info) != STATUS_OK) return false;
    if (10 * info.major + info.minor != WGMMA_CAPABILITY || info.shared_bytes < shared_bytes(WIDE)) return false;
    return cudaFuncGetAttributes(&code, kernel) == cudaSuccess && code.sharedSizeBytes >= sizeof(Barriers);
}

extern "C" bool nn_cuda_conv_narrow_fits(const CudaConvShape *shape) {
    bool data = shape->pass == CUDA_CONV_DATA;
    int from = data ? shape->out_channels : shape->in_channels, to = data ? shape->in_channels : shape->out_channels;
    if (shape->precision == PRECISION_FLOAT32 || (!data && shape->pass != CUDA_CONV_FORWARD)) return false;
    if (shape->kernel != 3 || shape->stride != 1 || shape->padding != 1) return false;
    return to == CHANNELS && from % CHANNELS == 0 && maps_fit(shape) && device_fits();
}

template <typename T, int PITCH, int COLUMNS>
static Status launch(const CudaConvShape *shape, const Narrow &args, DeviceStream *stream) {
    int pairs = (args.images + GROUPS - 1) / GROUPS;
    auto kernel = shape->pass == CUDA_CONV_DATA ? conv_narrow_kernel<T, PITCH, COLUMNS, true>
                                                : conv_narrow_kernel<T, PITCH, COLUMNS, false>;
    return LAUNCH_AFTER(kernel, pairs < GPU_MULTIPROCESSORS ? pairs : GPU_MULTIPROCESSORS, THREADS,
                        shared_bytes(PITCH, COLUMNS), stream, args);
}

template <typename T> static Status choose(const CudaConvShape *shape, const Narrow &args, DeviceStream *stream) {
    return shape->in_width == 15 ? launch<T, WIDE>(shape, args, stream) : launch<T, SMALL>(shape, args, stream);
}

extern "C" Status nn_cuda_conv_narrow(const CudaConvShape *shape, int images, const void *from, const void *filters,
                                      void *to, DeviceStream *stream) {
    int channels = shape->pass == CUDA_CONV_DATA ? shape->out_channels : shape->in_channels;
    Narrow args = {from, filters, to, images, shape->in_height, channels / CHANNELS};
    return shape->precision == PRECISION_FLOAT16 ? choose<__half>(shape, args, stream)
                                                 : choose<__nv_bfloat16>(shape, args, stream);
}
