/* How the norm's kernels divide maps among threads, and their sums over a block.
 *
 * A thread always processes the same 16 bytes of channels (a pack), so that their terms stay in registers; threads of a
 * block are arranged along the channels first, then along the pixels (or the windows of a pool: items). Blocks take
 * chunks of neighbouring items in turn, so that at any time all of them work at about the same place. Passes go forward
 * or backward through the maps, so that one starts with the data that the previous one left in cache.
 *
 * Block (x, y): chunks x, x + gridDim.x, ... of the tile y of channels. Thread (i, j): pack i of the tile, 4 channels
 * of float32 or 8 of 16 bits; items j, j + blockDim.y, ... of the chunk, `unroll` of them. Maps are (images, height,
 * width, channels) of the storage type T, dense; terms (NORM_TERMS, channels) and partial sums, see below, float32. */
#ifndef CGXFFCV_NN_CUDA_NORM_GRID_CUH
#define CGXFFCV_NN_CUDA_NORM_GRID_CUH

#include "nn/cuda/activations.cuh"

extern "C" {
#include "nn/cuda/norm/norm.h"
}

#define GPU_MULTIPROCESSORS 132 /* an H100's; the order of sums must not depend on the GPU */
#define MOST_PACKS_ACROSS 64
#define SUM_PACKS_ACROSS 8 /* for kernels that sum over pixels: so each tile's last block has few sums to add up */
#define SUM_THREADS 384    /* for kernels that sum over pixels: two such blocks fit on a multiprocessor */
#define SUM_BLOCKS (2 * GPU_MULTIPROCESSORS)
#define MAP_THREADS 256 /* for kernels that do not */
#define MAP_BLOCKS (8 * GPU_MULTIPROCESSORS)
static_assert(SUM_BLOCKS <= NORM_MOST_BLOCKS, "room for partial sums");

/* ---- division of numbers below 2^31 by a divisor that is fixed for a launch ---- */

typedef struct Divisor {
    uint32_t divisor, multiplier;
    int shift;
} Divisor;

static inline Divisor make_divisor(int divisor) {
    int bits = 0;
    while ((1ll << bits) < divisor) bits++;
    uint64_t power = 1ull << (31 + bits), by = (uint64_t)divisor;
    Divisor made = {(uint32_t)divisor, (uint32_t)((power + by - 1) / by), 31 + bits};
    return made;
}

__device__ static __forceinline__ uint32_t divide(uint32_t value, Divisor by, uint32_t *remainder) {
    uint32_t quotient = (uint32_t)(((uint64_t)value * by.multiplier) >> by.shift);
    *remainder = value - quotient * by.divisor;
    return quotient;
}

/* ---- the grid ---- */

typedef struct Items {
    uint32_t count, chunks; /* a chunk: `unroll` items per row of a block's threads */
    int channels;
} Items;

typedef struct Grid {
    dim3 blocks, threads;
    Items items;
} Grid;

static inline int pack_of(const NormShape *shape) { return shape->precision == PRECISION_FLOAT32 ? 4 : 8; }

static inline Grid make_tiled_grid(const NormShape *shape, size_t items, int unroll, int most_threads, int most_blocks,
                                   unsigned most_across) {
    unsigned packs = (unsigned)(shape->channels / pack_of(shape));
    unsigned tiles = (packs + most_across - 1) / most_across, across = (packs + tiles - 1) / tiles;
    unsigned rows = (unsigned)most_threads / across, chunk = rows * (unsigned)unroll;
    unsigned chunks = (unsigned)((items + chunk - 1) / chunk), most = (unsigned)most_blocks / tiles;
    if (most < 1) most = 1;
    Grid grid;
    grid.threads = dim3(across, rows);
    grid.blocks = dim3(chunks < most ? chunks : most, tiles);
    grid.items.count = (uint32_t)items;
    grid.items.chunks = chunks;
    grid.items.channels = shape->channels;
    return grid;
}

static inline Grid make_grid(const NormShape *shape, size_t items, int unroll, int most_threads, int most_blocks) {
    return make_tiled_grid(shape, items, unroll, most_threads, most_blocks, MOST_PACKS_ACROSS);
}

static inline Grid make_sum_grid(const NormShape *shape, size_t items, int unroll) {
    return make_tiled_grid(shape, items, unroll, SUM_THREADS, SUM_BLOCKS, SUM_PACKS_ACROSS);
}

static inline size_t pixels_of(const NormShape *shape) {
    return (size_t)shape->images * (size_t)shape->height * (size_t)shape->width;
}

static inline size_t pooled_pixels_of(const NormShape *shape) {
    size_t rows = (size_t)(shape->height / shape->pool), columns = (size_t)(shape->width / shape->pool);
    return (size_t)shape->images * rows * columns;
}

/* Of the maps that the norm normalises. */
static inline size_t saved_pixels_of(const NormShape *shape) {
    return shape->pool_place == POOL_BEFORE_NORM ? pooled_pixels_of(shape) : pixels_of(shape);
}

#define STATISTICS_UNROLL 4
#define REDUCE_UNROLL 2

static inline Grid statistics_grid(const NormShape *shape) {
    int unroll = shape->pool_place == POOL_BEFORE_NORM ? 1 : STATISTICS_UNROLL;
    return make_sum_grid(shape, saved_pixels_of(shape), unroll);
}

static inline Grid reduce_grid(const NormShape *shape) {
    if (shape->pool_place == POOL_AFTER_ACTIVATION) {
        return make_sum_grid(shape, pooled_pixels_of(shape), 1);
    }
    return make_sum_grid(shape, saved_pixels_of(shape), REDUCE_UNROLL);
}

/* ---- windows of a pool ---- */

/* `across` x `down` windows in an image of height x width; those at the lower and right edge may be partial. */
typedef struct Windows {
    Divisor across, down;
    uint32_t height, width;               /* of the maps */
    uint32_t pooled_height, pooled_width; /* whole windows */
} Windows;

/* Whole windows only or, with `cut`, also partial ones. */
static inline Windows make_windows(const NormShape *shape, bool cut) {
    int height = shape->height, width = shape->width, pool = shape->pool, more = cut ? pool - 1 : 0;
    Windows windows = {make_divisor((width + more) / pool),
                       make_divisor((height + more) / pool),
                       (uint32_t)height,
                       (uint32_t)width,
                       (uint32_t)(height / pool),
                       (uint32_t)(width / pool)};
    return windows;
}

static inline size_t windows_count(const NormShape *shape, const Windows *windows) {
    return (size_t)shape->images * windows->down.divisor * windows->across.divisor;
}

typedef struct Window {
    uint32_t first;         /* its upper left pixel */
    uint32_t pooled;        /* the pixel of the pooled maps, if whole */
    uint32_t rows, columns; /* that are in the map */
    bool whole;
} Window;

template <int POOL> __device__ __forceinline__ Window find_window(const Windows &windows, uint32_t item) {
    uint32_t row, column;
    uint32_t image = divide(divide(item, windows.across, &column), windows.down, &row);
    uint32_t y = row * POOL, x = column * POOL;
    Window window;
    window.first = (image * windows.height + y) * windows.width + x;
    window.pooled = (image * windows.pooled_height + row) * windows.pooled_width + column;
    window.rows = windows.height - y < POOL ? windows.height - y : POOL;
    window.columns = windows.width - x < POOL ? windows.width - x : POOL;
    window.whole = row < windows.pooled_height && column < windows.pooled_width;
    return window;
}

template <typename T> __host__ __device__ constexpr bool is_narrow(void) { return sizeof(T) < sizeof(float); }

/* ---- the thread's place ---- */

template <typename T> __device__ __forceinline__ int first_channel(void) {
    return (int)(blockIdx.y * blockDim.x + threadIdx.x) * Pack<T>::PACK;
}

/* The thread's first item of a chunk; the next ones are blockDim.y apart. Backward passes count chunks from the end. */
template <int UNROLL>
__device__ __forceinline__ uint32_t first_item(const Items &items, uint32_t chunk, bool backward) {
    uint32_t at = backward ? items.chunks - 1 - chunk : chunk;
    return at * (UNROLL * blockDim.y) + threadIdx.y;
}

/* One row of the terms, or of other per-channel values. */
template <int PACK> __device__ __forceinline__ void load_row(const float *row, int channel, float (&to)[PACK]) {
#pragma unroll
    for (int i = 0; i < PACK; i += 4) {
        float4 four = *reinterpret_cast<const float4 *>(row + channel + i);
        to[i] = four.x;
        to[i + 1] = four.y;
        to[i + 2] = four.z;
        to[i + 3] = four.w;
    }
}

__device__ static __forceinline__ void load_row(const float *row, int channel, float (&to)[2]) {
    float2 two = *reinterpret_cast<const float2 *>(row + channel);
    to[0] = two.x;
    to[1] = two.y;
}

template <int PACK> __device__ __forceinline__ void store_row(float *row, int channel, const float (&from)[PACK]) {
#pragma unroll
    for (int i = 0; i < PACK; i += 4) {
        *reinterpret_cast<float4 *>(row + channel + i) = make_float4(from[i], from[i + 1], from[i + 2], from[i + 3]);
    }
}

template <int PACK>
__device__ __forceinline__ void load_term(const float *terms, NormTerm term, int channels, int channel,
                                          float (&to)[PACK]) {
    load_row(terms + (size_t)term * (size_t)channels, channel, to);
}

/* PACK bytes at a multiple of PACK. */
template <int PACK> struct Bytes { uint32_t words[PACK / 4]; };

template <int PACK> __device__ __forceinline__ void store_bytes(uint8_t *to, const Bytes<PACK> &bytes) {
    if (PACK == 8) {
        __stcs(reinterpret_cast<uint2 *>(to), make_uint2(bytes.words[0], bytes.words[PACK / 4 - 1]));
    } else {
        __stcs(reinterpret_cast<uint32_t *>(to), bytes.words[0]);
    }
}

template <int PACK> __device__ __forceinline__ Bytes<PACK> load_bytes(const uint8_t *from) {
    Bytes<PACK> bytes;
    if (PACK == 8) {
        uint2 two = __ldcs(reinterpret_cast<const uint2 *>(from));
        bytes.words[0] = two.x;
        bytes.words[PACK / 4 - 1] = two.y;
    } else {
        bytes.words[0] = __ldcs(reinterpret_cast<const uint32_t *>(from));
    }
    return bytes;
}

template <int PACK> __device__ __forceinline__ int byte_of(const Bytes<PACK> &bytes, int lane) {
    return (int)(bytes.words[lane / 4] >> (8 * (lane % 4)) & 255);
}

/* ---- partial sums ---- */

/* Where blocks put their two rows of partial sums; after all of those, the origin that means are relative to; then, per
 * tile of channels, each block's number of values. */
__device__ static __forceinline__ float *partial_row(float *partials, int channels, unsigned block, int row) {
    return partials + ((size_t)block * 2 + (size_t)row) * (size_t)channels;
}
__device__ static __forceinline__ float *partial_zero(float *partials, int channels, unsigned blocks) {
    return partials + (size_t)blocks * 2 * (size_t)channels;
}
__device__ static __forceinline__ float *partial_count(float *partials, int channels, unsigned blocks, unsigned block) {
    return partial_zero(partials, channels, blocks) + channels + block;
}
/* At the end of the room of nn_cuda_norm_partial_elems: how many blocks of each tile are done. */
__device__ static __forceinline__ unsigned *partial_arrivals(float *partials, int channels) {
    return reinterpret_cast<unsigned *>(partials + (size_t)NORM_MOST_BLOCKS * (2 * (size_t)channels + 1)) +
           2 * channels;
}

#endif
