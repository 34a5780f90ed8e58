/* Filter and bias gradients of the convolution that reads the images. The values before the activation are recomputed,
 * so they are never stored. Blocks loop over the tiles and sum in registers; a second kernel adds up the blocks.
 *
 * Block (x, y): tiles x, x + gridDim.x, ... as in stem.cuh. Threads compute the gradients before the activation of the
 * outputs that they would compute forward. For the filters these go to shared memory, [4 chains rows][width][8 groups],
 * and thread t then sums, with t' = t % units, 3 positions of the window from 3 (t' / groups) on by all image channels
 * by group t' % groups, over the outputs t / units, t / units + streams, ... Buffers: partials, float32, of the bias
 * (gridDim.x, chunks, 8 groups), of the filters (gridDim.x, chunks, taps, 8 groups), channels in the order of
 * packed_at; the gradients have the layouts of the weights and the bias. */
#include "nn/cuda/stem/stem.cuh"
#include "nn/cuda/storage.cuh"

extern "C" {
#include "nn/cuda/stem/matrix.h"
}

#define FILTER_PATCH_BYTES (10u << 10) /* if shared memory also has gradients */
#define POSITIONS 3                    /* of the filter's window, whose gradients one thread sums */
#define BIAS_THREADS 192               /* at most: a multiprocessor runs three such blocks of six warps at once */
#define BIAS_ROWS 2                    /* at once: more would take registers that other threads need */
#define BIAS_BLOCKS 3                  /* per multiprocessor */
#define FILTER_BLOCKS 2
#define SUM_LANES 32
#define SUM_SLICES 32

/* The output gradients of COUNT outputs, one below the other, from row `first` of the tile; zeros past the output. */
template <typename T, int COUNT>
__device__ __forceinline__ void load_rows(const StemShape &shape, const Corner &corner, const StemPlace &place,
                                          int first, const T *gradient, Lanes<T> (&to)[COUNT]) {
    const int x = corner.x + place.x;
#pragma unroll
    for (int row = 0; row < COUNT; row++) {
        int y = corner.y + first + row;
        to[row].clear();
        if (y < shape.out_height && x < shape.out_width) {
            to[row].load(gradient + output_at(shape, corner.image, y, x, place.channel));
        }
    }
}

/* The gradient before the activation. */
template <Activation A, typename T>
__device__ __forceinline__ void through_activation(const Lanes<T> &given, const float (&before)[LANES],
                                                   float (&to)[LANES]) {
    given.unpack(to);
#pragma unroll
    for (int lane = 0; lane < LANES; lane++) to[lane] *= activation_slope<A>(before[lane]);
}

template <Activation A, typename T, int COUNT>
__device__ __forceinline__ void add_rows(const Lanes<T> (&given)[COUNT], const float (&before)[COUNT][LANES],
                                         float (&total)[LANES]) {
#pragma unroll
    for (int row = 0; row < COUNT; row++) {
        float lanes[LANES];
        through_activation<A>(given[row], before[row], lanes);
#pragma unroll
        for (int lane = 0; lane < LANES; lane++) total[lane] += lanes[lane];
    }
}

__device__ static __forceinline__ void store_lanes(const float (&from)[LANES], int groups, float *packed) {
    *reinterpret_cast<float4 *>(packed) = make_float4(from[0], from[1], from[2], from[3]);
    *reinterpret_cast<float4 *>(packed + groups * 4) = make_float4(from[4], from[5], from[6], from[7]);
}

/* Adds up the block's bias gradients and writes them. All threads call it. */
__device__ static __forceinline__ void close_bias(const Tiling &t, const StemPlace &place, const float (&sums)[LANES],
                                                  float *shared, float *partial) {
    int width = t.groups * LANES;
    __syncthreads();
    if (place.chain < t.chains) {
        store_lanes(sums, t.groups, shared + (place.chain * t.width + place.x) * width + place.group * 4);
    }
    __syncthreads();
    for (int i = thread_index(); i < width; i += thread_count()) {
        float sum = 0;
        for (int column = 0; column < t.chains * t.width; column++) sum += shared[column * width + i];
        partial[i] = sum;
    }
}

template <typename T, int KERNEL, int STRIDE, int CHANNELS>
__global__ void __launch_bounds__(BIAS_THREADS, 3)
    stem_bias_kernel(StemFilters filters, StemSource source, StemShape shape, Tiling t, int tiles, const T *gradient,
                     float *partials) {
    grid_begin();
    DYNAMIC_SHARED(float4, patch);
    float *packed = reinterpret_cast<float *>(patch + t.patch_height * t.patch_width);
    const bool recompute = shape.activation != ACTIVATION_NONE;
    const int width = t.groups * LANES, stride = STRIDE > 0 ? STRIDE : shape.stride;
    float *shared = recompute ? packed + filter_elems(t) : packed;
    const StemPlace place = stem_place_of(t, shape.out_channels);
    float total[LANES] = {};
    if (recompute) stage_filters(filters, t, shape.out_channels, packed);
    for (int number = (int)blockIdx.x; number < tiles; number += (int)gridDim.x) {
        const Corner corner = corner_of(t, number);
        __syncthreads();
        if (recompute) stage_patch(source, t, corner, stride, patch);
        __syncthreads();
        int rows = min(t.height, shape.out_height - corner.y);
        for (int first = place.chain * ROWS; first < rows && place.active; first += t.chains * ROWS) {
#pragma unroll 1
            for (int row = first; row < first + ROWS; row += BIAS_ROWS) {
                Lanes<T> given[BIAS_ROWS];
                float before[BIAS_ROWS][LANES];
                load_rows(shape, corner, place, row, gradient, given);
                if (recompute) {
                    convolve<KERNEL, STRIDE, CHANNELS>(shape, t,
                                                       patch + row * stride * t.patch_width + place.x * stride,
                                                       packed + place.group * 4, before);
                }
                DISPATCH_ACTIVATION(shape.activation, A, { add_rows<A>(given, before, total); });
            }
        }
    }
    close_bias(t, place, total, shared, partials + ((size_t)blockIdx.x * gridDim.y + blockIdx.y) * (size_t)width);
}

/* The sums of a thread in the second half: POSITIONS of the window by all image channels by the LANES of a group, over
 * every `streams`-th output of the tile. */
typedef struct Unit {
    int group, position, stream, streams;
    int offsets[POSITIONS]; /* of the positions, in the patch */
    bool active;
} Unit;

__device__ static __forceinline__ Unit unit_of(const Tiling &t, int kernel, int out_channels) {
    Unit unit;
    int parts = (kernel * kernel + POSITIONS - 1) / POSITIONS, units = parts * t.groups;
    int within = thread_index() % units;
    unit.streams = thread_count() / units;
    unit.stream = thread_index() / units;
    unit.group = within % t.groups;
    unit.position = within / t.groups * POSITIONS;
    unit.active = unit.stream < unit.streams && ((int)blockIdx.y * t.groups + unit.group) * LANES < out_channels;
#pragma unroll
    for (int i = 0; i < POSITIONS; i++) {
        int position = unit.position + i;
        unit.offsets[i] = position < kernel * kernel ? position / kernel * t.patch_width + position % kernel : 0;
    }
    return unit;
}

/* sums += patch x gradients over the chains * ROWS rows whose gradients are in shared memory. */
template <int CHANNELS>
__device__ __forceinline__ void add_products(const Tiling &t, const Unit &unit, const float4 *patch, int stride,
                                             const float *gradients, float (&sums)[POSITIONS][CHANNELS][LANES]) {
    int step_y = unit.streams / t.width, step_x = unit.streams - step_y * t.width;
    int y = unit.stream / t.width, x = unit.stream - y * t.width;
#pragma unroll 1
    for (int pixel = unit.stream; pixel < t.chains * ROWS * t.width; pixel += unit.streams) {
        const float4 *from = patch + y * stride * t.patch_width + x * stride;
        float given[LANES];
        load_lanes(gradients + pixel * t.groups * LANES + unit.group * 4, t.groups, given);
#pragma unroll
        for (int i = 0; i < POSITIONS; i++) {
            float4 value = from[unit.offsets[i]];
#pragma unroll
            for (int channel = 0; channel < CHANNELS; channel++) {
#pragma unroll
                for (int lane = 0; lane < LANES; lane++) {
                    sums[i][channel][lane] = fmaf(component(value, channel), given[lane], sums[i][channel][lane]);
                }
            }
        }
        y += step_y, x += step_x;
        if (x >= t.width) x -= t.width, y++;
    }
}

/* Adds up the streams, one after another, and writes the block's sums. All threads call it. */
template <int CHANNELS>
__device__ __forceinline__ void close_weights(const Tiling &t, const Unit &unit, int kernel, int channels,
                                              const float (&sums)[POSITIONS][CHANNELS][LANES], float *shared,
                                              float *partial) {
    int width = t.groups * LANES;
    for (int stream = 0; stream < unit.streams; stream++) {
        __syncthreads();
        if (unit.stream != stream) continue;
#pragma unroll
        for (int i = 0; i < POSITIONS; i++) {
#pragma unroll
            for (int channel = 0; channel < CHANNELS; channel++) {
                if (unit.position + i >= kernel * kernel || channel >= channels) continue;
                float *to = shared + ((unit.position + i) * channels + channel) * width + unit.group * 4;
#pragma unroll
                for (int lane = 0; lane < LANES; lane++) {
                    float *at = to + lane / 4 * (t.groups * 4) + lane % 4;
                    *at = stream == 0 ? sums[i][channel][lane] : *at + sums[i][channel][lane];
                }
            }
        }
    }
    __syncthreads();
    for (int i = thread_index(); i < t.taps * width; i += thread_count()) partial[i] = shared[i];
}

/* Computes the gradients before the activation of a thread's ROWS rows into shared memory. With an activation, one row
 * after another, since the sums of the filters' gradients take most registers. */
template <typename T, int KERNEL, int STRIDE, int CHANNELS, bool RECOMPUTE>
__device__ __forceinline__ void stage_gradients(const StemShape &shape, const Tiling &t, const Corner &corner, int band,
                                                const float4 *patch, const float *packed, const T *gradient,
                                                float *to) {
    const StemPlace place = stem_place_of(t, shape.out_channels);
    const int stride = STRIDE > 0 ? STRIDE : shape.stride, width = t.groups * LANES;
    if (!place.active) return;
    to += (place.chain * ROWS * t.width + place.x) * width + place.group * 4;
    band += place.chain * ROWS;
    if constexpr (!RECOMPUTE) {
        Lanes<T> given[ROWS];
        load_rows(shape, corner, place, band, gradient, given);
#pragma unroll
        for (int row = 0; row < ROWS; row++) {
            float lanes[LANES];
            given[row].unpack(lanes);
            store_lanes(lanes, t.groups, to + row * t.width * width);
        }
    } else {
#pragma unroll 1
        for (int row = 0; row < ROWS; row++) {
            Lanes<T> given[1];
            float lanes[LANES], before[1][LANES];
            load_rows(shape, corner, place, band + row, gradient, given);
            convolve<KERNEL, STRIDE, CHANNELS>(shape, t,
                                               patch + (band + row) * stride * t.patch_width + place.x * stride,
                                               packed + place.group * 4, before);
            DISPATCH_ACTIVATION(shape.activation, A, { through_activation<A>(given[0], before[0], lanes); });
            store_lanes(lanes, t.groups, to + row * t.width * width);
        }
    }
}

/* The threads compute the gradients before the activation of some rows and then, divided differently, their products
 * with the patch. */
template <typename T, int KERNEL, int STRIDE, int CHANNELS, bool RECOMPUTE>
__global__ void __launch_bounds__(THREADS, CHANNELS > 0 && !RECOMPUTE ? 2 : 1)
    stem_filter_kernel(StemFilters filters, StemSource source, StemShape shape, Tiling t, int tiles, const T *gradient,
                       float *partials) {
    grid_begin();
    DYNAMIC_SHARED(float4, patch);
    constexpr int MOST_CHANNELS = CHANNELS > 0 ? CHANNELS : NN_MAX_IMAGE_CHANNELS;
    const int kernel = KERNEL > 0 ? KERNEL : shape.kernel, stride = STRIDE > 0 ? STRIDE : shape.stride;
    const int elems = t.taps * t.groups * LANES;
    float *packed = reinterpret_cast<float *>(patch + t.patch_height * t.patch_width);
    float *shared = RECOMPUTE ? packed + filter_elems(t) : packed;
    const Unit unit = unit_of(t, kernel, shape.out_channels);
    float sums[POSITIONS][MOST_CHANNELS][LANES] = {};
    if (RECOMPUTE) stage_filters(filters, t, shape.out_channels, packed);
    for (int number = (int)blockIdx.x; number < tiles; number += (int)gridDim.x) {
        const Corner corner = corner_of(t, number);
        int rows = min(t.height, shape.out_height - corner.y);
        __syncthreads();
        stage_patch(source, t, corner, stride, patch);
        for (int band = 0; band < rows; band += t.chains * ROWS) {
            __syncthreads();
            stage_gradients<T, KERNEL, STRIDE, CHANNELS, RECOMPUTE>(shape, t, corner, band, patch, packed, gradient,
                                                                    shared);
            __syncthreads();
            if (unit.active) add_products(t, unit, patch + band * stride * t.patch_width, stride, shared, sums);
        }
    }
    float *partial = partials + ((size_t)blockIdx.x * gridDim.y + blockIdx.y) * (size_t)elems;
    close_weights(t, unit, kernel, shape.channels, sums, shared, partial);
}

/* Sums over all blocks, in a fixed order: gradient[channel][tap] from `taps` rows of partial sums, times the factor.
 * Thread (i, j) of block x: element 32 x + i, the partial sums j, j + 32, ...; then the first row adds the slices. */
__global__ void stem_close_kernel(const float *partials, int blocks, Tiling t, int taps, int out_channels, float factor,
                                  float *gradient) {
    grid_begin();
    __shared__ float slices[SUM_SLICES][SUM_LANES];
    int lane = (int)threadIdx.x, slice = (int)threadIdx.y, width = t.groups * LANES;
    int elems = t.chunks * taps * width, i = (int)blockIdx.x * SUM_LANES + lane;
    float sum = 0;
    for (int block = slice; i < elems && block < blocks; block += SUM_SLICES) {
        sum += partials[(size_t)block * (size_t)elems + (size_t)i];
    }
    slices[slice][lane] = sum;
    __syncthreads();
    if (slice > 0 || i >= elems) return;
    for (int other = 1; other < SUM_SLICES; other++) sum += slices[other][lane];
    int chunk = i / (taps * width), tap = i / width % taps;
    int channel = chunk * width + channel_of(t.groups, i % width);
    if (channel < out_channels) gradient[(size_t)channel * (size_t)taps + (size_t)tap] = factor * sum;
}

static Status multiprocessor_count(unsigned *out) {
    int device = 0, multiprocessors = 0;
    cudaError_t error = cudaGetDevice(&device);
    if (error == cudaSuccess) {
        error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
    }
    if (error != cudaSuccess) FAIL(STATUS_CUDA, "getting the number of multiprocessors: %s", cudaGetErrorString(error));
    *out = (unsigned)multiprocessors;
    return STATUS_OK;
}

/* How many blocks loop over the tiles: enough to fill the device, few enough to add up. */
static Status grid_stride_blocks(const Tiling *t, unsigned each, unsigned *out) {
    unsigned multiprocessors = 0;
    TRY(multiprocessor_count(&multiprocessors));
    size_t most = (size_t)each * multiprocessors, tiles = tile_count(t);
    *out = (unsigned)(tiles < most ? tiles : most);
    return STATUS_OK;
}

static Status close_sums(const float *partials, unsigned blocks, const Tiling *t, int taps, const StemShape *shape,
                         float factor, float *gradient, DeviceStream *stream) {
    unsigned grid = (unsigned)ceil_div((size_t)(t->chunks * taps * t->groups * LANES), SUM_LANES);
    return LAUNCH_AFTER(stem_close_kernel, grid, dim3(SUM_LANES, SUM_SLICES), 0, stream, partials, (int)blocks, *t,
                        taps, shape->out_channels, factor, gradient);
}

/* The same for sums by eight channels: partials[block][channel / 8][tap][channel % 8]. */
static Status close_eights(const float *partials, unsigned blocks, int taps, const StemShape *shape, float factor,
                           float *gradient, DeviceStream *stream) {
    Tiling eights = {};
    eights.groups = 1, eights.chunks = shape->out_channels / LANES;
    return close_sums(partials, blocks, &eights, taps, shape, factor, gradient, stream);
}

static size_t packed_bytes(const StemShape *shape, const Tiling *t) {
    return shape->activation == ACTIVATION_NONE ? 0 : (size_t)filter_elems(*t) * sizeof(float);
}

extern "C" Status nn_cuda_stem_partial_elems(const StemShape *shape, size_t *out) {
    Tiling bias = tile(shape, PATCH_BYTES, BIAS_THREADS), filter = tile(shape, FILTER_PATCH_BYTES, THREADS);
    unsigned bias_blocks = 0, filter_blocks = 0;
    TRY(grid_stride_blocks(&bias, BIAS_BLOCKS, &bias_blocks));
    TRY(grid_stride_blocks(&filter, FILTER_BLOCKS, &filter_blocks));
    size_t bias_elems = (size_t)bias_blocks * (size_t)(bias.chunks * bias.groups * LANES);
    size_t filter_elems = (size_t)filter_blocks * (size_t)(filter.chunks * filter.groups * LANES * filter.taps);
    *out = bias_elems > filter_elems ? bias_elems : filter_elems;
    unsigned multiprocessors = 0;
    TRY(multiprocessor_count(&multiprocessors));
    size_t each = (size_t)shape->out_channels * (size_t)(shape->kernel * shape->kernel * shape->channels);
    size_t matrix_bias = STEM_MATRIX_BIAS_BLOCKS * (size_t)multiprocessors * (size_t)shape->out_channels;
    size_t matrix_filters = STEM_MATRIX_FILTER_BLOCKS * (size_t)multiprocessors * each;
    if (nn_cuda_stem_matrix_fits(shape) && *out < matrix_bias) *out = matrix_bias;
    if (nn_cuda_stem_matrix_fits_filters(shape) && *out < matrix_filters) *out = matrix_filters;
    return STATUS_OK;
}

extern "C" Status nn_cuda_stem_bias_gradient(const StemShape *shape, const StemSource *source, StemFilters filters,
                                             const void *output_gradient, float factor, float *partials,
                                             float *gradient, DeviceStream *stream) {
    unsigned blocks = 0, multiprocessors = 0;
    if (nn_cuda_stem_matrix_fits(shape) && shape->activation != ACTIVATION_NONE) {
        TRY(multiprocessor_count(&multiprocessors));
        TRY(nn_cuda_stem_matrix_bias_gradient(shape, source, filters, output_gradient,
                                              STEM_MATRIX_BIAS_BLOCKS * multiprocessors, partials, &blocks, stream));
        return close_eights(partials, blocks, 1, shape, factor, gradient, stream);
    }
    Tiling t = tile(shape, PATCH_BYTES, BIAS_THREADS);
    TRY(grid_stride_blocks(&t, BIAS_BLOCKS, &blocks));
    dim3 grid(blocks, (unsigned)t.chunks);
    size_t sums = (size_t)(t.chains * t.width * t.groups * LANES) * sizeof(float);
    size_t shared = patch_bytes(&t) + packed_bytes(shape, &t) + sums;
    DISPATCH_STORAGE(shape->precision, T, {
        DISPATCH_SHAPE(shape, {
            TRY(LAUNCH_AFTER((stem_bias_kernel<T, K, S, C>), grid, block_threads(&t), shared, stream, filters, *source,
                             *shape, t, (int)tile_count(&t), (const T *)output_gradient, partials));
        });
    });
    return close_sums(partials, blocks, &t, 1, shape, factor, gradient, stream);
}

/* Enough threads for the outputs and for all of the filters' sums. */
static int filter_threads(const StemShape *shape, const Tiling *t) {
    int threads = block_threads(t), units = ceil_divide(shape->kernel * shape->kernel, POSITIONS) * t->groups;
    return units > threads ? ceil_divide(units, WARP) * WARP : threads;
}

extern "C" Status nn_cuda_stem_filter_gradient(const StemShape *shape, const StemSource *source, StemFilters filters,
                                               const void *output_gradient, float factor, float *partials,
                                               float *gradient, DeviceStream *stream) {
    unsigned blocks = 0, multiprocessors = 0;
    if (nn_cuda_stem_matrix_fits_filters(shape)) {
        TRY(multiprocessor_count(&multiprocessors));
        TRY(nn_cuda_stem_matrix_filter_gradient(
            shape, source, output_gradient, STEM_MATRIX_FILTER_BLOCKS * multiprocessors, partials, &blocks, stream));
        return close_eights(partials, blocks, shape->kernel * shape->kernel * shape->channels, shape, factor, gradient,
                            stream);
    }
    Tiling t = tile(shape, FILTER_PATCH_BYTES, THREADS);
    TRY(grid_stride_blocks(&t, FILTER_BLOCKS, &blocks));
    dim3 grid(blocks, (unsigned)t.chunks);
    int threads = filter_threads(shape, &t);
    int gradients = t.chains * ROWS * t.width, room = gradients > t.taps ? gradients : t.taps;
    size_t sums = (size_t)(room * t.groups * LANES) * sizeof(float);
    size_t shared = patch_bytes(&t) + packed_bytes(shape, &t) + sums;
    DISPATCH_STORAGE(shape->precision, T, {
        DISPATCH_SHAPE(shape, {
            if (shape->activation == ACTIVATION_NONE) {
                TRY(LAUNCH_AFTER((stem_filter_kernel<T, K, S, C, false>), grid, threads, shared, stream, filters,
                                 *source, *shape, t, (int)tile_count(&t), (const T *)output_gradient, partials));
            } else {
                TRY(LAUNCH_AFTER((stem_filter_kernel<T, K, S, C, true>), grid, threads, shared, stream, filters,
                                 *source, *shape, t, (int)tile_count(&t), (const T *)output_gradient, partials));
            }
        });
    });
    return close_sums(partials, blocks, &t, t.taps, shape, factor, gradient, stream);
}
