/* The convolution that reads the images as matrix products on the tensor cores: forward, bias and filter gradient.
 *
 * Every float32 value, of the images and of the filters, is split into two float16 values: the rounded value and the
 * rounding error (values beyond 65504 are infinite, as everywhere in float16 storage); three products of them give a
 * product of 22 bits. A pixel of three channels takes 16 bytes of shared memory: the upper halves and a one, which
 * multiplies the bias, then the lower halves and a zero. Rows of the products are outputs, in memory order; four pixels
 * of the filter's window are 16 columns.
 *
 * A tile is a band of whole rows of one image. Forward, block (x, y): tile x, channels 8 TILES y to 8 TILES (y + 1) -
 * 1; warp w: outputs 32 w to 32 w + 31 of the tile, then every 256, 16 rows of a product at a time. Bias gradient:
 * likewise over tiles x, x + gridDim.x, ... Filter gradient, block (x, y): tiles x, x + gridDim.x, ..., channels 64 y
 * to 64 y + 63; warp w: of these, 32 (w % 2) to 32 (w % 2) + 31, outputs 16 (w / 2) to + 15, then every 64.
 *
 * Buffers: images, weights, bias as in stem.cuh; output and its gradient (images, out_height, out_width, out_channels)
 * of float16; partials, float32: of the bias (gridDim.x, out_channels), of the filters (gridDim.x, out_channels / 8,
 * taps, 8). Shared memory: patch [patch_rows][pitch] pixels of 16 bytes; per warp [32 outputs][8 TILES] of float16 or,
 * for the filters, gradients [2 tiles][output][64]. */
#include "device/mma.cuh"
#include "nn/cuda/stem/stem.cuh"

extern "C" {
#include "nn/cuda/stem/matrix.h"
}

#define WARPS (THREADS / WARP)
#define STEP 32        /* outputs that a warp computes at once */
#define FEW_TILES 1024 /* fewer tiles do not fill a device evenly */
#define LEAST_ROWS 8
#define FILTER_STEP 16
#define FILTER_OUTPUTS 256 /* per tile, about */
#define FILTER_CHANNELS 64 /* per block; half of them in a warp */
#define FILTER_STREAMS (WARPS / 2)

typedef struct Bands {
    int images, count, rows; /* in each image; of outputs */
    int patch_rows, patch_width, pitch;
    unsigned inverse, patch_inverse; /* of the widths, for `quotient` */
} Bands;

/* at / divisor, where at * divisor < 2^32 and divisor > 1, with 2^32 / divisor rounded up. */
__device__ static __forceinline__ int quotient(int at, unsigned inverse) {
    return (int)__umulhi((unsigned)at, inverse);
}

static unsigned inverse_of(int divisor) { return 0xffffffffu / (unsigned)divisor + 1; }

static Bands bands_of(const StemShape *shape, int rows) {
    Bands b = {};
    b.images = shape->images;
    b.count = ceil_divide(shape->out_height, rows);
    b.rows = ceil_divide(shape->out_height, b.count);
    b.patch_rows = b.rows + shape->kernel - 1;
    b.patch_width = shape->out_width + shape->kernel - 1;
    b.pitch = (b.patch_width + 3) / 8 * 8 + 4; /* successive rows touch different banks */
    b.inverse = inverse_of(shape->out_width);
    b.patch_inverse = inverse_of(b.patch_width);
    return b;
}

static size_t pixel_bytes(const Bands *b) { return (size_t)(b->patch_rows * b->pitch) * sizeof(uint4); }

/* ---- values in two halves ---- */

__device__ static __forceinline__ uint32_t bits_of(__half2 pair) {
    uint32_t bits;
    memcpy(&bits, &pair, sizeof bits);
    return bits;
}

__device__ static __forceinline__ __half2 halves_of(uint32_t bits) {
    __half2 pair;
    memcpy((void *)&pair, &bits, sizeof pair);
    return pair;
}

__device__ static __forceinline__ void split(float first, float second, uint32_t *upper, uint32_t *lower) {
    __half2 pair = __floats2half2_rn(first, second);
    float2 rounded = __half22float2(pair);
    *upper = bits_of(pair);
    *lower = bits_of(__floats2half2_rn(first - rounded.x, second - rounded.y));
}

__device__ static __forceinline__ float value_of(uint8_t value, float mean, float factor) {
    return ((float)value - mean) * factor;
}
__device__ static __forceinline__ float value_of(float value, float, float) { return value; }
__device__ static __forceinline__ float value_of(__nv_bfloat16 value, float, float) { return to_float(value); }

#define BATCH 3 /* pixels of a thread whose loads are in flight at the same time */

/* Stages the pixels under the outputs starting at row `y0`. No branch depends on loaded values, or decides whether to
 * load: loads after branches would wait for one another. */
template <typename P>
__device__ __forceinline__ void stage_values(const StemSource &source, const Bands &b, size_t image, int y0,
                                             uint4 *patch) {
    const int pixels = b.patch_rows * b.patch_width;
    const P *from = (const P *)source.data + image * (size_t)(source.height * source.width * 3);
    for (int first = thread_index(); first < pixels; first += BATCH * THREADS) {
        P values[BATCH][3];
        bool inside[BATCH];
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            int at = min(first + i * THREADS, pixels - 1), row = quotient(at, b.patch_inverse);
            int y = y0 + row - source.border, x = at - row * b.patch_width - source.border;
            inside[i] = y >= 0 && y < source.height && x >= 0 && x < source.width;
            y = inside[i] ? reflect(y + source.shift_y, source.height) : 0;
            x = inside[i] ? reflect((source.mirror ? source.width - 1 - x : x) + source.shift_x, source.width) : 0;
            const P *pixel = from + (y * source.row + x * source.column);
#pragma unroll
            for (int c = 0; c < 3; c++) values[i][c] = __ldg(pixel + c * source.channel);
        }
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            float floats[3];
#pragma unroll
            for (int c = 0; c < 3; c++) {
                floats[c] = inside[i] ? value_of(values[i][c], source.mean[c], source.factor[c]) : 0.0f;
            }
            uint4 halves;
            split(floats[0], floats[1], &halves.x, &halves.z);
            split(floats[2], 1.0f, &halves.y, &halves.w);
            int at = first + i * THREADS, row = quotient(at, b.patch_inverse);
            if (at < pixels) patch[at + row * (b.pitch - b.patch_width)] = halves;
        }
    }
}

__device__ static __forceinline__ void stage_pixels(const StemSource &source, const Bands &b, size_t image, int y0,
                                                    uint4 *patch) {
    if (source.type == PIXELS_U8) {
        stage_values<uint8_t>(source, b, image, y0, patch);
    } else if (source.type == PIXELS_F32) {
        stage_values<float>(source, b, image, y0, patch);
    } else {
        stage_values<__nv_bfloat16>(source, b, image, y0, patch);
    }
}

/* ---- products ---- */

/* A lane's share of the filters of TILES x 8 channels: four positions of the window at a time; the last position of 3 x
 * 3 separately, where the lanes of t = 0, 1, 2 have the three products of halves instead of positions. */
template <int KERNEL, int TILES> struct Weights {
    static constexpr int WINDOW = KERNEL * KERNEL, FOURS = WINDOW / 4;
    static constexpr bool REST = WINDOW % 4 != 0;
    uint32_t upper[FOURS][TILES][2], lower[FOURS][TILES][2], rest[TILES][2];
    int offsets[FOURS]; /* of the lane's pixels from an output's first pixel */

    __device__ __forceinline__ static void pair(const StemFilters &filters, int channel, int position,
                                                uint32_t (&up)[2], uint32_t (&low)[2]) {
        const float *from = filters.weights + (channel * WINDOW + position) * 3;
        float bias = position == 0 && filters.bias != NULL ? filters.bias[channel] : 0.0f;
        split(from[0], from[1], &up[0], &low[0]);
        split(from[2], bias, &up[1], &low[1]);
    }

    __device__ __forceinline__ void load(const StemFilters &filters, int first_channel, int pitch) {
        const int lane = thread_index() % WARP, g = lane / 4, t = lane % 4;
#pragma unroll
        for (int four = 0; four < FOURS; four++) {
            int position = 4 * four + t;
            offsets[four] = position / KERNEL * pitch + position % KERNEL;
#pragma unroll
            for (int tile = 0; tile < TILES; tile++) {
                pair(filters, first_channel + 8 * tile + g, position, upper[four][tile], lower[four][tile]);
            }
        }
        if constexpr (REST) {
#pragma unroll
            for (int tile = 0; tile < TILES; tile++) {
                uint32_t up[2], low[2];
                pair(filters, first_channel + 8 * tile + g, WINDOW - 1, up, low);
                rest[tile][0] = t == 3 ? 0 : t == 1 ? low[0] : up[0];
                rest[tile][1] = t == 3 ? 0 : t == 1 ? low[1] : up[1];
            }
        }
    }
};

/* 16 outputs before the activation, starting at `first` of the tile's `count`. */
template <int KERNEL, int TILES>
__device__ __forceinline__ void multiply(const Weights<KERNEL, TILES> &weights, const uint4 *patch, const Bands &b,
                                         int out_width, int first, int count, float (&sums)[TILES][4]) {
    const int lane = thread_index() % WARP, g = lane / 4, t = lane % 4;
    const uint4 *from[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int output = min(first + 8 * half + g, count - 1);
        from[half] = patch + output + quotient(output, b.inverse) * (b.pitch - out_width);
    }
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) sums[tile][0] = sums[tile][1] = sums[tile][2] = sums[tile][3] = 0;
#pragma unroll
    for (int four = 0; four < weights.FOURS; four++) {
        uint4 above = from[0][weights.offsets[four]], below = from[1][weights.offsets[four]];
        uint32_t upper[4] = {above.x, below.x, above.y, below.y};
        uint32_t lower[4] = {above.z, below.z, above.w, below.w};
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) {
            const uint32_t(&up)[2] = weights.upper[four][tile], (&low)[2] = weights.lower[four][tile];
            mma_16816<__half>(sums[tile], lower, up[0], up[1]);
            mma_16816<__half>(sums[tile], upper, low[0], low[1]);
            mma_16816<__half>(sums[tile], upper, up[0], up[1]);
        }
    }
    if constexpr (Weights<KERNEL, TILES>::REST) {
        int offset = 2 * ((KERNEL - 1) * b.pitch + KERNEL - 1) + (t == 2 ? 1 : 0);
        uint2 above = reinterpret_cast<const uint2 *>(from[0])[offset];
        uint2 below = reinterpret_cast<const uint2 *>(from[1])[offset];
        uint32_t rest[4] = {above.x, below.x, above.y, below.y};
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) {
            mma_16816<__half>(sums[tile], rest, weights.rest[tile][0], weights.rest[tile][1]);
        }
    }
}

/* The distance of outputs where a warp transposes its lanes' values into contiguous pieces: uses every bank once. */
#define TRANSPOSE_PIECES(tiles) ((tiles) | 1)
#define TRANSPOSE_BYTES(tiles) ((size_t)(STEP * TRANSPOSE_PIECES(tiles)) * sizeof(uint4))

template <int TILES> __device__ __forceinline__ uint32_t *transposed(uint4 *pieces, int row, int tile) {
    const int lane = thread_index() % WARP;
    return reinterpret_cast<uint32_t *>(pieces + (row + lane / 4) * TRANSPOSE_PIECES(TILES) + tile) + lane % 4;
}

template <int KERNEL, int TILES>
__global__ void __launch_bounds__(THREADS, KERNEL > 2 ? 2 : 3)
    stem_matrix_forward_kernel(StemFilters filters, StemSource source, StemShape shape, Bands b, __half *output) {
    DYNAMIC_SHARED(uint4, patch);
    const int warp = thread_index() / WARP, lane = thread_index() % WARP, channel = (int)blockIdx.y * TILES * 8;
    const int image = (int)blockIdx.x / b.count, y0 = ((int)blockIdx.x - image * b.count) * b.rows;
    const int count = min(b.rows, shape.out_height - y0) * shape.out_width;
    uint4 *pieces = patch + b.patch_rows * b.pitch + warp * STEP * TRANSPOSE_PIECES(TILES);
    __half *to = output + output_at(shape, (size_t)image, y0, 0, channel);
    Weights<KERNEL, TILES> weights;
    weights.load(filters, channel, b.pitch);
    stage_pixels(source, b, (size_t)image, y0, patch);
    __syncthreads();
    for (int first = warp * STEP; first < count; first += WARPS * STEP) {
        __syncwarp(); /* the previous values have been stored */
#pragma unroll 1
        for (int row = 0; row < STEP; row += 16) {
            float sums[TILES][4];
            multiply(weights, patch, b, shape.out_width, first + row, count, sums);
            DISPATCH_ACTIVATION(shape.activation, A, {
#pragma unroll
                for (int i = 0; i < 2 * TILES; i++) {
                    const float *two = &sums[i / 2][i % 2 * 2];
                    *transposed<TILES>(pieces, row + i % 2 * 8, i / 2) =
                        bits_of(__floats2half2_rn(activate<A>(two[0]), activate<A>(two[1])));
                }
            });
        }
        __syncwarp();
#pragma unroll
        for (int i = lane; i < STEP * TILES; i += WARP) {
            int row = i / TILES, piece = i % TILES;
            if (first + row >= count) break;
            *reinterpret_cast<uint4 *>(to + (size_t)(first + row) * (size_t)shape.out_channels + piece * 8) =
                pieces[row * TRANSPOSE_PIECES(TILES) + piece];
        }
    }
}

/* ---- the bias gradient ---- */

/* The gradient of STEP outputs; zeros past the tile. */
template <int TILES>
__device__ __forceinline__ void load_pieces(const __half *from, int channels, int first, int count,
                                            uint4 (&to)[TILES]) {
#pragma unroll
    for (int i = 0; i < TILES; i++) {
        int at = thread_index() % WARP + i * WARP, row = at / TILES, piece = at % TILES;
        to[i] = make_uint4(0, 0, 0, 0);
        if (first + row < count) {
            to[i] = __ldg(reinterpret_cast<const uint4 *>(from + (size_t)(first + row) * (size_t)channels + piece * 8));
        }
    }
}

/* Sums over the rows of the warp's products, then over the warps, into the block's partial sums. */
template <int TILES>
__device__ __forceinline__ void close_total(const float (&total)[TILES][2], float *shared, float *partial) {
    const int warp = thread_index() / WARP, lane = thread_index() % WARP;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 2 * TILES; i++) {
        float sum = total[i / 2][i % 2];
#pragma unroll
        for (int distance = 4; distance < WARP; distance *= 2) sum += __shfl_xor_sync(WHOLE_WARP, sum, distance);
        if (lane < 4) shared[warp * TILES * 8 + i / 2 * 8 + 2 * lane + i % 2] = sum;
    }
    __syncthreads();
    for (int i = thread_index(); i < TILES * 8; i += THREADS) {
        float sum = 0;
        for (int other = 0; other < WARPS; other++) sum += shared[other * TILES * 8 + i];
        partial[i] = sum;
    }
}

template <int KERNEL, int TILES>
__global__ void __launch_bounds__(THREADS, KERNEL > 2 || TILES > 3 ? 2 : 3)
    stem_matrix_bias_kernel(StemFilters filters, StemSource source, StemShape shape, Bands b, const __half *gradient,
                            float *partials) {
    DYNAMIC_SHARED(uint4, patch);
    const int warp = thread_index() / WARP, lane = thread_index() % WARP, channel = (int)blockIdx.y * TILES * 8;
    uint4 *pieces = patch + b.patch_rows * b.pitch + warp * STEP * TRANSPOSE_PIECES(TILES);
    float total[TILES][2] = {};
    Weights<KERNEL, TILES> weights;
    weights.load(filters, channel, b.pitch);
    for (int number = (int)blockIdx.x; number < b.images * b.count; number += (int)gridDim.x) {
        const int image = number / b.count, y0 = (number - image * b.count) * b.rows;
        const int count = min(b.rows, shape.out_height - y0) * shape.out_width;
        const __half *from = gradient + output_at(shape, (size_t)image, y0, 0, channel);
        __syncthreads();
        stage_pixels(source, b, (size_t)image, y0, patch);
        __syncthreads();
        for (int first = warp * STEP; first < count; first += WARPS * STEP) {
            uint4 given[TILES];
            load_pieces(from, shape.out_channels, first, count, given);
            __syncwarp(); /* the previous values have been read */
#pragma unroll
            for (int i = 0; i < TILES; i++) {
                int at = lane + i * WARP;
                pieces[at / TILES * TRANSPOSE_PIECES(TILES) + at % TILES] = given[i];
            }
            __syncwarp();
#pragma unroll 1
            for (int row = 0; row < STEP; row += 16) {
                float sums[TILES][4];
                multiply(weights, patch, b, shape.out_width, first + row, count, sums);
                DISPATCH_ACTIVATION(shape.activation, A, {
#pragma unroll
                    for (int i = 0; i < 2 * TILES; i++) {
                        const float *two = &sums[i / 2][i % 2 * 2];
                        float2 dy = __half22float2(halves_of(*transposed<TILES>(pieces, row + i % 2 * 8, i / 2)));
                        total[i / 2][0] = fmaf(dy.x, activation_slope<A>(two[0]), total[i / 2][0]);
                        total[i / 2][1] = fmaf(dy.y, activation_slope<A>(two[1]), total[i / 2][1]);
                    }
                });
            }
        }
    }
    float *partial = partials + (size_t)blockIdx.x * (size_t)shape.out_channels + (size_t)channel;
    close_total(total, reinterpret_cast<float *>(patch), partial);
}

/* ---- the filter gradient ---- */

#define DY_PIECES (FILTER_CHANNELS / 8 + 1) /* 16-byte pieces between outputs: uses every bank once */

/* Starts to copy the gradients of a tile; clears those up to the last whole step. */
__device__ static __forceinline__ void copy_gradients(const StemShape &shape, const Bands &b, int number,
                                                      const __half *gradient, uint4 *to) {
    const int image = number / b.count, y0 = (number - image * b.count) * b.rows;
    const int count = min(b.rows, shape.out_height - y0) * shape.out_width;
    const __half *from = gradient + output_at(shape, (size_t)image, y0, 0, (int)blockIdx.y * FILTER_CHANNELS);
    const int padded = ceil_div((size_t)count, FILTER_STEP) * FILTER_STEP;
    for (int i = thread_index(); i < padded * (FILTER_CHANNELS / 8); i += THREADS) {
        int row = i / (FILTER_CHANNELS / 8), piece = i % (FILTER_CHANNELS / 8);
        bool beyond = row >= count;
        const __half *at = from + (beyond ? 0 : (size_t)row * (size_t)shape.out_channels) + piece * 8;
        cp_async_16(to + row * DY_PIECES + piece, at, beyond);
    }
}

/* sums += gradients^T x pixels over the warp's steps of a tile: 32 channels by a tile of 8 columns (a pixel's upper and
 * lower halves) for each position of the window. */
template <int KERNEL>
__device__ __forceinline__ void add_steps(const Bands &b, int out_width, int count, const uint4 *patch,
                                          const uint4 *given, float (&sums)[2][KERNEL * KERNEL][4]) {
    constexpr int WINDOW = KERNEL * KERNEL;
    const int warp = thread_index() / WARP, lane = thread_index() % WARP, matrix = lane / 8;
    given += (lane % 8 + matrix / 2 * 8) * DY_PIECES + warp % 2 * 4 + matrix % 2;
#pragma unroll 1
    for (int first = warp / 2 * FILTER_STEP; first < count; first += FILTER_STREAMS * FILTER_STEP) {
        int output = min(first + lane % 16, count - 1);
        const uint4 *pixel = patch + output + quotient(output, b.inverse) * (b.pitch - out_width);
        uint32_t a[2][4];
        ldmatrix_x4_trans(a[0], given + first * DY_PIECES);
        ldmatrix_x4_trans(a[1], given + first * DY_PIECES + 2);
#pragma unroll
        for (int position = 0; position < WINDOW; position += 2) {
            int own = min(position + lane / 16, WINDOW - 1);
            uint32_t pixels[4];
            ldmatrix_x4_trans(pixels, pixel + own / KERNEL * b.pitch + own % KERNEL);
#pragma unroll
            for (int m = 0; m < 2; m++) {
                mma_16816<__half>(sums[m][position], a[m], pixels[0], pixels[1]);
                if (position + 1 < WINDOW) mma_16816<__half>(sums[m][position + 1], a[m], pixels[2], pixels[3]);
            }
        }
    }
}

/* Adds the upper and lower halves together, then the streams, one after another. */
template <int KERNEL>
__device__ __forceinline__ void close_filters(float (&sums)[2][KERNEL * KERNEL][4], float *shared, float *partial) {
    constexpr int WINDOW = KERNEL * KERNEL, TAPS = 3 * WINDOW, ELEMS = FILTER_CHANNELS * TAPS;
    const int warp = thread_index() / WARP, lane = thread_index() % WARP, g = lane / 4, t = lane % 4;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 8 * WINDOW; i++) {
        int m = i / 4 % 2, position = i / 8, at = i % 4;
        float sum = sums[m][position][at];
        sum += __shfl_xor_sync(WHOLE_WARP, sum, 2);
        int channel = warp % 2 * 32 + m * 16 + at / 2 * 8 + g, colour = 2 * t + at % 2;
        int to = (channel / 8 * TAPS + 3 * position + colour) * 8 + channel % 8;
        if (colour < 3) shared[warp / 2 * ELEMS + to] = sum;
    }
    __syncthreads();
    for (int i = thread_index(); i < ELEMS; i += THREADS) {
        float sum = shared[i];
        for (int stream = 1; stream < FILTER_STREAMS; stream++) sum += shared[stream * ELEMS + i];
        partial[i] = sum;
    }
}

template <int KERNEL>
__global__ void __launch_bounds__(THREADS, 2)
    stem_matrix_filter_kernel(StemSource source, StemShape shape, Bands b, int room, const __half *gradient,
                              float *partials) {
    DYNAMIC_SHARED(uint4, given);
    uint4 *patch = given + 2 * room;
    const int tiles = b.images * b.count;
    float sums[2][KERNEL * KERNEL][4] = {};
    copy_gradients(shape, b, (int)blockIdx.x, gradient, given);
    cp_async_commit();
    for (int number = (int)blockIdx.x, buffer = 0; number < tiles; number += (int)gridDim.x, buffer ^= 1) {
        const int image = number / b.count, y0 = (number - image * b.count) * b.rows;
        const int count = min(b.rows, shape.out_height - y0) * shape.out_width, next = number + (int)gridDim.x;
        if (next < tiles) copy_gradients(shape, b, next, gradient, given + (buffer ^ 1) * room);
        cp_async_commit();
        stage_pixels(source, b, (size_t)image, y0, patch);
        cp_async_wait<1>();
        __syncthreads();
        add_steps<KERNEL>(b, shape.out_width, count, patch, given + buffer * room, sums);
        __syncthreads();
    }
    const int elems = FILTER_CHANNELS * KERNEL * KERNEL * 3;
    float *partial = partials + ((size_t)blockIdx.x * gridDim.y + blockIdx.y) * (size_t)elems;
    close_filters<KERNEL>(sums, reinterpret_cast<float *>(given), partial);
}

/* ---- launching ---- */

static int tiles_of(const StemShape *shape) {
    return shape->out_channels % 32 == 0 ? 4 : shape->out_channels % 24 == 0 ? 3 : 0;
}

static bool device_has_matrices(void) {
    int device = 0, major = 0;
    struct cudaFuncAttributes code;
    return cudaGetDevice(&device) == cudaSuccess &&
           cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
           10 * major >= MMA_LEAST_CAPABILITY &&
           cudaFuncGetAttributes(&code, reinterpret_cast<const void *>(stem_matrix_filter_kernel<3>)) == cudaSuccess &&
           code.ptxVersion >= MMA_LEAST_CAPABILITY;
}

/* At least one row of outputs fits into shared memory, and `quotient` is exact for the widths and indices. */
static bool fits(const StemShape *shape) {
    Bands one = bands_of(shape, 1);
    return shape->precision == PRECISION_FLOAT16 && shape->channels == 3 && shape->stride == 1 &&
           (shape->kernel == 2 || shape->kernel == 3) && shape->out_width > 1 && pixel_bytes(&one) <= PATCH_BYTES &&
           device_has_matrices();
}

extern "C" bool nn_cuda_stem_matrix_fits(const StemShape *shape) { return tiles_of(shape) > 0 && fits(shape); }

extern "C" bool nn_cuda_stem_matrix_fits_filters(const StemShape *shape) {
    return shape->activation == ACTIVATION_NONE && shape->out_channels % FILTER_CHANNELS == 0 &&
           shape->out_width <= FILTER_OUTPUTS && fits(shape);
}

/* As many rows as fit, but enough tiles for all multiprocessors. */
static Bands bands_for(const StemShape *shape) {
    int rows = shape->out_height, groups = shape->out_channels / (8 * tiles_of(shape));
    Bands b = bands_of(shape, rows);
    while (rows > 1 && (pixel_bytes(&b) > PATCH_BYTES ||
                        (rows >= 2 * LEAST_ROWS && (size_t)b.images * (size_t)(b.count * groups) < FEW_TILES))) {
        rows =
            ceil_divide(shape->out_height, b.count + 1) < rows ? ceil_divide(shape->out_height, b.count + 1) : rows - 1;
        b = bands_of(shape, rows);
    }
    return b;
}

/* Runs the statements with K and TILES as constants. */
#define DISPATCH_MATRIX(shape, ...)                                                                                    \
    do {                                                                                                               \
        if ((shape)->kernel == 2 && tiles_of(shape) == 3) {                                                            \
            constexpr int K = 2, TILES = 3;                                                                            \
            __VA_ARGS__                                                                                                \
        } else if ((shape)->kernel == 2) {                                                                             \
            constexpr int K = 2, TILES = 4;                                                                            \
            __VA_ARGS__                                                                                                \
        } else if (tiles_of(shape) == 3) {                                                                             \
            constexpr int K = 3, TILES = 3;                                                                            \
            __VA_ARGS__                                                                                                \
        } else {                                                                                                       \
            constexpr int K = 3, TILES = 4;                                                                            \
            __VA_ARGS__                                                                                                \
        }                                                                                                              \
    } while (0)

extern "C" Status nn_cuda_stem_matrix_forward(const StemShape *shape, const StemSource *source, StemFilters filters,
                                              void *output, DeviceStream *stream) {
    Bands b = bands_for(shape);
    int tiles = tiles_of(shape);
    dim3 grid((unsigned)(b.images * b.count), (unsigned)(shape->out_channels / (8 * tiles)));
    size_t shared = pixel_bytes(&b) + WARPS * TRANSPOSE_BYTES(tiles);
    DISPATCH_MATRIX(shape, {
        TRY(LAUNCH((stem_matrix_forward_kernel<K, TILES>), grid, THREADS, shared, stream, filters, *source, *shape, b,
                   (__half *)output));
    });
    return STATUS_OK;
}

static unsigned blocks_of(const Bands *b, unsigned most) {
    size_t tiles = (size_t)b->images * (size_t)b->count;
    return (unsigned)(tiles < most ? tiles : most);
}

extern "C" Status nn_cuda_stem_matrix_bias_gradient(const StemShape *shape, const StemSource *source,
                                                    StemFilters filters, const void *output_gradient, unsigned most,
                                                    float *partials, unsigned *blocks, DeviceStream *stream) {
    Bands b = bands_for(shape);
    int tiles = tiles_of(shape);
    *blocks = blocks_of(&b, most);
    dim3 grid(*blocks, (unsigned)(shape->out_channels / (8 * tiles)));
    size_t shared = pixel_bytes(&b) + WARPS * TRANSPOSE_BYTES(tiles);
    DISPATCH_MATRIX(shape, {
        TRY(LAUNCH((stem_matrix_bias_kernel<K, TILES>), grid, THREADS, shared, stream, filters, *source, *shape, b,
                   (const __half *)output_gradient, partials));
    });
    return STATUS_OK;
}

extern "C" Status nn_cuda_stem_matrix_filter_gradient(const StemShape *shape, const StemSource *source,
                                                      const void *output_gradient, unsigned most, float *partials,
                                                      unsigned *blocks, DeviceStream *stream) {
    Bands b = bands_of(shape, FILTER_OUTPUTS / shape->out_width);
    int room = ceil_divide(b.rows * shape->out_width, FILTER_STEP) * FILTER_STEP * DY_PIECES;
    size_t shared = pixel_bytes(&b) + (size_t)(2 * room) * sizeof(uint4);
    size_t sums = (size_t)(FILTER_STREAMS * FILTER_CHANNELS * shape->kernel * shape->kernel * 3) * sizeof(float);
    *blocks = blocks_of(&b, most);
    dim3 grid(*blocks, (unsigned)(shape->out_channels / FILTER_CHANNELS));
    if (shared < sums) shared = sums;
    if (shape->kernel == 2) {
        return LAUNCH(stem_matrix_filter_kernel<2>, grid, THREADS, shared, stream, *source, *shape, b, room,
                      (const __half *)output_gradient, partials);
    }
    return LAUNCH(stem_matrix_filter_kernel<3>, grid, THREADS, shared, stream, *source, *shape, b, room,
                  (const __half *)output_gradient, partials);
}
