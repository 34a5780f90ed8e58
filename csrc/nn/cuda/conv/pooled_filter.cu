/* The filter gradient of a 3 x 3 convolution whose output goes through a 2 x 2 pool into a norm, on the tensor cores.
 *
 * A matrix product: output channels by taps and input channels, summed over positions. The left factor is never in
 * memory. One register of it has the two adjacent positions of a window; so each thread computes the gradients of two
 * channels of two windows, puts each where the pool's index says, and has its part of the factor for two rows of
 * positions. The right factor is the input, in shared memory with its zero border; a tap is an offset into it. A row of
 * it is multiplied by the gradients of three rows, for the three rows of taps, and is loaded once for all of them.
 *
 * A block keeps the sums of all its images in registers: each warp those of 16 channels and 8 windows' columns; four
 * warps are arranged along the channels, and two groups of them along the columns.
 *
 * Block (x, y): output channels 64 y to 64 y + 63 of images x, x + gridDim.x, ... Warp w: of these, channels 16 (w % 4)
 * to 16 (w % 4) + 15; strips of 8 windows across w / 4, w / 4 + 2, ... A lane: channels 2 (lane / 4) and the next;
 * windows lane % 4 and lane % 4 + 4 of the strip. Buffers: input (images, height, width, IN), saved and gradient
 * (images, height / 2, width / 2, channels), of type T; index, uint8, like saved; terms as in norm.h; partials
 * (gridDim.x, channels, 3, 3, IN) and filter_gradient (channels, 3, 3, IN), float32. Shared memory: maps [2
 * images][row][column][IN] with their border. */
#include "device/mma.cuh"
#include "nn/cuda/norm/slopes.cuh"

extern "C" {
#include "nn/cuda/conv/pooled_filter.h"
}

#define TAPS 3
#define POOL_SIDE 2
#define WARP_CHANNELS 16
#define WARPS_ACROSS 4
#define BLOCK_CHANNELS (WARP_CHANNELS * WARPS_ACROSS)
#define GROUP_THREADS (WARPS_ACROSS * WARP)
#define GROUPS 2
#define FILTER_THREADS (GROUPS * GROUP_THREADS)
#define FILTER_WARPS (FILTER_THREADS / WARP)
#define STRIP_WINDOWS 8                             /* in a row, that a warp processes at a time */
#define STRIP_POSITIONS (STRIP_WINDOWS * POOL_SIDE) /* the depth of one product */
#define MAPS 2                                      /* in shared memory: one is read while the next arrives */
#define MOST_IN 24 /* input channels: a multiple of 8; there are no registers for the sums of more */
#define CLOSE_ELEMENTS 32
#define CLOSE_SLICES 8

typedef struct FilterSizes {
    int images, height, width, channels;
    int pooled_height, pooled_width;
    int strips;                /* of STRIP_WINDOWS */
    int map_width, map_height; /* in shared memory, with border, in positions */
} FilterSizes;

/* ---- the left factor ---- */

/* What a thread reads from a row of windows: channels c and c + 1 of windows t and t + 4 of its strip. */
struct Windowed {
    uint32_t saved[2], gradient[2], index[2];
};

#define NO_WINDOW 0x0404u /* two indices that match no element of a window */

/* The left factor of the two rows of positions of a row of windows. */
struct Factor {
    uint32_t upper[4], lower[4];
};

/* Iterates over a thread's rows of windows: down each strip of its group, strip by strip, image by image. */
struct Cursor {
    size_t mine; /* element of image 0, row 0, strip 0: the thread's channel, window t */
    int group, column;
    int image, strip, row;

    __device__ __forceinline__ void advance(const FilterSizes &sizes) {
        bool last_row = row + 1 == sizes.pooled_height, last_strip = strip + GROUPS >= sizes.strips;
        row = last_row ? 0 : row + 1;
        image += last_row && last_strip ? (int)gridDim.x : 0;
        strip = !last_row ? strip : last_strip ? group : strip + GROUPS;
    }
};

template <typename T>
__device__ __forceinline__ Windowed load_windows(const PooledFilter &args, const FilterSizes &sizes,
                                                 const Cursor &cursor) {
    Windowed windows;
    int row = cursor.image * sizes.pooled_height + cursor.row, window = cursor.strip * STRIP_WINDOWS;
    size_t at = cursor.mine + (size_t)(row * sizes.pooled_width + window) * (size_t)sizes.channels;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        windows.saved[half] = windows.gradient[half] = 0;
        windows.index[half] = NO_WINDOW;
        int offset = half * (STRIP_WINDOWS / 2);
        if (window + cursor.column + offset >= sizes.pooled_width || cursor.image >= sizes.images) continue;
        size_t from = at + (size_t)(offset * sizes.channels);
        windows.saved[half] = __ldg(reinterpret_cast<const uint32_t *>(static_cast<const T *>(args.saved) + from));
        windows.gradient[half] =
            __ldg(reinterpret_cast<const uint32_t *>(static_cast<const T *>(args.gradient) + from));
        windows.index[half] = __ldg(reinterpret_cast<const uint16_t *>(args.index + from));
    }
    return windows;
}

template <typename T> __device__ __forceinline__ float element_of(uint32_t pair, int which) {
    uint16_t bits = (uint16_t)(pair >> 16 * which);
    T element;
    memcpy((void *)&element, &bits, sizeof element);
    return to_float(element);
}

template <typename T> __device__ __forceinline__ uint32_t bits_of(float value) {
    T element = from_float<T>(value);
    uint16_t bits;
    memcpy(&bits, &element, sizeof bits);
    return bits;
}

template <typename T, Activation ACTIVATION>
__device__ __forceinline__ Factor make_factor(const Slopes<T, 2> &terms, const Windowed &windows) {
    Factor factor;
#pragma unroll
    for (int half = 0; half < 2; half++) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            float x = element_of<T>(windows.saved[half], i), dy = element_of<T>(windows.gradient[half], i);
            uint32_t index = windows.index[half] >> 8 * i, row = index & 6;
            uint32_t pair = bits_of<T>(terms.template gradient<ACTIVATION>(x, dy, i)) << (index & 1) * 16;
            factor.upper[2 * half + i] = row == 0 ? pair : 0;
            factor.lower[2 * half + i] = row == 2 ? pair : 0;
        }
    }
    return factor;
}

/* ---- the right factor ---- */

/* One row of positions for the three taps of a row, TILES times 8 columns: tap by tap, the input channels. Columns are
 * 16 bytes apart, across taps, too, since positions are contiguous. */
template <int TILES> struct Right { uint32_t b[TILES][2]; };

template <typename T, int TILES> __device__ __forceinline__ Right<TILES> load_right(const T *from) {
    Right<TILES> right;
#pragma unroll
    for (int tile = 0; tile + 1 < TILES; tile += 2) {
        uint32_t r[4];
        ldmatrix_x4_trans(r, from + tile * 8);
        right.b[tile][0] = r[0], right.b[tile][1] = r[1];
        right.b[tile + 1][0] = r[2], right.b[tile + 1][1] = r[3];
    }
    if (TILES % 2 == 1) {
        uint32_t r[2];
        ldmatrix_x2_trans(r, from + (TILES - 1) * 8); /* the upper lanes' addresses are ignored */
        right.b[TILES - 1][0] = r[0], right.b[TILES - 1][1] = r[1];
    }
    return right;
}

template <typename T, int TILES>
__device__ __forceinline__ void multiply(float (&sums)[TILES][4], const uint32_t (&left)[4],
                                         const Right<TILES> &right) {
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) mma_16816<T>(sums[tile], left, right.b[tile][0], right.b[tile][1]);
}

/* Starts to copy an image's map into its border. */
template <typename T, int IN>
__device__ __forceinline__ void fetch_map(const FilterSizes &sizes, const T *input, int image, T *map) {
    int warp = thread_index() / WARP, lane = thread_index() % WARP;
    int rows = sizes.height < sizes.map_height - 1 ? sizes.height : sizes.map_height - 1, row_elems = sizes.width * IN;
    const T *from = input + (size_t)image * (size_t)(sizes.height * row_elems);
    for (int row = warp; row < rows; row += FILTER_WARPS) {
        T *to = map + ((row + 1) * sizes.map_width + 1) * IN;
        for (int i = lane * 8; i < row_elems; i += WARP * 8) cp_async_16(to + i, from + row * row_elems + i, false);
    }
    cp_async_commit();
}

/* Prefetches what the block will read from an image's pooled tensors. */
template <typename T>
__device__ __forceinline__ void send_for(const FilterSizes &sizes, const PooledFilter &args, int image) {
    int windows = sizes.pooled_height * sizes.pooled_width;
    for (int window = thread_index(); window < windows; window += FILTER_THREADS) {
        size_t at = ((size_t)image * (size_t)windows + (size_t)window) * (size_t)sizes.channels +
                    (size_t)blockIdx.y * BLOCK_CHANNELS;
        prefetch(static_cast<const T *>(args.saved) + at);
        prefetch(static_cast<const T *>(args.gradient) + at);
        prefetch(args.index + at);
    }
}

/* ---- the kernel ---- */

/* A warp's state from one row of windows to the next. */
template <typename T, Activation ACTIVATION, int IN> struct Warp {
    static constexpr int TILES = TAPS * IN / 8;
    float sums[TAPS][TILES][4];
    Slopes<T, 2> terms;
    Cursor cursor;    /* of the row after `windows` */
    Windowed windows; /* being loaded */
    Factor next;      /* of the row before `windows` */

    __device__ __forceinline__ void load(const PooledFilter &args, const FilterSizes &sizes) {
        windows = load_windows<T>(args, sizes, cursor);
        cursor.advance(sizes);
    }
    __device__ __forceinline__ void begin(const PooledFilter &args, const FilterSizes &sizes, int channel) {
        terms.load(args.terms, sizes.channels, channel);
        load(args, sizes);
        next = make_factor<T, ACTIVATION>(terms, windows);
        load(args, sizes);
    }

    /* Multiplies rows 2 r and 2 r + 1 of the bordered map by the gradients of rows 2 r - 2 to 2 r + 1: those of the
     * previous row of windows, and of this one. `first` is row 2 r of the map, and becomes that of the next step. */
    template <bool BEFORE, bool THIS>
    __device__ __forceinline__ void step(const PooledFilter &args, const FilterSizes &sizes, const Factor &before,
                                         const Factor &now, Right<TILES> &first, const T *from, int map_row) {
        Right<TILES> second = load_right<T, TILES>(from + map_row);
        if (BEFORE) multiply<T>(sums[1], before.lower, first);
        if (BEFORE) multiply<T>(sums[2], before.upper, first);
        if (THIS) multiply<T>(sums[0], now.upper, first);
        if (THIS) {
            first = load_right<T, TILES>(from + 2 * map_row);
            next = make_factor<T, ACTIVATION>(terms, windows);
            load(args, sizes);
        }
        if (BEFORE) multiply<T>(sums[2], before.lower, second);
        if (THIS) multiply<T>(sums[0], now.lower, second);
        if (THIS) multiply<T>(sums[1], now.upper, second);
    }

    /* One strip of one image. */
    __device__ __forceinline__ void add_strip(const PooledFilter &args, const FilterSizes &sizes, const T *from) {
        int map_row = sizes.map_width * IN;
        Right<TILES> first = load_right<T, TILES>(from);
        Factor before, now = next;
        step<false, true>(args, sizes, now, now, first, from, map_row);
        for (int row = 1; row < sizes.pooled_height; row++) {
            from += 2 * map_row;
            before = now;
            now = next;
            step<true, true>(args, sizes, before, now, first, from, map_row);
        }
        step<true, false>(args, sizes, now, now, first, from + 2 * map_row, map_row);
    }
};

/* Adds the second group's sums to the first's, through shared memory that is no longer in use; then stores the block's
 * partial sums, in the order of the filters. */
template <int TILES>
__device__ __forceinline__ void store_filter_sums(float (&sums)[TAPS][TILES][4], float *shared, float *partials,
                                                  int channels, int channel, int column) {
    int thread = thread_index() % GROUP_THREADS, group = thread_index() / GROUP_THREADS;
    constexpr int ROW = TILES * 8;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < TAPS * TILES * 4; i++) {
        if (group > 0) shared[i * GROUP_THREADS + thread] = sums[i / 4 / TILES][i / 4 % TILES][i % 4];
    }
    __syncthreads();
    if (group > 0 || channel >= channels) return;
    float *to = partials + ((size_t)blockIdx.x * (size_t)channels + (size_t)channel) * (TAPS * ROW) + 2 * column;
#pragma unroll
    for (int i = 0; i < TAPS * TILES * 4; i += 2) {
        float *sum = &sums[i / 4 / TILES][i / 4 % TILES][i % 4];
        float a = sum[0] + shared[i * GROUP_THREADS + thread], b = sum[1] + shared[(i + 1) * GROUP_THREADS + thread];
        *reinterpret_cast<float2 *>(to + i % 4 / 2 * (TAPS * ROW) + i / 4 * 8) = make_float2(a, b);
    }
}

template <typename T, Activation ACTIVATION, int IN>
__global__ void __launch_bounds__(FILTER_THREADS, 1) pooled_filter_kernel(PooledFilter args, FilterSizes sizes) {
    grid_begin();
    DYNAMIC_SHARED(T, maps);
    int thread = thread_index(), lane = thread % WARP, group = thread / GROUP_THREADS;
    int channel = (int)blockIdx.y * BLOCK_CHANNELS + thread % GROUP_THREADS / WARP * WARP_CHANNELS + lane / 4 * 2;
    int column = lane % 4, map_elems = sizes.map_height * sizes.map_width * IN, other = map_elems;
    bool works = channel < sizes.channels && group < sizes.strips;
    const T *input = static_cast<const T *>(args.input);
    for (int i = thread * 8; i < MAPS * map_elems; i += FILTER_THREADS * 8) {
        store_pack(maps + i, pack_of_bits<T>(make_uint4(0, 0, 0, 0)));
    }
    __syncthreads(); /* the border has been written */
    fetch_map<T, IN>(sizes, input, (int)blockIdx.x, maps);
    Warp<T, ACTIVATION, IN> warp = {};
    warp.cursor = {(size_t)(channel + column * sizes.channels), group, column, (int)blockIdx.x, group, 0};
    if (works) warp.begin(args, sizes, channel);
    /* Lanes give the addresses of matrix rows: positions 0 to 7 and 8 to 15 of one tile, then of the next. */
    const T *mine = maps + lane % 16 * IN + lane / 16 * 8;
    for (int image = (int)blockIdx.x; image < sizes.images; image += (int)gridDim.x) {
        int next = image + (int)gridDim.x;
        cp_async_wait<0>();
        __syncthreads(); /* this map has arrived, and the other one has been read */
        if (next < sizes.images) {
            fetch_map<T, IN>(sizes, input, next, maps + other);
            send_for<T>(sizes, args, next);
        }
        for (int strip = group; works && strip < sizes.strips; strip += GROUPS) {
            warp.add_strip(args, sizes, mine + (map_elems - other) + strip * STRIP_POSITIONS * IN);
        }
        other = map_elems - other;
    }
    store_filter_sums(warp.sums, reinterpret_cast<float *>(maps), args.partials, sizes.channels, channel, column);
}

/* Adds up the blocks' partial sums. Thread (x, y) of block b: element 32 b + x, the partial sums y, y + 8, ...; then
 * the first row of threads adds the 8 slices. */
__global__ void __launch_bounds__(CLOSE_ELEMENTS *CLOSE_SLICES)
    pooled_filter_close_kernel(const float *partials, int blocks, int elems, float factor, float *to) {
    grid_begin();
    __shared__ float slices[CLOSE_SLICES][CLOSE_ELEMENTS];
    int element = (int)(blockIdx.x * CLOSE_ELEMENTS + threadIdx.x);
    float sum = 0;
    if (element < elems) {
#pragma unroll 8
        for (int block = (int)threadIdx.y; block < blocks; block += CLOSE_SLICES) {
            sum += partials[(size_t)block * (size_t)elems + (size_t)element];
        }
    }
    slices[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y > 0 || element >= elems) return;
#pragma unroll
    for (int slice = 1; slice < CLOSE_SLICES; slice++) sum += slices[slice][threadIdx.x];
    to[element] = sum * factor;
}

/* ---- launchers ---- */

static FilterSizes filter_sizes_of(const NormShape *shape) {
    FilterSizes sizes = {shape->images,
                         shape->height,
                         shape->width,
                         shape->channels,
                         shape->height / POOL_SIDE,
                         shape->width / POOL_SIDE,
                         0,
                         0,
                         0};
    sizes.strips = (sizes.pooled_width + STRIP_WINDOWS - 1) / STRIP_WINDOWS;
    sizes.map_width = sizes.strips * STRIP_POSITIONS + 2;
    sizes.map_height = sizes.pooled_height * POOL_SIDE + 2;
    return sizes;
}

/* For the maps and, at the end, for a group's sums. */
static size_t shared_bytes_of(const FilterSizes *sizes, int in_channels) {
    size_t maps = (size_t)MAPS * (size_t)sizes->map_width * (size_t)sizes->map_height * (size_t)in_channels * 2;
    size_t sums = (size_t)(TAPS * TAPS) * (size_t)(in_channels / 8) * 4 * GROUP_THREADS * sizeof(float);
    return maps > sums ? maps : sums;
}

static int blocks_of(int images) { return images < GPU_MULTIPROCESSORS ? images : GPU_MULTIPROCESSORS; }

extern "C" bool nn_cuda_pooled_filter_fits(const NormShape *shape, int in_channels) {
    int device = 0, major = 0, shared = 0;
    FilterSizes sizes = filter_sizes_of(shape);
    if (shape->precision == PRECISION_FLOAT32 || shape->pool_place != POOL_BEFORE_NORM || shape->pool != POOL_SIDE ||
        in_channels % 8 != 0 || in_channels > MOST_IN || shape->channels % WARP_CHANNELS != 0 ||
        sizes.pooled_height < 1 || sizes.pooled_width < 1) {
        return false;
    }
    if (cudaGetDevice(&device) != cudaSuccess ||
        cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess ||
        cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) != cudaSuccess) {
        (void)cudaGetLastError();
        return false;
    }
    return 10 * major >= MMA_LEAST_CAPABILITY && shared_bytes_of(&sizes, in_channels) <= (size_t)shared;
}

extern "C" size_t nn_cuda_pooled_filter_partial_elems(const NormShape *shape, int in_channels) {
    return (size_t)blocks_of(shape->images) * (size_t)shape->channels * (size_t)(TAPS * TAPS * in_channels);
}

template <typename T, int IN>
static Status launch_filter(const NormShape *shape, const PooledFilter &args, DeviceStream *stream) {
    FilterSizes sizes = filter_sizes_of(shape);
    dim3 grid((unsigned)blocks_of(sizes.images), (unsigned)ceil_div((size_t)sizes.channels, BLOCK_CHANNELS));
    DISPATCH_ACTIVATION(shape->activation, A, {
        return LAUNCH_AFTER((pooled_filter_kernel<T, A, IN>), grid, FILTER_THREADS, shared_bytes_of(&sizes, IN), stream,
                            args, sizes);
    });
    return STATUS_OK;
}

template <typename T>
static Status choose_filter(const NormShape *shape, int in_channels, const PooledFilter &args, DeviceStream *stream) {
    if (in_channels == 8) return launch_filter<T, 8>(shape, args, stream);
    if (in_channels == 16) return launch_filter<T, 16>(shape, args, stream);
    return launch_filter<T, MOST_IN>(shape, args, stream);
}

extern "C" Status nn_cuda_pooled_filter(const NormShape *shape, int in_channels, PooledFilter args,
                                        DeviceStream *stream) {
    int elems = shape->channels * TAPS * TAPS * in_channels;
    if (shape->precision == PRECISION_FLOAT16) {
        TRY(choose_filter<__half>(shape, in_channels, args, stream));
    } else {
        TRY(choose_filter<__nv_bfloat16>(shape, in_channels, args, stream));
    }
    return LAUNCH_AFTER(pooled_filter_close_kernel, ceil_div((size_t)elems, CLOSE_ELEMENTS),
                        dim3(CLOSE_ELEMENTS, CLOSE_SLICES), 0, stream, args.partials, blocks_of(shape->images), elems,
                        args.factor, args.filter_gradient);
}
