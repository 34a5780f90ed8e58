/* What the kernels of the convolution that reads the images share. A block stages a tile of one image in shared memory
 * as four floats per pixel, straight from the batch (bytes or floats, either layout, mirrored or shifted), together
 * with the filters. Each thread computes ROWS rows of 8 channels at one column: neighbouring threads write neighbouring
 * 16-byte pieces.
 *
 * Block (x, y): tile x, counted along its columns, bands and images, and the channels of chunk y. Thread t: the 8
 * channels of group t % groups, column t / groups % width, rows 4 (t / groups / width) to + 3 of the tile, then every 4
 * chains. Buffers: images in any layout (see StemSource); weights (out_channels, kernel, kernel, channels), bias
 * (out_channels), float32; the output and its gradient (images, out_height, out_width, out_channels) of type T. Shared
 * memory: patch [patch_height][patch_width] of float4; packed [taps + 1][8 groups] of float32, the bias last. */
#ifndef CGXFFCV_NN_CUDA_STEM_STEM_CUH
#define CGXFFCV_NN_CUDA_STEM_STEM_CUH

#include "nn/cuda/activations.cuh"

extern "C" {
#include "nn/cuda/stem/stem.h"
}

#define THREADS 256 /* at most */
#define ROWS 4
#define LANES 8 /* output channels of a thread */
#define PATCH_BYTES (20u << 10)
#define FILTER_BYTES (32u << 10)

/* How the work is divided: tiles of `height` x `width` outputs by `groups` groups of LANES channels; a block computes
 * `chains` x ROWS rows at a time. */
typedef struct Tiling {
    int groups, chunks; /* groups in a block; blocks that together cover all channels */
    int width, height, columns, bands;
    int chains;
    int patch_width, patch_height;
    int taps; /* kernel * kernel * channels */
    int images;
} Tiling;

static inline int ceil_divide(int value, int divisor) { return (value + divisor - 1) / divisor; }

static inline size_t patch_bytes(const Tiling *t) {
    return (size_t)t->patch_height * (size_t)t->patch_width * sizeof(float4);
}

static inline void set_height(const StemShape *shape, int height, Tiling *t) {
    int step = t->chains * ROWS;
    t->height = ceil_divide(height, step) * step;
    t->bands = ceil_divide(shape->out_height, t->height);
    t->patch_height = (t->height - 1) * shape->stride + shape->kernel;
    t->patch_width = (t->width - 1) * shape->stride + shape->kernel;
}

static inline void set_width(const StemShape *shape, int most, int threads, Tiling *t) {
    t->columns = ceil_divide(shape->out_width, most);
    t->width = ceil_divide(shape->out_width, t->columns);
    int chains = threads / (t->groups * t->width), enough = ceil_divide(shape->out_height, ROWS);
    t->chains = chains < enough ? chains : enough;
}

/* Patches of at most `limit` bytes, blocks of at most `threads` threads. */
static inline Tiling tile(const StemShape *shape, size_t limit, int threads) {
    int window = shape->kernel * shape->kernel, groups = shape->out_channels / LANES;
    Tiling t = {};
    t.taps = window * shape->channels;
    t.images = shape->images;
    int most = (int)(FILTER_BYTES / ((size_t)t.taps * LANES * sizeof(float)));
    if (most > 8) most = 8;
    t.chunks = ceil_divide(groups, most);
    t.groups = ceil_divide(groups, t.chunks);
    for (int width = threads / t.groups;; width = (width + 1) / 2) {
        set_width(shape, width, threads, &t);
        set_height(shape, shape->out_height, &t);
        while (patch_bytes(&t) > limit && t.height > t.chains * ROWS) {
            int even = ceil_divide(shape->out_height, t.bands + 1), less = t.height - t.chains * ROWS;
            set_height(shape, even < less ? even : less, &t); /* rounding up could leave the height unchanged */
        }
        if (patch_bytes(&t) <= limit || width == 1) break;
    }
    while (patch_bytes(&t) > limit && t.chains > 1) {
        t.chains--;
        set_height(shape, 1, &t);
    }
    return t;
}

static inline size_t tile_count(const Tiling *t) { return (size_t)t->images * (size_t)t->bands * (size_t)t->columns; }

static inline int block_threads(const Tiling *t) {
    int needed = t->groups * t->width * t->chains;
    return ceil_divide(needed, WARP) * WARP;
}

/* ---- staging ---- */

__device__ static __forceinline__ int reflect(int at, int size) {
    if (size == 1) return 0;
    if (at < 0) at = -at;
    return at < size ? at : 2 * (size - 1) - at;
}

__device__ static __forceinline__ float element(const StemSource &source, size_t at, int channel) {
    if (source.type == PIXELS_U8) {
        return ((float)((const uint8_t *)source.data)[at] - source.mean[channel]) * source.factor[channel];
    }
    if (source.type == PIXELS_F32) return ((const float *)source.data)[at];
    return to_float(((const __nv_bfloat16 *)source.data)[at]);
}

/* Pixel (y, x) of the image with its border; zeros outside. */
__device__ static __forceinline__ float4 fetch(const StemSource &source, size_t image, int y, int x) {
    float4 pixel = {0, 0, 0, 0};
    y -= source.border, x -= source.border;
    if (y < 0 || y >= source.height || x < 0 || x >= source.width) return pixel;
    y = reflect(y + source.shift_y, source.height);
    x = reflect((source.mirror ? source.width - 1 - x : x) + source.shift_x, source.width);
    size_t at = image * (size_t)(source.height * source.width * source.channels);
    at += (size_t)(y * source.row + x * source.column);
    pixel.x = element(source, at, 0);
    if (source.channels > 1) pixel.y = element(source, at + (size_t)source.channel, 1);
    if (source.channels > 2) pixel.z = element(source, at + 2 * (size_t)source.channel, 2);
    if (source.channels > 3) pixel.w = element(source, at + 3 * (size_t)source.channel, 3);
    return pixel;
}

/* The first output of a tile. */
typedef struct Corner {
    size_t image;
    int y, x;
} Corner;

__device__ static __forceinline__ Corner corner_of(const Tiling &t, int number) {
    int each = t.bands * t.columns, image = number / each;
    int within = number - image * each, band = within / t.columns;
    return {(size_t)image, band * t.height, (within - band * t.columns) * t.width};
}

__device__ static __forceinline__ void stage_patch(const StemSource &source, const Tiling &t, const Corner &corner,
                                                   int stride, float4 *patch) {
    int threads = thread_count(), thread = thread_index();
    int y = thread / t.patch_width, x = thread - y * t.patch_width;
    int step_y = threads / t.patch_width, step_x = threads - step_y * t.patch_width;
    int y0 = corner.y * stride, x0 = corner.x * stride;
    for (int i = thread; i < t.patch_height * t.patch_width; i += threads) {
        patch[i] = fetch(source, corner.image, y0 + y, x0 + x);
        y += step_y, x += step_x;
        if (x >= t.patch_width) x -= t.patch_width, y++;
    }
}

/* The layout of the 8 channels of each group, for weights and gradients in shared memory: the first four of every
 * group, then the others, so that the 16-byte accesses of neighbouring groups touch all banks. */
__device__ static __forceinline__ int packed_at(int groups, int channel) {
    int lane = channel % LANES;
    return lane / 4 * (groups * 4) + channel / LANES * 4 + lane % 4;
}

__device__ static __forceinline__ int channel_of(int groups, int at) {
    return at % (groups * 4) / 4 * LANES + at / (groups * 4) * 4 + at % 4;
}

/* packed[tap][channel], then the bias; zero past the last channel. */
__device__ static __forceinline__ void stage_filters(const StemFilters &filters, const Tiling &t, int out_channels,
                                                     float *packed) {
    int width = t.groups * LANES, first = (int)blockIdx.y * width;
    for (int i = thread_index(); i < (t.taps + 1) * width; i += thread_count()) {
        int number = i / (t.taps + 1), tap = i - number * (t.taps + 1), channel = first + number;
        float value = 0.0f;
        if (channel < out_channels && tap < t.taps) {
            value = filters.weights[(size_t)channel * (size_t)t.taps + (size_t)tap];
        } else if (channel < out_channels && filters.bias != NULL) {
            value = filters.bias[channel];
        }
        packed[tap * width + packed_at(t.groups, number)] = value;
    }
}

/* The number of floats in `packed`. */
__host__ __device__ static __forceinline__ int filter_elems(const Tiling &t) { return (t.taps + 1) * t.groups * LANES; }

/* ---- the convolution ---- */

/* A thread's place in its tile. */
typedef struct StemPlace {
    int group, x, chain;
    int channel; /* the first of its 8, in the whole output */
    bool active;
} StemPlace;

__device__ static __forceinline__ StemPlace stem_place_of(const Tiling &t, int out_channels) {
    StemPlace place;
    int rest = thread_index() / t.groups;
    place.group = thread_index() - rest * t.groups;
    place.chain = rest / t.width;
    place.x = rest - place.chain * t.width;
    place.channel = ((int)blockIdx.y * t.groups + place.group) * LANES;
    place.active = place.chain < t.chains && place.channel < out_channels;
    return place;
}

__device__ static __forceinline__ void load_lanes(const float *packed, int groups, float (&to)[LANES]) {
    float4 low = *reinterpret_cast<const float4 *>(packed),
           high = *reinterpret_cast<const float4 *>(packed + groups * 4);
    to[0] = low.x, to[1] = low.y, to[2] = low.z, to[3] = low.w;
    to[4] = high.x, to[5] = high.y, to[6] = high.z, to[7] = high.w;
}

__device__ static __forceinline__ float component(const float4 &pixel, int channel) {
    return channel == 0 ? pixel.x : channel == 1 ? pixel.y : channel == 2 ? pixel.z : pixel.w;
}

/* COUNT outputs, one below the other: bias + filters * patch at `from`. Constants that are 0 come from the shape. */
template <int KERNEL, int STRIDE, int CHANNELS, int COUNT>
__device__ __forceinline__ void convolve(const StemShape &shape, const Tiling &t, const float4 *from,
                                         const float *packed, float (&sums)[COUNT][LANES]) {
    const int kernel = KERNEL > 0 ? KERNEL : shape.kernel, stride = STRIDE > 0 ? STRIDE : shape.stride;
    const int channels = CHANNELS > 0 ? CHANNELS : shape.channels;
#pragma unroll
    for (int row = 0; row < COUNT; row++) {
        load_lanes(packed + t.taps * t.groups * LANES, t.groups, sums[row]);
    }
#pragma unroll 1 /* else all weights would be loaded into registers, of which there are too few */
    for (int kx = 0; kx < kernel; kx++) {
#pragma unroll(KERNEL > 0 ? KERNEL : 1)
        for (int ky = 0; ky < kernel; ky++) {
            float4 pixels[COUNT];
#pragma unroll
            for (int row = 0; row < COUNT; row++) pixels[row] = from[(row * stride + ky) * t.patch_width + kx];
            const float *tap = packed + (ky * kernel + kx) * channels * t.groups * LANES;
#pragma unroll
            for (int channel = 0; channel < NN_MAX_IMAGE_CHANNELS; channel++) {
                if (channel >= channels) break;
                float weights[LANES];
                load_lanes(tap + channel * t.groups * LANES, t.groups, weights);
#pragma unroll
                for (int row = 0; row < COUNT; row++) {
                    float x = component(pixels[row], channel);
#pragma unroll
                    for (int lane = 0; lane < LANES; lane++) sums[row][lane] = fmaf(x, weights[lane], sums[row][lane]);
                }
            }
        }
    }
}

/* 8 values of T, in pieces of 16 bytes. */
template <typename T> struct Lanes {
    static constexpr int PIECES = LANES / Pack<T>::PACK;
    uint4 pieces[PIECES];

    __device__ __forceinline__ void clear(void) {
#pragma unroll
        for (int i = 0; i < PIECES; i++) pieces[i] = make_uint4(0, 0, 0, 0);
    }
    __device__ __forceinline__ void load(const T *from) {
#pragma unroll
        for (int i = 0; i < PIECES; i++) pieces[i] = __ldg(reinterpret_cast<const uint4 *>(from) + i);
    }
    __device__ __forceinline__ void unpack(float (&to)[LANES]) const {
#pragma unroll
        for (int i = 0; i < PIECES; i++) {
            Pack<T> pack = pack_of_bits<T>(pieces[i]);
#pragma unroll
            for (int lane = 0; lane < Pack<T>::PACK; lane++) to[i * Pack<T>::PACK + lane] = pack.get(lane);
        }
    }
};

template <typename T> __device__ __forceinline__ void store_row(T *to, const float (&from)[LANES]) {
#pragma unroll
    for (int i = 0; i < Lanes<T>::PIECES; i++) {
        float piece[Pack<T>::PACK];
#pragma unroll
        for (int lane = 0; lane < Pack<T>::PACK; lane++) piece[lane] = from[i * Pack<T>::PACK + lane];
        store_floats(to + i * Pack<T>::PACK, piece);
    }
}

/* The offset, in elements, of a thread's first channel of output (y, x). */
__device__ static __forceinline__ size_t output_at(const StemShape &shape, size_t image, int y, int x, int channel) {
    size_t pixel = (image * (size_t)shape.out_height + (size_t)y) * (size_t)shape.out_width + (size_t)x;
    return pixel * (size_t)shape.out_channels + (size_t)channel;
}

/* Runs the statements with K, S, C as constants for the shapes of the known recipes; else 0, for "from the shape". */
#define DISPATCH_SHAPE(shape, ...)                                                                                     \
    do {                                                                                                               \
        if ((shape)->kernel == 2 && (shape)->stride == 1 && (shape)->channels == 3) {                                  \
            constexpr int K = 2, S = 1, C = 3;                                                                         \
            __VA_ARGS__                                                                                                \
        } else if ((shape)->kernel == 3 && (shape)->stride == 1 && (shape)->channels == 3) {                           \
            constexpr int K = 3, S = 1, C = 3;                                                                         \
            __VA_ARGS__                                                                                                \
        } else {                                                                                                       \
            constexpr int K = 0, S = 0, C = 0;                                                                         \
            __VA_ARGS__                                                                                                \
        }                                                                                                              \
    } while (0)

#endif
