/* The end of the norms' sums: the blocks' partial sums are combined, in double and in a fixed order, into per-channel
 * terms, running statistics and parameter gradients. Whichever block of a tile of channels finishes last does this,
 * with all its threads, arranged in columns over the channels: thread t adds up channel t % width of the tile over the
 * blocks t / width, t / width + rows, ...; then the rows are added in pairs. */
#ifndef CGXFFCV_NN_CUDA_NORM_CLOSE_CUH
#define CGXFFCV_NN_CUDA_NORM_CLOSE_CUH

#include "nn/cuda/norm/grid.cuh"

#define CLOSE_BATCH 12 /* loads in flight at the same time: only latency matters here */

typedef struct Column {
    int channel, row, rows, width; /* `width` channels; threads past the last whole row are idle */
} Column;

__device__ static __forceinline__ Column column_of(int first, int width) {
    int thread = thread_index();
    return {first + thread % width, thread / width, thread_count() / width, width};
}

/* Whether this block is the last of gridDim.x to arrive here; it then sees what the others wrote before. The count is 0
 * again afterwards. All threads call it. */
__device__ static __forceinline__ bool last_to_arrive(unsigned *arrivals) {
    int last = 0;
    __threadfence();
    __syncthreads();
    if (thread_index() == 0) last = atomicInc(arrivals, gridDim.x - 1) == gridDim.x - 1;
    last = __syncthreads_or(last);
    if (last) __threadfence();
    return last != 0;
}

/* Sums over the column's threads, in pairs; the first row gets the results. `shared`: COUNT doubles per thread of the
 * block. All threads call it. */
template <int COUNT>
__device__ __forceinline__ void add_column(const Column &column, double (&sums)[COUNT], double *shared) {
    int thread = thread_index();
    double *partial[COUNT];
    for (int i = 0; i < COUNT; i++) {
        partial[i] = shared + i * thread_count();
        partial[i][thread] = sums[i];
    }
    for (int rows = column.rows; rows > 1;) {
        int half = (rows + 1) / 2;
        __syncthreads();
        if (column.row + half < rows) {
            for (int i = 0; i < COUNT; i++) {
                sums[i] += partial[i][thread + half * column.width];
                partial[i][thread] = sums[i];
            }
        }
        rows = half;
    }
}

/* Stores a channel's terms, computed from its mean and variance. */
__device__ static __forceinline__ void store_terms(const NormClose &close, int channels, int c, double mean,
                                                   double variance) {
    double deviation = 1.0 / sqrt(variance + close.eps);
    double gamma = close.scale == nullptr ? 1.0 : (double)close.scale[c];
    close.terms[NORM_MEAN * channels + c] = (float)mean;
    close.terms[NORM_SCALE * channels + c] = (float)(gamma * deviation);
    close.terms[NORM_SHIFT * channels + c] = close.shift[c];
    close.terms[NORM_DEVIATION * channels + c] = (float)deviation;
}

#define STATISTICS_SUMS 4

/* The total of squared deviations is the sum of those within the blocks plus, between blocks, sum n m^2 - (sum n m)^2 /
 * n of the blocks' means m: Chan's formula for all blocks at once. */
__device__ static __forceinline__ void finish_statistics(const NormClose &close, int channels, int blocks,
                                                         const float *counts, const Column &column, double *shared) {
    int c = column.channel;
    double sums[STATISTICS_SUMS] = {0, 0, 0, 0}; /* n, n m, n m^2, deviations within the blocks */
    for (int first = column.row; first < blocks && column.row < column.rows; first += CLOSE_BATCH * column.rows) {
        float count[CLOSE_BATCH], mean[CLOSE_BATCH], deviations[CLOSE_BATCH];
#pragma unroll
        for (int k = 0; k < CLOSE_BATCH; k++) {
            int block = first + k * column.rows;
            count[k] = mean[k] = deviations[k] = 0;
            if (block >= blocks) continue;
            count[k] = __ldcg(counts + block);
            mean[k] = __ldcg(partial_row(close.partials, channels, (unsigned)block, 0) + c);
            deviations[k] = __ldcg(partial_row(close.partials, channels, (unsigned)block, 1) + c);
        }
#pragma unroll
        for (int k = 0; k < CLOSE_BATCH; k++) {
            double n = (double)count[k], weighted = n * (double)mean[k];
            sums[0] += n;
            sums[1] += weighted;
            sums[2] += weighted * (double)mean[k];
            sums[3] += (double)deviations[k];
        }
    }
    add_column(column, sums, shared);
    if (column.row > 0) return;
    double n = sums[0];
    double mean = (double)__ldcg(partial_zero(close.partials, channels, (unsigned)blocks) + c) + sums[1] / n;
    double squares = sums[3] + fmax(sums[2] - sums[1] * sums[1] / n, 0.0);
    double variance = squares / n, unbiased = n > 1 ? squares / (n - 1) : variance, change = 1 - close.keep;
    store_terms(close, channels, c, mean, variance);
    close.running_mean[c] = (float)(close.keep * (double)close.running_mean[c] + change * mean);
    close.running_variance[c] = (float)(close.keep * (double)close.running_variance[c] + change * unbiased);
}

#define GRADIENT_SUMS 2

/* `pixels`: the number over which the norm took the mean; `apart`: the products are of x - mean, not of x. */
__device__ static __forceinline__ void finish_gradients(const NormReduce &reduce, int channels, int blocks,
                                                        double pixels, bool apart, const Column &column,
                                                        double *shared) {
    int c = column.channel;
    double sums[GRADIENT_SUMS] = {0, 0};
    for (int first = column.row; first < blocks && column.row < column.rows; first += CLOSE_BATCH * column.rows) {
        float gradient[CLOSE_BATCH], product[CLOSE_BATCH];
#pragma unroll
        for (int k = 0; k < CLOSE_BATCH; k++) {
            int block = first + k * column.rows;
            gradient[k] = product[k] = 0;
            if (block >= blocks) continue;
            gradient[k] = __ldcg(partial_row(reduce.partials, channels, (unsigned)block, 0) + c);
            product[k] = __ldcg(partial_row(reduce.partials, channels, (unsigned)block, 1) + c);
        }
#pragma unroll
        for (int k = 0; k < CLOSE_BATCH; k++) {
            sums[0] += (double)gradient[k];
            sums[1] += (double)product[k];
        }
    }
    add_column(column, sums, shared);
    if (column.row > 0) return;
    double mean = (double)reduce.terms[NORM_MEAN * channels + c], factor = (double)reduce.factor;
    double scale = (double)reduce.terms[NORM_SCALE * channels + c];
    double deviation = (double)reduce.terms[NORM_DEVIATION * channels + c];
    double sum = sums[0], product = apart ? sums[1] : sums[1] - mean * sum;
    reduce.terms[NORM_BASE * channels + c] = (float)(-scale * sum / pixels);
    reduce.terms[NORM_TILT * channels + c] = (float)(-scale * deviation * deviation * product / pixels);
    reduce.bias_gradient[c] = (float)(sum * factor);
    if (reduce.scale_gradient != nullptr) reduce.scale_gradient[c] = (float)(product * deviation * factor);
}

/* The thread's column in the block's tile of channels. */
template <typename T> __device__ __forceinline__ Column tile_column(int channels) {
    int across = (int)blockDim.x * Pack<T>::PACK, first = (int)blockIdx.y * across;
    return column_of(first, channels - first < across ? channels - first : across);
}

#endif
