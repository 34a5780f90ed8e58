/* Backward half of the norms: the sums of the gradient before the activation, then the gradient of the input. Both
 * passes recompute the gradient before the activation from the normalised tensor and the gradient of the output:
 * reading these twice costs less than writing it and reading it back.
 *
 * The division of work is in grid.cuh; an item is a pixel or, with a pool, a window, including partial ones where every
 * element's gradient is written. Buffers: saved (the tensor that was normalised), residual and input_gradient, maps of
 * T; gradient, skip and activation_gradient, maps of the output's shape; index, uint8, of the pooled maps' shape; the
 * gradients of scale and bias (channels), float32. */
#include "nn/cuda/norm/close.cuh"
#include "nn/cuda/norm/slopes.cuh"
#include "nn/cuda/norm/values.cuh"
#include "nn/cuda/storage.cuh"

#define NO_ELEMENT 255 /* the index of a window that was not pooled */

/* ---- sums ---- */

template <int PACK> struct Sums {
    /* Of dz, and of dz times x - mean. With 16-bit storage the latter is of dz times x, and the last block corrects the
     * sum for the mean: the rounding error of that is far below that of the storage. */
    float gradient[PACK], product[PACK];

    __device__ __forceinline__ Sums() {
#pragma unroll
        for (int i = 0; i < PACK; i++) gradient[i] = product[i] = 0;
    }
    __device__ __forceinline__ void add(const float (&dz)[PACK], const float (&apart)[PACK]) {
#pragma unroll
        for (int i = 0; i < PACK; i++) {
            gradient[i] += dz[i];
            product[i] = fmaf(dz[i], apart[i], product[i]);
        }
    }
};

/* dz = dy activation'(z), in place */
template <Activation ACTIVATION, int PACK>
__device__ __forceinline__ void activate_backward(const float (&z)[PACK], float (&gradient)[PACK]) {
#pragma unroll
    for (int i = 0; i < PACK; i++) gradient[i] *= activation_slope<ACTIVATION>(z[i]); /* NONE: times 1 costs nothing */
}

/* Adds the rows of the block's threads in pairs; the first row writes the block's sums. All threads call it. */
template <int PACK>
__device__ __forceinline__ void store_sums(Sums<PACK> &sums, float *partials, int channels, int channel) {
    __shared__ __align__(16) float gradients[SUM_THREADS * PACK], products[SUM_THREADS * PACK];
    int thread = thread_index(), row = (int)threadIdx.y;
    for (int rows = (int)blockDim.y; rows > 1;) {
        int half = (rows + 1) / 2, partner = thread + half * (int)blockDim.x;
        if (row >= half && row < rows) {
            store_row(gradients, thread * PACK, sums.gradient);
            store_row(products, thread * PACK, sums.product);
        }
        __syncthreads();
        if (row + half < rows) {
            float gradient[PACK], product[PACK];
            load_row(gradients, partner * PACK, gradient);
            load_row(products, partner * PACK, product);
#pragma unroll
            for (int i = 0; i < PACK; i++) {
                sums.gradient[i] += gradient[i];
                sums.product[i] += product[i];
            }
        }
        rows = half;
    }
    if (row > 0 || channel >= channels) return;
    store_row(partial_row(partials, channels, blockIdx.x, 0), channel, sums.gradient);
    store_row(partial_row(partials, channels, blockIdx.x, 1), channel, sums.product);
}

/* Stores the block's part of the sums; the last block finishes them. */
template <typename T>
__device__ __forceinline__ void close_sums(Sums<Pack<T>::PACK> &sums, const NormReduce &args, int channels, int channel,
                                           double pixels) {
    store_sums(sums, args.partials, channels, channel);
    if (!last_to_arrive(partial_arrivals(args.partials, channels) + blockIdx.y)) return;
    __shared__ double shared[GRADIENT_SUMS * SUM_THREADS];
    finish_gradients(args, channels, (int)gridDim.x, pixels, !is_narrow<T>(), tile_column<T>(channels), shared);
}

/* The gradient as a later pass will read it: the skip's is added, and the rounded sum is stored. */
template <typename T> __device__ __forceinline__ void add_skip(const T *skip, T *gradient, size_t at, Pack<T> &pack) {
    Pack<T> other = load_pack(skip + at);
#pragma unroll
    for (int i = 0; i < Pack<T>::PACK; i++) pack.set(i, pack.get(i) + other.get(i));
    store_pack(gradient + at, pack);
}

/* EXTRAS: there is a skip or a residual before the activation, or dz must be stored. */
template <typename T, Activation ACTIVATION, bool EXTRAS>
__device__ __forceinline__ void reduce_pack(const NormReduce &args, size_t at, const Normalise<T> &terms,
                                            const Pack<T> &x, Pack<T> &gradient, Sums<Pack<T>::PACK> &sums) {
    constexpr int PACK = Pack<T>::PACK;
    float z[PACK], dz[PACK], apart[PACK];
    if (EXTRAS && args.skip != nullptr) {
        add_skip(static_cast<const T *>(args.skip), static_cast<T *>(args.gradient), at, gradient);
    }
#pragma unroll
    for (int i = 0; i < PACK; i++) {
        apart[i] = terms.apart(x.get(i), i);
        z[i] = fmaf(apart[i], terms.scale[i], terms.shift[i]);
        dz[i] = gradient.get(i);
    }
    if (EXTRAS && args.residual != nullptr) {
        Pack<T> residual = load_pack(static_cast<const T *>(args.residual) + at);
#pragma unroll
        for (int i = 0; i < PACK; i++) z[i] += residual.get(i);
    }
    activate_backward<ACTIVATION>(z, dz);
    if (EXTRAS && args.activation_gradient != nullptr)
        store_floats(static_cast<T *>(args.activation_gradient) + at, dz);
    sums.add(dz, apart);
}

template <typename T, Activation ACTIVATION, bool EXTRAS>
__global__ void __launch_bounds__(SUM_THREADS, 2) norm_reduce_kernel(NormReduce args, Items items, double pixels) {
    grid_begin();
    constexpr int PACK = Pack<T>::PACK, UNROLL = EXTRAS ? 1 : REDUCE_UNROLL;
    int channel = first_channel<T>(), channels = items.channels;
    const T *saved = static_cast<const T *>(args.saved), *gradient = static_cast<const T *>(args.gradient);
    Sums<PACK> sums;
    Normalise<T> terms;
    if (channel < channels) terms.load(args.terms, channels, channel);
    for (uint32_t chunk = blockIdx.x; chunk < items.chunks && channel < channels; chunk += gridDim.x) {
        uint32_t item = first_item<UNROLL>(items, chunk, true);
        size_t at = (size_t)item * (size_t)channels + (size_t)channel, step = (size_t)blockDim.y * (size_t)channels;
        Pack<T> x[UNROLL], dy[UNROLL];
#pragma unroll
        for (int k = 0; k < UNROLL; k++) {
            if (item + (uint32_t)k * blockDim.y >= items.count) continue;
            x[k] = load_pack(saved + at + (size_t)k * step);
            dy[k] = load_pack(gradient + at + (size_t)k * step);
        }
#pragma unroll
        for (int k = 0; k < UNROLL; k++) {
            if (item + (uint32_t)k * blockDim.y >= items.count) continue;
            reduce_pack<T, ACTIVATION, EXTRAS>(args, at + (size_t)k * step, terms, x[k], dy[k], sums);
        }
    }
    close_sums<T>(sums, args, channels, channel, pixels);
}

template <typename T, int POOL>
__device__ __forceinline__ void load_window(const T *input, const Window &window, uint32_t width, int channels,
                                            int channel, Pack<T> (&packs)[POOL * POOL]) {
    const T *from = input + (size_t)window.first * (size_t)channels + channel;
    size_t row = (size_t)width * (size_t)channels;
#pragma unroll
    for (int e = 0; e < POOL * POOL; e++) {
        if (e / POOL >= (int)window.rows || e % POOL >= (int)window.columns) continue;
        packs[e] = load_pack(from + (size_t)(e / POOL) * row + (size_t)(e % POOL * channels));
    }
}

/* The element of each window that the pool chose. */
template <typename T, int ELEMENTS>
__device__ __forceinline__ Pack<T> pick(const Pack<T> (&packs)[ELEMENTS], const Bytes<Pack<T>::PACK> &where) {
    Pack<T> chosen = packs[0];
#pragma unroll
    for (int i = 0; i < Pack<T>::PACK; i++) {
        int element = byte_of(where, i);
#pragma unroll
        for (int e = 1; e < ELEMENTS; e++) chosen[i] = element == e ? packs[e][i] : chosen[i];
    }
    return chosen;
}

/* With a pool after the activation, only the elements that it chose have a gradient before the activation. */
template <typename T, Activation ACTIVATION, int POOL>
__global__ void __launch_bounds__(SUM_THREADS)
    norm_reduce_pooled_kernel(NormReduce args, Items items, Windows windows, double pixels) {
    grid_begin();
    constexpr int PACK = Pack<T>::PACK;
    int channel = first_channel<T>(), channels = items.channels;
    Sums<PACK> sums;
    Normalise<T> terms;
    if (channel < channels) terms.load(args.terms, channels, channel);
    for (uint32_t chunk = blockIdx.x; chunk < items.chunks && channel < channels; chunk += gridDim.x) {
        uint32_t item = first_item<1>(items, chunk, true);
        if (item >= items.count) continue;
        size_t at = (size_t)item * (size_t)channels + (size_t)channel;
        Pack<T> packs[POOL * POOL];
        load_window<T, POOL>(static_cast<const T *>(args.saved), find_window<POOL>(windows, item), windows.width,
                             channels, channel, packs);
        Pack<T> dy = load_pack(static_cast<const T *>(args.gradient) + at);
        Pack<T> x = pick(packs, load_bytes<PACK>(args.index + at));
        reduce_pack<T, ACTIVATION, true>(args, at, terms, x, dy, sums);
    }
    close_sums<T>(sums, args, channels, channel, pixels);
}

/* ---- gradient of the input ---- */

/* dz of the values x. */
template <typename T, Activation ACTIVATION>
__device__ __forceinline__ void make_dz(const Slopes<T> &terms, const Pack<T> &x, const Pack<T> &gradient,
                                        float (&dz)[Pack<T>::PACK]) {
    float z[Pack<T>::PACK];
#pragma unroll
    for (int i = 0; i < Pack<T>::PACK; i++) {
        z[i] = terms.z(x.get(i), i);
        dz[i] = gradient.get(i);
    }
    activate_backward<ACTIVATION>(z, dz);
}

/* Without a pool. */
template <typename T, Activation ACTIVATION>
__global__ void __launch_bounds__(MAP_THREADS, 3) norm_backward_kernel(NormBackward args, Items items) {
    grid_begin();
    constexpr int PACK = Pack<T>::PACK, UNROLL = REDUCE_UNROLL;
    int channel = first_channel<T>(), channels = items.channels;
    if (channel >= channels) return;
    const T *saved = static_cast<const T *>(args.saved), *gradient = static_cast<const T *>(args.gradient);
    T *to = static_cast<T *>(args.input_gradient);
    Slopes<T> terms;
    terms.load(args.terms, channels, channel);
    for (uint32_t chunk = blockIdx.x; chunk < items.chunks; chunk += gridDim.x) {
        uint32_t item = first_item<UNROLL>(items, chunk, false);
        size_t at = (size_t)item * (size_t)channels + (size_t)channel, step = (size_t)blockDim.y * (size_t)channels;
        Pack<T> x[UNROLL], dy[UNROLL];
#pragma unroll
        for (int k = 0; k < UNROLL; k++) {
            if (item + (uint32_t)k * blockDim.y >= items.count) continue;
            x[k] = load_pack_streaming(saved + at + (size_t)k * step);
            dy[k] = load_pack_streaming(gradient + at + (size_t)k * step);
        }
#pragma unroll
        for (int k = 0; k < UNROLL; k++) {
            if (item + (uint32_t)k * blockDim.y >= items.count) continue;
            float dz[PACK];
            make_dz<T, ACTIVATION>(terms, x[k], dy[k], dz);
#pragma unroll
            for (int i = 0; i < PACK; i++) dz[i] = fmaf(terms.scale[i], dz[i], terms.level(x[k].get(i), i));
            store_floats(to + at + (size_t)k * step, dz);
        }
    }
}

/* Stores the window's elements that are in the map. */
template <typename T, int POOL>
__device__ __forceinline__ void store_window(T *output, const Window &window, uint32_t width, int channels, int channel,
                                             const Pack<T> (&packs)[POOL * POOL]) {
    T *to = output + (size_t)window.first * (size_t)channels + channel;
    size_t row = (size_t)width * (size_t)channels;
#pragma unroll
    for (int e = 0; e < POOL * POOL; e++) {
        if (e / POOL >= (int)window.rows || e % POOL >= (int)window.columns) continue;
        store_pack(to + (size_t)(e / POOL) * row + (size_t)(e % POOL * channels), packs[e]);
    }
}

/* With a pool before the norm: the gradient goes to the element that was the maximum, zero to the others. */
template <typename T, Activation ACTIVATION, int POOL>
__global__ void __launch_bounds__(MAP_THREADS, POOL == 2 ? 3 : 1)
    norm_of_pool_backward_kernel(NormBackward args, Items items, Windows windows) {
    grid_begin();
    constexpr int PACK = Pack<T>::PACK;
    int channel = first_channel<T>(), channels = items.channels;
    if (channel >= channels) return;
    Slopes<T> terms;
    terms.load(args.terms, channels, channel);
    for (uint32_t chunk = blockIdx.x; chunk < items.chunks; chunk += gridDim.x) {
        uint32_t item = first_item<1>(items, chunk, false);
        if (item >= items.count) continue;
        Window window = find_window<POOL>(windows, item);
        Pack<T> elements[POOL * POOL];
#pragma unroll
        for (int e = 0; e < POOL * POOL; e++) elements[e] = pack_of_bits<T>(make_uint4(0, 0, 0, 0));
        if (window.whole) {
            size_t at = (size_t)window.pooled * (size_t)channels + (size_t)channel;
            Pack<T> x = load_pack_streaming(static_cast<const T *>(args.saved) + at);
            Pack<T> dy = load_pack_streaming(static_cast<const T *>(args.gradient) + at);
            Bytes<PACK> where = load_bytes<PACK>(args.index + at);
#pragma unroll
            for (int i = 0; i < PACK; i++) {
                float dx = terms.template gradient<ACTIVATION>(x.get(i), dy.get(i), i);
                int element = byte_of(where, i);
#pragma unroll
                for (int e = 0; e < POOL * POOL; e++) elements[e].set(i, element == e ? dx : 0.0f);
            }
        }
        store_window<T, POOL>(static_cast<T *>(args.input_gradient), window, windows.width, channels, channel,
                              elements);
    }
}

/* With a pool after the activation: every element has a gradient through the statistics. */
template <typename T, Activation ACTIVATION, int POOL>
__global__ void __launch_bounds__(MAP_THREADS, POOL == 2 ? 2 : 1)
    norm_then_pool_backward_kernel(NormBackward args, Items items, Windows windows) {
    grid_begin();
    constexpr int PACK = Pack<T>::PACK;
    int channel = first_channel<T>(), channels = items.channels;
    if (channel >= channels) return;
    Slopes<T> terms;
    terms.load(args.terms, channels, channel);
    for (uint32_t chunk = blockIdx.x; chunk < items.chunks; chunk += gridDim.x) {
        uint32_t item = first_item<1>(items, chunk, false);
        if (item >= items.count) continue;
        Window window = find_window<POOL>(windows, item);
        Pack<T> elements[POOL * POOL], dy;
        Bytes<PACK> where;
#pragma unroll
        for (int e = 0; e < POOL * POOL; e++) elements[e] = pack_of_bits<T>(make_uint4(0, 0, 0, 0));
        load_window<T, POOL>(static_cast<const T *>(args.saved), window, windows.width, channels, channel, elements);
        if (window.whole) {
            size_t at = (size_t)window.pooled * (size_t)channels + (size_t)channel;
            dy = load_pack_streaming(static_cast<const T *>(args.gradient) + at);
            where = load_bytes<PACK>(args.index + at);
        } else {
            dy = pack_of_bits<T>(make_uint4(0, 0, 0, 0));
#pragma unroll
            for (int word = 0; word < PACK / 4; word++) where.words[word] = NO_ELEMENT * 0x01010101u;
        }
        float dz[PACK];
        make_dz<T, ACTIVATION>(terms, pick(elements, where), dy, dz);
#pragma unroll
        for (int i = 0; i < PACK; i++) {
            int element = byte_of(where, i);
#pragma unroll
            for (int e = 0; e < POOL * POOL; e++) {
                float level = terms.level(elements[e].get(i), i);
                elements[e].set(i, element == e ? fmaf(terms.scale[i], dz[i], level) : level);
            }
        }
        store_window<T, POOL>(static_cast<T *>(args.input_gradient), window, windows.width, channels, channel,
                              elements);
    }
}

/* ---- launchers ---- */

template <typename T, Activation ACTIVATION>
static Status launch_reduce(const NormShape *shape, const NormReduce &args, DeviceStream *stream) {
    Grid grid = reduce_grid(shape);
    double pixels = (double)saved_pixels_of(shape);
    if (shape->pool_place == POOL_AFTER_ACTIVATION) {
        Windows windows = make_windows(shape, false);
        void (*kernel)(NormReduce, Items, Windows, double) = shape->pool == 2
                                                                 ? norm_reduce_pooled_kernel<T, ACTIVATION, 2>
                                                                 : norm_reduce_pooled_kernel<T, ACTIVATION, 3>;
        return LAUNCH_AFTER(kernel, grid.blocks, grid.threads, 0, stream, args, grid.items, windows, pixels);
    }
    bool extras = args.skip != nullptr || args.residual != nullptr || args.activation_gradient != nullptr;
    if (extras) grid.items.chunks *= REDUCE_UNROLL; /* chunks then have one item per row of threads */
    void (*kernel)(NormReduce, Items, double) =
        extras ? norm_reduce_kernel<T, ACTIVATION, true> : norm_reduce_kernel<T, ACTIVATION, false>;
    return LAUNCH_AFTER(kernel, grid.blocks, grid.threads, 0, stream, args, grid.items, pixels);
}

template <typename T, Activation ACTIVATION>
static Status launch_backward(const NormShape *shape, const NormBackward &args, DeviceStream *stream) {
    if (shape->pool_place == POOL_NONE) {
        Grid grid = make_grid(shape, pixels_of(shape), REDUCE_UNROLL, MAP_THREADS, MAP_BLOCKS);
        return LAUNCH_AFTER((norm_backward_kernel<T, ACTIVATION>), grid.blocks, grid.threads, 0, stream, args,
                            grid.items);
    }
    bool before = shape->pool_place == POOL_BEFORE_NORM, two = shape->pool == 2;
    Windows windows = make_windows(shape, true);
    Grid grid = make_grid(shape, windows_count(shape, &windows), 1, MAP_THREADS, MAP_BLOCKS);
    void (*kernel)(NormBackward, Items, Windows) =
        before ? two ? norm_of_pool_backward_kernel<T, ACTIVATION, 2> : norm_of_pool_backward_kernel<T, ACTIVATION, 3>
        : two ? norm_then_pool_backward_kernel<T, ACTIVATION, 2>
               : norm_then_pool_backward_kernel<T, ACTIVATION, 3>;
    return LAUNCH_AFTER(kernel, grid.blocks, grid.threads, 0, stream, args, grid.items, windows);
}

extern "C" Status nn_cuda_norm_reduce(const NormShape *shape, NormReduce args, DeviceStream *stream) {
    DISPATCH_STORAGE(shape->precision, T, {
        DISPATCH_ACTIVATION(shape->activation, A, { return launch_reduce<T, A>(shape, args, stream); });
    });
    return STATUS_OK;
}

extern "C" Status nn_cuda_norm_backward(const NormShape *shape, NormBackward args, DeviceStream *stream) {
    DISPATCH_STORAGE(shape->precision, T, {
        DISPATCH_ACTIVATION(shape->activation, A, { return launch_backward<T, A>(shape, args, stream); });
    });
    return STATUS_OK;
}
