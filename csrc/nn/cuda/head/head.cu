/* The head: a warp takes one image through the global pool, the linear layer and, in training, the loss and the
 * gradient of its input. The weights' gradient needs only a few floats per image: a second kernel sums it.
 *
 * Warp w of block x: image x warps + w. A lane: channels PACK lane to PACK lane + PACK - 1, then every 32 PACK, of all
 * pixels; classes lane, lane + 32, ... Buffers: input and its gradient (images, pixels, channels) of type T; weights
 * (classes, channels), bias (classes), pooled (images, channels), logits and gradients (images, classes), losses
 * (images), float32; labels and records (images). Shared memory, per warp: maxima or means [channels], the maxima's
 * pixels [channels], logits [classes]. */
#include "nn/cuda/storage.cuh"

extern "C" {
#include "nn/cuda/head/head.h"
}

#define WARPS 4 /* per block, at most */
#define SHARED_BYTES (40u << 10)
#define SUM_LANES 32
#define SUM_SLICES 32

/* A warp's shared memory: maxima or means, where they were, logits (which become their gradients). */
typedef struct Row {
    float *pooled;
    int *index;
    float *logits;
} Row;

static size_t row_bytes(const HeadShape *shape) {
    size_t floats = 2 * (size_t)shape->channels + ((size_t)shape->classes + 3) / 4 * 4;
    return floats * sizeof(float);
}

static int warps_of(const HeadShape *shape) {
    int warps = (int)(SHARED_BYTES / row_bytes(shape));
    return warps < 1 ? 1 : warps > WARPS ? WARPS : warps;
}

__device__ static __forceinline__ Row row_of(const HeadShape &shape, float *shared) {
    int floats = 2 * shape.channels + (shape.classes + 3) / 4 * 4;
    float *row = shared + (thread_index() / WARP) * floats;
    return {row, reinterpret_cast<int *>(row + shape.channels), row + 2 * shape.channels};
}

/* COUNT (4 or 8) floats, 16 bytes at a time. */
template <int COUNT> __device__ __forceinline__ void load_vector(const float *from, float (&to)[COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT; i += 4) {
        float4 four = *reinterpret_cast<const float4 *>(from + i);
        to[i] = four.x, to[i + 1] = four.y, to[i + 2] = four.z, to[i + 3] = four.w;
    }
}

template <int COUNT> __device__ __forceinline__ void store_vector(const float (&from)[COUNT], float *to) {
#pragma unroll
    for (int i = 0; i < COUNT; i += 4) {
        *reinterpret_cast<float4 *>(to + i) = make_float4(from[i], from[i + 1], from[i + 2], from[i + 3]);
    }
}

/* The first maximum of every channel; a lane always processes the same channels. */
template <typename T>
__device__ __forceinline__ void pool_maxima(const HeadShape &shape, const T *input, int lane, Row row) {
    constexpr int PACK = Pack<T>::PACK;
    for (int c = lane * PACK; c < shape.channels; c += WARP * PACK) {
        float best[PACK];
        int place[PACK] = {};
        load_floats(input + c, best);
#pragma unroll 4
        for (int pixel = 1; pixel < shape.pixels; pixel++) {
            float values[PACK];
            load_floats(input + (size_t)pixel * (size_t)shape.channels + c, values);
#pragma unroll
            for (int i = 0; i < PACK; i++) {
                bool more = values[i] > best[i];
                best[i] = more ? values[i] : best[i];
                place[i] = more ? pixel : place[i];
            }
        }
        store_vector(best, row.pooled + c);
#pragma unroll
        for (int i = 0; i < PACK; i++) row.index[c + i] = place[i];
    }
}

/* The mean of every channel. */
template <typename T>
__device__ __forceinline__ void pool_means(const HeadShape &shape, const T *input, int lane, Row row) {
    constexpr int PACK = Pack<T>::PACK;
    float share = 1.0f / (float)shape.pixels;
    for (int c = lane * PACK; c < shape.channels; c += WARP * PACK) {
        float sum[PACK] = {};
#pragma unroll 4
        for (int pixel = 0; pixel < shape.pixels; pixel++) {
            float values[PACK];
            load_floats(input + (size_t)pixel * (size_t)shape.channels + c, values);
#pragma unroll
            for (int i = 0; i < PACK; i++) sum[i] += values[i];
        }
#pragma unroll
        for (int i = 0; i < PACK; i++) sum[i] *= share;
        store_vector(sum, row.pooled + c);
    }
}

template <typename T>
__device__ __forceinline__ void pool_image(const HeadShape &shape, const T *input, int lane, Row row) {
    if (shape.pool == HEAD_POOL_AVERAGE) {
        pool_means(shape, input, lane, row);
    } else {
        pool_maxima(shape, input, lane, row);
    }
}

template <typename T>
__device__ __forceinline__ void compute_logits(const HeadShape &shape, const float *weights, const float *bias,
                                               int lane, Row row) {
    constexpr int PACK = Pack<T>::PACK;
#pragma unroll 2
    for (int k = 0; k < shape.classes; k++) {
        float sum = 0;
        for (int c = lane * PACK; c < shape.channels; c += WARP * PACK) {
            float values[PACK], filter[PACK];
            load_vector(row.pooled + c, values);
            load_vector(weights + (size_t)k * (size_t)shape.channels + c, filter);
#pragma unroll
            for (int i = 0; i < PACK; i++) sum = fmaf(values[i], filter[i], sum);
        }
        sum = warp_sum(sum);
        if (lane == k % WARP) row.logits[k] = shape.scale * sum + (bias == NULL ? 0.0f : shape.scale * bias[k]);
    }
    __syncwarp();
}

/* Returns the loss and whether the image is correct; replaces the logits by the gradient with respect to them. */
__device__ static __forceinline__ HeadRecord cross_entropy(const HeadShape &shape, int64_t label, double smoothing,
                                                           int lane, float *logits) {
    double share = smoothing / shape.classes, sum = 0, expected = 0;
    float most = -INFINITY;
    int best = shape.classes;
    for (int k = lane; k < shape.classes; k += WARP) most = fmaxf(most, logits[k]);
    most = warp_max(most);
    for (int k = lane; k < shape.classes; k += WARP) {
        double above = (double)logits[k] - (double)most;
        sum += exp(above);
        expected += above * (share + (k == label ? 1 - smoothing : 0));
        if (logits[k] == most && k < best) best = k;
    }
    sum = warp_sum(sum);
    expected = warp_sum(expected);
    best = -warp_max(-best);
    for (int k = lane; k < shape.classes; k += WARP) {
        double target = share + (k == label ? 1 - smoothing : 0);
        logits[k] = (float)(exp((double)logits[k] - (double)most) / sum - target);
    }
    __syncwarp();
    return {log(sum) - expected, best == label ? 1 : 0};
}

/* The gradient through the linear layer and the pool: zero except at the maxima, or the same everywhere. */
template <typename T>
__device__ __forceinline__ void input_gradient(const HeadShape &shape, const float *weights, int lane, Row row, T *to) {
    constexpr int PACK = Pack<T>::PACK;
    for (int c = lane * PACK; c < shape.channels; c += WARP * PACK) {
        float gradient[PACK] = {};
#pragma unroll 2
        for (int k = 0; k < shape.classes; k++) {
            float by_logit = row.logits[k], filter[PACK];
            load_vector(weights + (size_t)k * (size_t)shape.channels + c, filter);
#pragma unroll
            for (int i = 0; i < PACK; i++) gradient[i] = fmaf(by_logit, filter[i], gradient[i]);
        }
        bool average = shape.pool == HEAD_POOL_AVERAGE;
        float share = average ? 1.0f / (float)shape.pixels : 1.0f;
        int place[PACK];
#pragma unroll
        for (int i = 0; i < PACK; i++) place[i] = average ? 0 : row.index[c + i];
        for (int pixel = 0; pixel < shape.pixels; pixel++) {
            float values[PACK];
#pragma unroll
            for (int i = 0; i < PACK; i++) {
                values[i] = average || place[i] == pixel ? share * (shape.scale * gradient[i]) : 0.0f;
            }
            store_floats(to + (size_t)pixel * (size_t)shape.channels + c, values);
        }
    }
}

template <typename T>
__global__ void __launch_bounds__(WARPS *WARP)
    head_evaluate_kernel(HeadShape shape, const T *input, const float *weights, const float *bias, float *logits) {
    grid_begin();
    DYNAMIC_SHARED(float, shared);
    int lane = thread_index() % WARP, image = (int)blockIdx.x * (thread_count() / WARP) + thread_index() / WARP;
    if (image >= shape.images) return;
    Row row = row_of(shape, shared);
    pool_image(shape, input + (size_t)image * (size_t)shape.pixels * (size_t)shape.channels, lane, row);
    compute_logits<T>(shape, weights, bias, lane, row);
    for (int k = lane; k < shape.classes; k += WARP) {
        logits[(size_t)image * (size_t)shape.classes + (size_t)k] = row.logits[k];
    }
}

template <typename T>
__global__ void __launch_bounds__(WARPS *WARP)
    head_train_kernel(HeadShape shape, HeadBuffers buffers, double smoothing) {
    grid_begin();
    DYNAMIC_SHARED(float, shared);
    int lane = thread_index() % WARP, image = (int)blockIdx.x * (thread_count() / WARP) + thread_index() / WARP;
    if (image >= shape.images) return;
    size_t first = (size_t)image * (size_t)shape.pixels * (size_t)shape.channels;
    Row row = row_of(shape, shared);
    pool_image(shape, (const T *)buffers.input + first, lane, row);
    compute_logits<T>(shape, buffers.weights, buffers.bias, lane, row);
    HeadRecord record = cross_entropy(shape, buffers.labels[image], smoothing, lane, row.logits);
    if (lane == 0) buffers.records[image] = record;
    if (lane == 0 && buffers.losses != NULL) buffers.losses[image] = (float)record.loss;
    float *gradients = buffers.gradients + (size_t)image * (size_t)shape.classes;
    for (int k = lane; k < shape.classes; k += WARP) gradients[k] = row.logits[k];
    float *pooled = buffers.pooled + (size_t)image * (size_t)shape.channels;
    constexpr int PACK = Pack<T>::PACK;
    for (int c = lane * PACK; c < shape.channels; c += WARP * PACK) {
        float values[PACK];
        load_vector(row.pooled + c, values);
        store_vector(values, pooled + c);
    }
    if (buffers.input_gradient == NULL) return;
    input_gradient(shape, buffers.weights, lane, row, (T *)buffers.input_gradient + first);
}

/* Adds the totals of all images, in a fixed order; by one block. */
__device__ static void add_totals(int images, const HeadRecord *records, NnStepTotals *totals) {
    double loss = 0;
    int64_t correct = 0;
    for (int i = thread_index(); i < images; i += thread_count()) {
        loss += records[i].loss;
        correct += records[i].correct;
    }
    loss = block_sum(loss);
    correct = block_sum(correct);
    if (thread_index() > 0) return;
    totals->loss += loss;
    totals->correct += correct;
    totals->images += images;
}

/* The bias gradient of one class, summed over the images in a fixed order; by one block. */
__device__ static void add_biases(const HeadShape &shape, const float *gradients, int k, float factor,
                                  float *bias_gradient) {
    double sum = 0;
    for (int i = thread_index(); i < shape.images; i += thread_count()) {
        sum += (double)gradients[(size_t)i * (size_t)shape.classes + (size_t)k];
    }
    sum = block_sum(sum);
    if (thread_index() == 0) bias_gradient[k] = factor * shape.scale * (float)sum;
}

/* Block (x, class): SUM_LANES channels of one class, SUM_SLICES images at a time. The block past the last channels sums
 * the class's bias gradient, if there is a bias, and that of class 0 adds the totals. */
__global__ void head_close_kernel(HeadShape shape, HeadBuffers buffers, float factor, float *weight_gradient,
                                  float *bias_gradient, NnStepTotals *totals) {
    grid_begin();
    __shared__ float slices[SUM_SLICES][SUM_LANES];
    int lane = (int)threadIdx.x, slice = (int)threadIdx.y;
    int channel = (int)blockIdx.x * SUM_LANES + lane, k = (int)blockIdx.y;
    if ((int)blockIdx.x * SUM_LANES >= shape.channels) {
        if (k == 0) add_totals(shape.images, buffers.records, totals);
        if (bias_gradient != NULL) add_biases(shape, buffers.gradients, k, factor, bias_gradient);
        return;
    }
    float sum = 0;
    if (channel < shape.channels) {
#pragma unroll 8
        for (int image = slice; image < shape.images; image += SUM_SLICES) {
            sum = fmaf(buffers.gradients[(size_t)image * (size_t)shape.classes + (size_t)k],
                       buffers.pooled[(size_t)image * (size_t)shape.channels + (size_t)channel], sum);
        }
    }
    slices[slice][lane] = sum;
    __syncthreads();
    if (slice > 0 || channel >= shape.channels) return;
    for (int other = 1; other < SUM_SLICES; other++) sum += slices[other][lane];
    weight_gradient[(size_t)k * (size_t)shape.channels + (size_t)channel] = factor * shape.scale * sum;
}

/* One thread. */
__global__ void head_store_totals_kernel(NnStepTotals *totals, NnStepTotals *to, const int32_t *index,
                                         float *first_gradient) {
    grid_begin();
    NnStepTotals *step = to + *index;
    if (!isfinite(totals->loss)) *first_gradient = NAN;
    step->loss += totals->loss;
    step->correct += totals->correct;
    step->images += totals->images;
    totals->loss = 0;
    totals->correct = 0;
    totals->images = 0;
}

extern "C" Status nn_cuda_head_evaluate(const HeadShape *shape, const void *input, const float *weights,
                                        const float *bias, float *logits, DeviceStream *stream) {
    int warps = warps_of(shape);
    unsigned blocks = (unsigned)ceil_div((size_t)shape->images, (size_t)warps);
    DISPATCH_STORAGE(shape->precision, T, {
        TRY(LAUNCH_AFTER(head_evaluate_kernel<T>, blocks, warps * WARP, row_bytes(shape) * (size_t)warps, stream,
                         *shape, (const T *)input, weights, bias, logits));
    });
    return STATUS_OK;
}

extern "C" Status nn_cuda_head_train(const HeadShape *shape, const HeadBuffers *buffers, double label_smoothing,
                                     DeviceStream *stream) {
    int warps = warps_of(shape);
    unsigned blocks = (unsigned)ceil_div((size_t)shape->images, (size_t)warps);
    DISPATCH_STORAGE(shape->precision, T, {
        TRY(LAUNCH_AFTER(head_train_kernel<T>, blocks, warps * WARP, row_bytes(shape) * (size_t)warps, stream, *shape,
                         *buffers, label_smoothing));
    });
    return STATUS_OK;
}

extern "C" Status nn_cuda_head_close(const HeadShape *shape, const HeadBuffers *buffers, float factor,
                                     float *weight_gradient, float *bias_gradient, NnStepTotals *totals,
                                     DeviceStream *stream) {
    dim3 grid((unsigned)ceil_div((size_t)shape->channels, SUM_LANES) + 1, (unsigned)shape->classes);
    return LAUNCH_AFTER(head_close_kernel, grid, dim3(SUM_LANES, SUM_SLICES), 0, stream, *shape, *buffers, factor,
                        weight_gradient, bias_gradient, totals);
}

extern "C" Status nn_cuda_head_store_totals(NnStepTotals *totals, NnStepTotals *to, const int32_t *index,
                                            float *first_gradient, DeviceStream *stream) {
    return LAUNCH_AFTER(head_store_totals_kernel, 1, 1, 0, stream, totals, to, index, first_gradient);
}
