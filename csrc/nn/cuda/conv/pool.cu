/* Convolution fused with its pool, on the tensor cores: the rows of a product are positions of the map, its columns are
 * output channels, and its sums run over taps and input channels.
 *
 * A block keeps the filters of its channels and loads image after image into shared memory, the next one while it works
 * on the current one. A warp takes windows of the pool 8 at a time as the rows of products, those of their left columns
 * above those of the right ones, so that a thread ends up with all four elements of its windows in its own registers.
 * The two rows and columns of windows share most of what they read: each register of the map serves up to six products.
 *
 * In shared memory there are 16 bytes of padding after every second column of a map, so that the windows of a load are
 * an odd number of 16 bytes apart, in different banks.
 *
 * Block (x, y): output channels 64 y to 64 y + 63 of image images - 1 - x, then every gridDim.x images before. Warp w:
 * windows 16 w to 16 w + 15 of the image, then every 128. A lane has sums of window lane / 4 of each 8, channels
 * 2 (lane % 4) and the next of each 8. Buffers: input (images, height, width, 24), filters (channels, 3, 3, 24), pooled
 * or output (images, height / 2, width / 2, channels), of type T; index, uint8, like pooled; terms and partial sums as
 * in norm.h and grid.cuh. Shared memory: filters [64][3][3][24], per warp [16 windows][64] of T and of indices, maps
 * [2 images][row][column][24] with their border. */
#include "device/mma.cuh"
#include "nn/cuda/norm/close.cuh"
#include "nn/cuda/norm/values.cuh"

extern "C" {
#include "nn/cuda/conv/pool.h"
}

#define WARPS 8
#define THREADS (WARPS * WARP)
#define BLOCK_CHANNELS 64 /* of the output */
#define TILES (BLOCK_CHANNELS / 8)
#define EIGHTS 2 /* groups of 8 windows that a warp processes at a time */
#define UNIT (8 * EIGHTS)
#define POOLED_STRIDE (2 * BLOCK_CHANNELS + 16) /* bytes per window in a warp's exchange buffer */
#define INDEX_STRIDE (BLOCK_CHANNELS + 16)
#define EXCHANGE_BYTES (UNIT * (POOLED_STRIDE + INDEX_STRIDE))
#define MERGE_FLOATS 17 /* count, means, deviations of 8 channels */

/* A position has `PACKS` packs of 8 input channels. */
__host__ __device__ constexpr int odd(int number) { return number | 1; }
__host__ __device__ constexpr int pair_bytes(int packs) { return odd(2 * packs) * 16; }
__host__ __device__ constexpr int filter_bytes(int packs) { return odd(9 * packs) * 16; }

typedef struct PoolMaps {
    int images, channels;            /* channels of the whole output */
    Divisor row_packs;               /* packs of a row that are read */
    uint32_t image_packs, all_packs; /* packs of an image that are read, and all of its packs */
    uint32_t skipped;                /* packs at the end of a row that no window reads */
    Divisor across;                  /* windows in a row */
    uint32_t windows;                /* in an image */
    int row_bytes, bytes;            /* in shared memory: of a row, of an image */
} PoolMaps;

/* Computed from an unsigned number, which takes fewer instructions. */
__device__ static __forceinline__ int lane_of_thread(void) { return (int)(threadIdx.x % WARP); }

/* ---- into shared memory ---- */

/* Copies a map into its border of zeros, which stays. */
template <typename T, int PACKS>
__device__ __forceinline__ void copy_map(const T *input, const PoolMaps &maps, int image, char *to) {
    const T *from = input + (size_t)image * maps.all_packs * 8;
    for (uint32_t i = threadIdx.x; i < maps.image_packs; i += THREADS) {
        uint32_t rest, row = divide(i, maps.row_packs, &rest), column = rest / PACKS + 1, pack = rest % PACKS;
        char *place = to + (row + 1) * (uint32_t)maps.row_bytes + column / 2 * (uint32_t)pair_bytes(PACKS);
        cp_async_16(place + (column % 2 * PACKS + pack) * 16, from + ((size_t)i + row * maps.skipped) * 8, false);
    }
}

template <typename T, int PACKS> __device__ __forceinline__ void copy_filters(const T *filters, char *to) {
    constexpr int ROW = 9 * PACKS;
    const T *from = filters + (size_t)blockIdx.y * BLOCK_CHANNELS * ROW * 8;
    for (int i = (int)threadIdx.x; i < BLOCK_CHANNELS * ROW; i += THREADS) {
        cp_async_16(to + i / ROW * filter_bytes(PACKS) + i % ROW * 16, from + i * 8, false);
    }
}

/* ---- products ---- */

/* Sums of 8 windows: of their upper and lower rows, per 8 channels. */
typedef float Sums[2][TILES][4];

/* Terms of a row of the filters, in packs: two at a time, and one at the end if their number is odd. */
__host__ __device__ constexpr int terms_of(int packs) { return 3 * packs; }

/* Where in a row of the map a lane reads from for its 8 windows: the factors of term `k` (of the next term, in the
 * upper half of the warp) for the left and the right columns of windows. */
template <int PACKS> __device__ __forceinline__ int lane_offset(int k) {
    int eight = lane_of_thread() / 8, right = eight % 2, term = k + eight / 2;
    return (term + right * PACKS + (term / PACKS + right) / 2) * 16;
}

/* What 8 windows read from one row of the map, as left factors. */
template <int PACKS> struct MapRow {
    static constexpr int STEPS = terms_of(PACKS) / 2;
    uint32_t steps[STEPS][4], last[2];
};

/* Where a lane reads: the place of its windows, the offsets there, its places in the filters. */
template <int PACKS> struct Lanes {
    static constexpr int STEPS = MapRow<PACKS>::STEPS;
    const char *windows[EIGHTS];
    int offsets[STEPS + 1];
    const char *filters, *last_filters;

    __device__ __forceinline__ Lanes(const char *filter_rows) {
        int lane = lane_of_thread();
#pragma unroll
        for (int i = 0; i < STEPS; i++) offsets[i] = lane_offset<PACKS>(2 * i);
        /* of one term; the addresses of the upper half of the warp are ignored */
        offsets[STEPS] = lane_offset<PACKS>(2 * STEPS) - lane / 16 * 16;
        filters = filter_rows + (lane / 16 * 8 + lane % 8) * filter_bytes(PACKS) + lane / 8 % 2 * 16;
        last_filters = filter_rows + lane * filter_bytes(PACKS);
    }
};

/* Adds the products of row Y of the filters. The lower row of windows reads the map's row Y + 1, which is kept: with
 * the next row of the filters, it is the upper row's. */
template <typename T, int PACKS, int Y>
__device__ __forceinline__ void add_filter_row(Sums (&sums)[EIGHTS], MapRow<PACKS> (&upper)[EIGHTS],
                                               MapRow<PACKS> (&lower)[EIGHTS], const Lanes<PACKS> &lanes,
                                               int row_bytes) {
    constexpr int ALL = terms_of(PACKS), STEPS = MapRow<PACKS>::STEPS, PITCH = filter_bytes(PACKS);
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
#pragma unroll
        for (int i = 0; i < EIGHTS; i++) {
            const char *place = lanes.windows[i] + lanes.offsets[step];
            if (Y == 0) ldmatrix_x4(upper[i].steps[step], place);
            ldmatrix_x4(lower[i].steps[step], place + (Y + 1) * row_bytes);
        }
#pragma unroll
        for (int tile = 0; tile < TILES; tile += 2) {
            uint32_t b[4];
            ldmatrix_x4(b, lanes.filters + tile * 8 * PITCH + (Y * ALL + 2 * step) * 16);
#pragma unroll
            for (int i = 0; i < EIGHTS; i++) {
                mma_16816<T>(sums[i][0][tile], upper[i].steps[step], b[0], b[1]);
                mma_16816<T>(sums[i][1][tile], lower[i].steps[step], b[0], b[1]);
                mma_16816<T>(sums[i][0][tile + 1], upper[i].steps[step], b[2], b[3]);
                mma_16816<T>(sums[i][1][tile + 1], lower[i].steps[step], b[2], b[3]);
            }
        }
    }
    if (ALL % 2 == 0) return;
#pragma unroll
    for (int i = 0; i < EIGHTS; i++) {
        const char *place = lanes.windows[i] + lanes.offsets[STEPS];
        if (Y == 0) ldmatrix_x2(upper[i].last, place);
        ldmatrix_x2(lower[i].last, place + (Y + 1) * row_bytes);
    }
#pragma unroll
    for (int tile = 0; tile < TILES; tile += 4) {
        uint32_t b[4];
        ldmatrix_x4(b, lanes.last_filters + tile * 8 * PITCH + (Y * ALL + ALL - 1) * 16);
#pragma unroll
        for (int i = 0; i < EIGHTS; i++) {
#pragma unroll
            for (int n = 0; n < 4; n++) {
                mma_1688<T>(sums[i][0][tile + n], upper[i].last[0], upper[i].last[1], b[n]);
                mma_1688<T>(sums[i][1][tile + n], lower[i].last[0], lower[i].last[1], b[n]);
            }
        }
    }
}

/* Computes the windows' sums. */
template <typename T, int PACKS>
__device__ __forceinline__ void convolve(Sums (&sums)[EIGHTS], const Lanes<PACKS> &lanes, int row_bytes) {
    MapRow<PACKS> even[EIGHTS], odd[EIGHTS];
    add_filter_row<T, PACKS, 0>(sums, even, odd, lanes, row_bytes);
    add_filter_row<T, PACKS, 1>(sums, odd, even, lanes, row_bytes);
    add_filter_row<T, PACKS, 2>(sums, even, odd, lanes, row_bytes);
}

/* ---- the pool ---- */

/* Rounds two values to a pair of T. */
__device__ static __forceinline__ __half2 round_pair(float x, float y, __half) { return __floats2half2_rn(x, y); }
__device__ static __forceinline__ __nv_bfloat162 round_pair(float x, float y, __nv_bfloat16) {
    return __floats2bfloat162_rn(x, y);
}

template <typename Pair> __device__ __forceinline__ uint32_t bits_of_pair(Pair pair) {
    uint32_t bits;
    memcpy(&bits, &pair, sizeof bits);
    return bits;
}
template <typename Pair> __device__ __forceinline__ Pair pair_of_bits(uint32_t bits) {
    Pair pair;
    memcpy((void *)&pair, &bits, sizeof bits);
    return pair;
}

/* The largest of the four, the first of equal ones, for two channels; `where` is its index, in 16 bits per channel. */
template <typename T>
__device__ __forceinline__ uint32_t pool_pair(const float (&upper)[4], const float (&lower)[4], uint32_t *where) {
    auto best = round_pair(upper[0], upper[1], T());
    typedef decltype(best) Pair;
    const Pair others[3] = {round_pair(upper[2], upper[3], T()), round_pair(lower[0], lower[1], T()),
                            round_pair(lower[2], lower[3], T())};
    uint32_t element = 0;
#pragma unroll
    for (uint32_t e = 1; e < 4; e++) {
        uint32_t larger = __hgt2_mask(others[e - 1], best);
        best = pair_of_bits<Pair>((bits_of_pair(others[e - 1]) & larger) | (bits_of_pair(best) & ~larger));
        element = (e * 0x10001u & larger) | (element & ~larger);
    }
    *where = element;
    return bits_of_pair(best);
}

/* Pools from the threads' registers into the warp's exchange buffer. Indices of 16 channels are interleaved: word t has
 * those of channels 2 t, 2 t + 1, 2 t + 8, 2 t + 9. */
template <typename T> __device__ __forceinline__ void pool_sums(const Sums (&sums)[EIGHTS], char *exchange) {
    int lane = lane_of_thread(), g = lane / 4, t = lane % 4;
    char *pooled = exchange + g * POOLED_STRIDE + t * 4;
    char *index = exchange + UNIT * POOLED_STRIDE + g * INDEX_STRIDE + t * 4;
#pragma unroll
    for (int i = 0; i < EIGHTS; i++) {
#pragma unroll
        for (int tile = 0; tile < TILES; tile += 2) {
            uint32_t where[2];
#pragma unroll
            for (int n = 0; n < 2; n++) {
                uint32_t best = pool_pair<T>(sums[i][0][tile + n], sums[i][1][tile + n], &where[n]);
                *reinterpret_cast<uint32_t *>(pooled + i * 8 * POOLED_STRIDE + (tile + n) * 16) = best;
            }
            uint32_t word = __byte_perm(where[0], where[1], 0x6420);
            *reinterpret_cast<uint32_t *>(index + i * 8 * INDEX_STRIDE + tile * 8) = word;
        }
    }
}

/* Stores indices, 16 per thread of the warp at a time. */
__device__ static __forceinline__ void store_index(const char *exchange, uint8_t *to, uint32_t first,
                                                   const PoolMaps &maps) {
    constexpr int ACROSS = BLOCK_CHANNELS / 16, DOWN = WARP / ACROSS;
    int lane = lane_of_thread();
    uint32_t part = (uint32_t)lane % ACROSS;
#pragma unroll
    for (uint32_t row = (uint32_t)lane / ACROSS; row < UNIT; row += DOWN) {
        uint4 w = *reinterpret_cast<const uint4 *>(exchange + UNIT * POOLED_STRIDE + row * INDEX_STRIDE + part * 16);
        uint4 bytes = make_uint4(__byte_perm(w.x, w.y, 0x5410), __byte_perm(w.z, w.w, 0x5410),
                                 __byte_perm(w.x, w.y, 0x7632), __byte_perm(w.z, w.w, 0x7632));
        if (first + row >= maps.windows) continue;
        uint8_t *place = to + (size_t)(first + row) * (size_t)maps.channels + part * 16;
        __stcs(reinterpret_cast<uint4 *>(place), bytes);
    }
}

/* ---- statistics ---- */

/* Merges count, means and squared deviations of two sets of values (Chan, Golub, LeVeque). */
__device__ static __forceinline__ void merge(float (&to)[MERGE_FLOATS], const float (&other)[MERGE_FLOATS]) {
    if (other[0] <= 0) return;
    float total = to[0] + other[0], share = other[0] / total;
#pragma unroll
    for (int i = 1; i <= 8; i++) {
        float apart = other[i] - to[i];
        to[i + 8] += other[i + 8] + apart * apart * to[0] * share;
        to[i] = fmaf(apart, share, to[i]);
    }
    to[0] = total;
}

/* Stores the block's partial sums; all threads call it and are done with shared memory. Means are relative to 0. */
__device__ static __forceinline__ void store_partials(const Moments<8> &moments, float *shared, float *partials,
                                                      int channels) {
    int thread = (int)threadIdx.x, lane = lane_of_thread();
    float own[MERGE_FLOATS], other[MERGE_FLOATS];
    float share = moments.count > 0 ? 1.0f / (float)moments.count : 0.0f;
    own[0] = (float)moments.count;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        own[i + 1] = fmaf(moments.sum[i], share, moments.origin[i]);
        own[i + 9] = fmaxf(moments.square[i] - moments.sum[i] * moments.sum[i] * share, 0.0f);
    }
#pragma unroll
    for (int distance = TILES; distance < WARP; distance *= 2) {
#pragma unroll
        for (int i = 0; i < MERGE_FLOATS; i++) other[i] = __shfl_xor_sync(WHOLE_WARP, own[i], distance);
        merge(own, other);
    }
    __syncthreads();
    if (lane < TILES) {
        for (int i = 0; i < MERGE_FLOATS; i++) shared[(thread / WARP * MERGE_FLOATS + i) * TILES + lane] = own[i];
    }
    __syncthreads();
    if (thread >= TILES) return;
    for (int warp = 1; warp < WARPS; warp++) {
        for (int i = 0; i < MERGE_FLOATS; i++) other[i] = shared[(warp * MERGE_FLOATS + i) * TILES + lane];
        merge(own, other);
    }
    int channel = (int)blockIdx.y * BLOCK_CHANNELS + lane * 8;
    float *zero = partial_zero(partials, channels, gridDim.x);
    for (int i = 0; i < 8; i++) {
        partial_row(partials, channels, blockIdx.x, 0)[channel + i] = own[i + 1];
        partial_row(partials, channels, blockIdx.x, 1)[channel + i] = own[i + 9];
        if (blockIdx.x == 0) zero[channel + i] = 0;
    }
    if (lane == 0) *partial_count(partials, channels, gridDim.x, blockIdx.y * gridDim.x + blockIdx.x) = own[0];
}

/* ---- what is done with the pooled values ---- */

/* Stores them, and sums for statistics. A thread always sees the same 8 channels. */
template <typename T> struct KeepStatistics {
    Moments<8> moments;

    __device__ __forceinline__ void begin(const ConvPool &, const PoolMaps &, int) {}
    __device__ __forceinline__ void take(const Pack<T> &pack, const ConvPool &args, size_t to) {
        float x[8];
#pragma unroll
        for (int i = 0; i < 8; i++) x[i] = pack.get(i);
        store_pack(static_cast<T *>(args.pooled) + to, pack);
        moments.begin(x);
        moments.add(x);
    }
    __device__ __forceinline__ void take_index(const char *exchange, const ConvPool &args, int image, uint32_t first,
                                               const PoolMaps &maps) {
        size_t place = (size_t)image * maps.windows * (size_t)maps.channels + blockIdx.y * BLOCK_CHANNELS;
        store_index(exchange, args.index + place, first, maps);
    }
    __device__ __forceinline__ void end(const ConvPool &args, const PoolMaps &maps, char *shared) {
        const NormClose &close = args.close;
        store_partials(moments, reinterpret_cast<float *>(shared), close.partials, maps.channels);
        if (!last_to_arrive(partial_arrivals(close.partials, maps.channels) + blockIdx.y)) return;
        const float *counts = partial_count(close.partials, maps.channels, gridDim.x, blockIdx.y * gridDim.x);
        finish_statistics(close, maps.channels, (int)gridDim.x, counts,
                          column_of((int)blockIdx.y * BLOCK_CHANNELS, BLOCK_CHANNELS),
                          reinterpret_cast<double *>(shared));
    }
};

/* Normalises, activates and stores them. */
template <typename T> struct MakeOutput {
    Normalise<T> norm;

    /* Called for every unit: while products are summed there are no registers for the terms. */
    __device__ __forceinline__ void begin(const ConvPool &args, const PoolMaps &maps, int channel) {
        norm.load(args.terms, maps.channels, channel);
    }
    __device__ __forceinline__ void take(const Pack<T> &pack, const ConvPool &args, size_t to) {
        float y[8];
#pragma unroll
        for (int i = 0; i < 8; i++) y[i] = norm.z(pack.get(i), i);
        activate_all(args.activation, y);
        store_floats(static_cast<T *>(args.output) + to, y);
    }
    __device__ __forceinline__ void take_index(const char *, const ConvPool &, int, uint32_t, const PoolMaps &) {}
    __device__ __forceinline__ void end(const ConvPool &, const PoolMaps &, char *) {}
};

/* Takes pooled values from the warp's exchange buffer, 8 channels of a window per thread at a time. */
template <typename T, typename Epilogue>
__device__ __forceinline__ void take_pooled(Epilogue &epilogue, const ConvPool &args, const PoolMaps &maps, int image,
                                            uint32_t first, const char *exchange) {
    constexpr int DOWN = WARP / TILES, TURNS = UNIT / DOWN;
    int lane = lane_of_thread(), part = lane % TILES, row = lane / TILES;
    int channel = (int)blockIdx.y * BLOCK_CHANNELS + part * 8, left = (int)(maps.windows - first) - row;
    size_t to = ((size_t)image * maps.windows + first + (uint32_t)row) * (size_t)maps.channels + (size_t)channel;
    Pack<T> packs[TURNS];
#pragma unroll
    for (int i = 0; i < TURNS; i++) {
        packs[i] = load_pack(reinterpret_cast<const T *>(exchange + (row + i * DOWN) * POOLED_STRIDE + part * 16));
    }
    epilogue.begin(args, maps, channel);
#pragma unroll
    for (int i = 0; i < TURNS; i++) {
        if (i * DOWN < left) epilogue.take(packs[i], args, to);
        to += (size_t)(DOWN * maps.channels);
    }
}

/* One unit of the warp: the windows from `first` of an image whose map is in shared memory. */
template <typename T, int PACKS, typename Epilogue>
__device__ __forceinline__ void do_unit(Epilogue &epilogue, const ConvPool &args, const PoolMaps &maps, int image,
                                        uint32_t first, const char *map, Lanes<PACKS> &lanes, char *exchange) {
    int lane = lane_of_thread();
#pragma unroll
    for (int i = 0; i < EIGHTS; i++) {
        uint32_t window = first + (uint32_t)(i * 8 + lane % 8), across;
        uint32_t down = divide(window < maps.windows ? window : maps.windows - 1, maps.across, &across);
        lanes.windows[i] = map + 2 * (int)down * maps.row_bytes + (int)across * pair_bytes(PACKS);
    }
    Sums sums[EIGHTS] = {};
    convolve<T, PACKS>(sums, lanes, maps.row_bytes);
    pool_sums<T>(sums, exchange);
    __syncwarp();
    take_pooled<T>(epilogue, args, maps, image, first, exchange);
    epilogue.take_index(exchange, args, image, first, maps);
    __syncwarp();
}

/* Images go from the last to the first: the last ones are still in cache from the previous kernel. */
template <typename T, int PACKS, template <typename> class Epilogue>
__global__ void __launch_bounds__(THREADS, 1) conv_pool_kernel(ConvPool args, PoolMaps maps) {
    DYNAMIC_SHARED(char, filters);
    int warp = (int)(threadIdx.x / WARP);
    char *exchange = filters + BLOCK_CHANNELS * filter_bytes(PACKS) + warp * EXCHANGE_BYTES;
    char *shared_maps = filters + BLOCK_CHANNELS * filter_bytes(PACKS) + WARPS * EXCHANGE_BYTES;
    const T *input = static_cast<const T *>(args.input);
    Epilogue<T> epilogue;
    Lanes<PACKS> lanes(filters);
    for (int i = (int)threadIdx.x * 16; i < 2 * maps.bytes; i += THREADS * 16) {
        *reinterpret_cast<uint4 *>(shared_maps + i) = make_uint4(0, 0, 0, 0);
    }
    __syncthreads();
    grid_begin();
    copy_filters<T, PACKS>(static_cast<const T *>(args.filters), filters);
    int image = maps.images - 1 - (int)blockIdx.x, place = 0;
    copy_map<T, PACKS>(input, maps, image, shared_maps);
    cp_async_commit();
    for (; image >= 0; image -= (int)gridDim.x, place ^= 1) {
        cp_async_wait<0>();
        __syncthreads(); /* this map has arrived, and all threads are done with the previous one */
        int next = image - (int)gridDim.x;
        if (next >= 0) copy_map<T, PACKS>(input, maps, next, shared_maps + (place ^ 1) * maps.bytes);
        cp_async_commit();
        for (uint32_t first = (uint32_t)warp * UNIT; first < maps.windows; first += WARPS * UNIT) {
            do_unit<T, PACKS>(epilogue, args, maps, image, first, shared_maps + place * maps.bytes, lanes, exchange);
        }
    }
    epilogue.end(args, maps, filters);
}

/* ---- launchers ---- */

#define PACKS_24 3 /* 24 input channels */

static PoolMaps maps_of(const ConvPoolShape *shape) {
    int down = shape->height / 2, across = shape->width / 2, packs = shape->in_channels / 8;
    int rows = shape->height < 2 * down + 1 ? shape->height : 2 * down + 1;
    int columns = shape->width < 2 * across + 1 ? shape->width : 2 * across + 1;
    PoolMaps maps;
    maps.images = shape->images;
    maps.channels = shape->out_channels;
    maps.row_packs = make_divisor(columns * packs);
    maps.image_packs = (uint32_t)(rows * columns * packs);
    maps.all_packs = (uint32_t)(shape->height * shape->width * packs);
    maps.skipped = (uint32_t)((shape->width - columns) * packs);
    maps.across = make_divisor(across);
    maps.windows = (uint32_t)(down * across);
    maps.row_bytes = (across + 1) * pair_bytes(packs);
    maps.bytes = (2 * down + 2) * maps.row_bytes;
    return maps;
}

static size_t shared_bytes(const PoolMaps &maps, int packs) {
    size_t filters = (size_t)BLOCK_CHANNELS * (size_t)filter_bytes(packs);
    return filters + (size_t)WARPS * EXCHANGE_BYTES + 2 * (size_t)maps.bytes;
}

/* Checks the device, and the code that this build has for it. */
static bool device_fits(size_t shared) {
    struct cudaFuncAttributes code;
    DeviceInfo info;
    int device;
    const void *kernel = reinterpret_cast<const void *>(conv_pool_kernel<__half, PACKS_24, KeepStatistics>);
    if (cudaGetDevice(&device) != cudaSuccess || device_describe(device, &info) != STATUS_OK) return false;
    if (10 * info.major + info.minor < MMA_LEAST_CAPABILITY || info.shared_bytes < shared) return false;
    return cudaFuncGetAttributes(&code, kernel) == cudaSuccess && code.ptxVersion >= MMA_LEAST_CAPABILITY;
}

extern "C" bool nn_cuda_conv_pool_fits(const ConvPoolShape *shape) {
    if (shape->precision == PRECISION_FLOAT32) return false;
    if (shape->in_channels != 8 * PACKS_24 || shape->out_channels % BLOCK_CHANNELS != 0) return false;
    if (shape->height < 2 || shape->width < 2 || shape->height > 64 || shape->width > 64) return false;
    return device_fits(shared_bytes(maps_of(shape), PACKS_24));
}

static int conv_pool_blocks(const ConvPoolShape *shape) {
    return shape->images < GPU_MULTIPROCESSORS ? shape->images : GPU_MULTIPROCESSORS;
}

template <template <typename> class Epilogue>
static Status launch(const ConvPoolShape *shape, const ConvPool &args, DeviceStream *stream) {
    PoolMaps maps = maps_of(shape);
    dim3 grid((unsigned)conv_pool_blocks(shape), (unsigned)(shape->out_channels / BLOCK_CHANNELS));
    auto kernel = shape->precision == PRECISION_FLOAT16 ? conv_pool_kernel<__half, PACKS_24, Epilogue>
                                                        : conv_pool_kernel<__nv_bfloat16, PACKS_24, Epilogue>;
    return LAUNCH_AFTER(kernel, grid, THREADS, shared_bytes(maps, PACKS_24), stream, args, maps);
}

extern "C" Status nn_cuda_conv_pool_statistics(const ConvPoolShape *shape, ConvPool args, DeviceStream *stream) {
    return launch<KeepStatistics>(shape, args, stream);
}

extern "C" Status nn_cuda_conv_pool_output(const ConvPoolShape *shape, ConvPool args, DeviceStream *stream) {
    return launch<MakeOutput>(shape, args, stream);
}
