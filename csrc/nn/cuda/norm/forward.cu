/* Forward half of the norms: statistics with the pool before them, and the normalised, activated output.
 *
 * The division of work is in grid.cuh; an item is a pixel or, with a pool, a window. Buffers: input and residual, maps
 * of T; pooled and output likewise, with height / pool rows and width / pool columns after a pool; index, uint8, in the
 * pooled maps' shape; running means and variances (channels), float32. */
#include "nn/cuda/norm/close.cuh"
#include "nn/cuda/norm/values.cuh"
#include "nn/cuda/storage.cuh"

/* ---- statistics ---- */

/* Merges the means and squared deviations of the block's rows of threads in pairs (Chan, Golub, LeVeque), into the
 * first row. All threads call it. */
template <int PACK>
__device__ __forceinline__ void merge_rows(float &count, float (&mean)[PACK], float (&deviations)[PACK]) {
    __shared__ float counts[SUM_THREADS];
    __shared__ __align__(16) float means[SUM_THREADS * PACK], squares[SUM_THREADS * PACK];
    int thread = thread_index();
    for (int rows = (int)blockDim.y; rows > 1;) {
        int half = (rows + 1) / 2, row = (int)threadIdx.y, partner = thread + half * (int)blockDim.x;
        if (row >= half && row < rows) {
            counts[thread] = count;
            store_row(means, thread * PACK, mean);
            store_row(squares, thread * PACK, deviations);
        }
        __syncthreads();
        if (row + half < rows && counts[partner] > 0) {
            float other = counts[partner], total = count + other, share = other / total;
            float other_mean[PACK], other_deviations[PACK];
            load_row(means, partner * PACK, other_mean);
            load_row(squares, partner * PACK, other_deviations);
#pragma unroll
            for (int i = 0; i < PACK; i++) {
                float apart = other_mean[i] - mean[i];
                deviations[i] += other_deviations[i] + apart * apart * count * share;
                mean[i] = fmaf(apart, share, mean[i]);
            }
            count = total;
        }
        rows = half;
    }
}

/* Means are relative to `zero`, one element of the channel, which keeps more digits when they are far from 0. */
template <typename T>
__device__ __forceinline__ void store_moments(const Moments<Pack<T>::PACK> &moments, const Pack<T> &zero,
                                              float *partials, int channels, int channel) {
    constexpr int PACK = Pack<T>::PACK;
    float count = (float)moments.count, share = moments.count > 0 ? 1.0f / count : 0.0f;
    float from[PACK], mean[PACK], deviations[PACK];
#pragma unroll
    for (int i = 0; i < PACK; i++) {
        from[i] = zero.get(i);
        mean[i] = fmaf(moments.sum[i], share, moments.origin[i] - from[i]);
        deviations[i] = fmaxf(moments.square[i] - moments.sum[i] * moments.sum[i] * share, 0.0f);
    }
    merge_rows(count, mean, deviations);
    if (threadIdx.y > 0 || channel >= channels) return;
    store_row(partial_row(partials, channels, blockIdx.x, 0), channel, mean);
    store_row(partial_row(partials, channels, blockIdx.x, 1), channel, deviations);
    if (blockIdx.x == 0) store_row(partial_zero(partials, channels, gridDim.x), channel, from);
    if (threadIdx.x == 0) *partial_count(partials, channels, gridDim.x, blockIdx.y * gridDim.x + blockIdx.x) = count;
}

/* Stores the block's part of the statistics; the last block finishes them. */
template <typename T>
__device__ __forceinline__ void close_moments(const Moments<Pack<T>::PACK> &moments, const Pack<T> &zero,
                                              const NormClose &close, int channels, int channel) {
    store_moments<T>(moments, zero, close.partials, channels, channel);
    if (!last_to_arrive(partial_arrivals(close.partials, channels) + blockIdx.y)) return;
    __shared__ double shared[STATISTICS_SUMS * SUM_THREADS];
    const float *counts = partial_count(close.partials, channels, gridDim.x, blockIdx.y * gridDim.x);
    finish_statistics(close, channels, (int)gridDim.x, counts, tile_column<T>(channels), shared);
}

template <typename T>
__global__ void __launch_bounds__(SUM_THREADS, 2) norm_statistics_kernel(const T *input, Items items, NormClose close) {
    grid_begin();
    constexpr int PACK = Pack<T>::PACK, UNROLL = STATISTICS_UNROLL;
    int channel = first_channel<T>(), channels = items.channels;
    Moments<PACK> moments;
    Pack<T> zero;
    if (channel < channels) zero = load_pack(input + channel);
    for (uint32_t chunk = blockIdx.x; chunk < items.chunks && channel < channels; chunk += gridDim.x) {
        uint32_t item = first_item<UNROLL>(items, chunk, true);
        Pack<T> packs[UNROLL];
#pragma unroll
        for (int k = 0; k < UNROLL; k++) {
            uint32_t at = item + (uint32_t)k * blockDim.y;
            if (at < items.count) packs[k] = load_pack(input + (size_t)at * (size_t)channels + channel);
        }
#pragma unroll
        for (int k = 0; k < UNROLL; k++) {
            if (item + (uint32_t)k * blockDim.y >= items.count) continue;
            float x[PACK];
#pragma unroll
            for (int i = 0; i < PACK; i++) x[i] = packs[k].get(i);
            if (k == 0) moments.begin(x);
            moments.add(x);
        }
    }
    close_moments<T>(moments, zero, close, channels, channel);
}

/* The largest of the window's elements, the first of equal ones, and its index. */
template <typename T, int ELEMENTS>
__device__ __forceinline__ void pool_packs(const Pack<T> (&packs)[ELEMENTS], float (&best)[Pack<T>::PACK],
                                           Bytes<Pack<T>::PACK> &where) {
#pragma unroll
    for (int word = 0; word < Pack<T>::PACK / 4; word++) where.words[word] = 0;
#pragma unroll
    for (int i = 0; i < Pack<T>::PACK; i++) {
        uint32_t element = 0;
        best[i] = packs[0].get(i);
#pragma unroll
        for (int e = 1; e < ELEMENTS; e++) {
            float x = packs[e].get(i);
            bool larger = x > best[i];
            best[i] = larger ? x : best[i];
            element = larger ? (uint32_t)e << (8 * (i % 4)) : element;
        }
        where.words[i / 4] |= element;
    }
}

template <typename T, int POOL>
__device__ __forceinline__ void load_window(const T *input, const Window &window, uint32_t width, int channels,
                                            int channel, Pack<T> (&packs)[POOL * POOL]) {
    const T *from = input + (size_t)window.first * (size_t)channels + channel;
    size_t row = (size_t)width * (size_t)channels;
#pragma unroll
    for (int e = 0; e < POOL * POOL; e++) {
        packs[e] = load_pack_streaming(from + (size_t)(e / POOL) * row + (size_t)(e % POOL * channels));
    }
}

template <typename T, int POOL>
__global__ void __launch_bounds__(SUM_THREADS, POOL == 2 ? 2 : 1)
    norm_pool_statistics_kernel(const T *input, Items items, Windows windows, T *pooled, uint8_t *index,
                                NormClose close) {
    grid_begin();
    constexpr int PACK = Pack<T>::PACK;
    int channel = first_channel<T>(), channels = items.channels;
    Moments<PACK> moments;
    Pack<T> zero;
    if (channel < channels) zero = load_pack(input + channel);
    for (uint32_t chunk = blockIdx.x; chunk < items.chunks && channel < channels; chunk += gridDim.x) {
        uint32_t item = first_item<1>(items, chunk, true);
        if (item >= items.count) continue;
        Pack<T> packs[POOL * POOL];
        load_window<T, POOL>(input, find_window<POOL>(windows, item), windows.width, channels, channel, packs);
        float best[PACK];
        Bytes<PACK> where;
        pool_packs(packs, best, where);
        size_t to = (size_t)item * (size_t)channels + (size_t)channel;
        store_floats(pooled + to, best);
        store_bytes(index + to, where);
        moments.begin(best);
        moments.add(best);
    }
    close_moments<T>(moments, zero, close, channels, channel);
}

/* ---- output ---- */

#define APPLY_UNROLL 2

template <typename T, bool RESIDUAL>
__global__ void __launch_bounds__(MAP_THREADS, RESIDUAL ? 3 : 4)
    norm_apply_kernel(NormApply args, Items items, Activation activation) {
    grid_begin();
    constexpr int PACK = Pack<T>::PACK, UNROLL = APPLY_UNROLL;
    int channel = first_channel<T>(), channels = items.channels;
    if (channel >= channels) return;
    const T *input = static_cast<const T *>(args.input) + channel;
    const T *residual = static_cast<const T *>(args.residual) + (RESIDUAL ? channel : 0);
    T *output = static_cast<T *>(args.output) + channel;
    Normalise<T> norm;
    norm.load(args.terms, channels, channel);
    for (uint32_t chunk = blockIdx.x; chunk < items.chunks; chunk += gridDim.x) {
        uint32_t item = first_item<UNROLL>(items, chunk, false);
        Pack<T> packs[UNROLL], added[RESIDUAL ? UNROLL : 1];
#pragma unroll
        for (int k = 0; k < UNROLL; k++) {
            uint32_t at = item + (uint32_t)k * blockDim.y;
            if (at >= items.count) continue;
            packs[k] = load_pack_streaming(input + (size_t)at * (size_t)channels);
            if (RESIDUAL) added[k] = load_pack(residual + (size_t)at * (size_t)channels);
        }
#pragma unroll
        for (int k = 0; k < UNROLL; k++) {
            uint32_t at = item + (uint32_t)k * blockDim.y;
            if (at >= items.count) continue;
            float y[PACK];
#pragma unroll
            for (int i = 0; i < PACK; i++) y[i] = norm.z(packs[k].get(i), i);
            if (RESIDUAL && args.place == RESIDUAL_BEFORE_ACTIVATION) add_pack(added[RESIDUAL ? k : 0], y);
            activate_all(activation, y);
            if (RESIDUAL && args.place == RESIDUAL_AFTER_ACTIVATION) add_pack(added[RESIDUAL ? k : 0], y);
            store_floats(output + (size_t)at * (size_t)channels, y);
        }
    }
}

/* The pool before the norm, and everything after it. */
template <typename T, int POOL>
__global__ void __launch_bounds__(MAP_THREADS, POOL == 2 ? 3 : 1)
    norm_of_pool_apply_kernel(NormApply args, Items items, Windows windows, Activation activation) {
    grid_begin();
    constexpr int PACK = Pack<T>::PACK;
    int channel = first_channel<T>(), channels = items.channels;
    if (channel >= channels) return;
    const T *residual = static_cast<const T *>(args.residual);
    Normalise<T> norm;
    norm.load(args.terms, channels, channel);
    for (uint32_t chunk = blockIdx.x; chunk < items.chunks; chunk += gridDim.x) {
        uint32_t item = first_item<1>(items, chunk, false);
        if (item >= items.count) continue;
        size_t to = (size_t)item * (size_t)channels + (size_t)channel;
        Pack<T> packs[POOL * POOL], added;
        if (residual != nullptr) added = load_pack(residual + to);
        load_window<T, POOL>(static_cast<const T *>(args.input), find_window<POOL>(windows, item), windows.width,
                             channels, channel, packs);
        float y[PACK];
        Bytes<PACK> unused;
        pool_packs(packs, y, unused);
#pragma unroll
        for (int i = 0; i < PACK; i++) y[i] = norm.z(y[i], i);
        if (args.place == RESIDUAL_BEFORE_ACTIVATION) add_pack(added, y);
        activate_all(activation, y);
        if (args.place == RESIDUAL_AFTER_ACTIVATION) add_pack(added, y);
        store_floats(static_cast<T *>(args.output) + to, y);
    }
}

/* The pool after the activation, over values rounded to the storage type. */
template <typename T, int POOL>
__global__ void __launch_bounds__(MAP_THREADS, POOL == 2 ? 3 : 1)
    norm_then_pool_apply_kernel(NormApply args, Items items, Windows windows, Activation activation) {
    grid_begin();
    constexpr int PACK = Pack<T>::PACK;
    int channel = first_channel<T>(), channels = items.channels;
    if (channel >= channels) return;
    Normalise<T> norm;
    norm.load(args.terms, channels, channel);
    for (uint32_t chunk = blockIdx.x; chunk < items.chunks; chunk += gridDim.x) {
        uint32_t item = first_item<1>(items, chunk, false);
        if (item >= items.count) continue;
        Pack<T> packs[POOL * POOL];
        load_window<T, POOL>(static_cast<const T *>(args.input), find_window<POOL>(windows, item), windows.width,
                             channels, channel, packs);
#pragma unroll
        for (int e = 0; e < POOL * POOL; e++) {
            float y[PACK];
#pragma unroll
            for (int i = 0; i < PACK; i++) y[i] = norm.z(packs[e].get(i), i);
            activate_all(activation, y);
#pragma unroll
            for (int i = 0; i < PACK; i++) packs[e].set(i, y[i]);
        }
        float best[PACK];
        Bytes<PACK> where;
        pool_packs(packs, best, where);
        size_t to = (size_t)item * (size_t)channels + (size_t)channel;
        store_floats(static_cast<T *>(args.output) + to, best);
        if (args.index != nullptr) store_bytes(args.index + to, where);
    }
}

/* ---- launchers ---- */

extern "C" Status nn_cuda_norm_statistics(const NormShape *shape, const void *input, void *pooled, uint8_t *index,
                                          NormClose close, DeviceStream *stream) {
    Grid grid = statistics_grid(shape);
    DISPATCH_STORAGE(shape->precision, T, {
        const T *from = static_cast<const T *>(input);
        T *to = static_cast<T *>(pooled);
        if (shape->pool_place != POOL_BEFORE_NORM) {
            return LAUNCH_AFTER(norm_statistics_kernel<T>, grid.blocks, grid.threads, 0, stream, from, grid.items,
                                close);
        }
        Windows windows = make_windows(shape, false);
        if (shape->pool == 2) {
            return LAUNCH_AFTER((norm_pool_statistics_kernel<T, 2>), grid.blocks, grid.threads, 0, stream, from,
                                grid.items, windows, to, index, close);
        }
        return LAUNCH_AFTER((norm_pool_statistics_kernel<T, 3>), grid.blocks, grid.threads, 0, stream, from, grid.items,
                            windows, to, index, close);
    });
    return STATUS_OK;
}

extern "C" Status nn_cuda_norm_apply(const NormShape *shape, NormApply args, DeviceStream *stream) {
    bool residual = args.residual != nullptr;
    Grid grid = make_grid(shape, saved_pixels_of(shape), APPLY_UNROLL, MAP_THREADS, MAP_BLOCKS);
    DISPATCH_STORAGE(shape->precision, T, {
        if (residual) {
            return LAUNCH_AFTER((norm_apply_kernel<T, true>), grid.blocks, grid.threads, 0, stream, args, grid.items,
                                shape->activation);
        }
        return LAUNCH_AFTER((norm_apply_kernel<T, false>), grid.blocks, grid.threads, 0, stream, args, grid.items,
                            shape->activation);
    });
    return STATUS_OK;
}

extern "C" Status nn_cuda_norm_apply_pooled(const NormShape *shape, NormApply args, DeviceStream *stream) {
    Grid grid = make_grid(shape, pooled_pixels_of(shape), 1, MAP_THREADS, MAP_BLOCKS);
    Windows windows = make_windows(shape, false);
    bool before = shape->pool_place == POOL_BEFORE_NORM, two = shape->pool == 2;
    if (args.residual == nullptr) args.place = RESIDUAL_NONE;
    DISPATCH_STORAGE(shape->precision, T, {
        void (*kernel)(NormApply, Items, Windows, Activation) =
            before ? two ? norm_of_pool_apply_kernel<T, 2> : norm_of_pool_apply_kernel<T, 3>
            : two ? norm_then_pool_apply_kernel<T, 2>
                   : norm_then_pool_apply_kernel<T, 3>;
        return LAUNCH_AFTER(kernel, grid.blocks, grid.threads, 0, stream, args, grid.items, windows, shape->activation);
    });
    return STATUS_OK;
}
