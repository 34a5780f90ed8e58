/* Between the passes of a norm: combines what the blocks summed, in double and in a fixed order, into per-channel
 * terms, running statistics and parameter gradients. Too small to matter but for its latency, so each channel has a
 * column of threads. */
#include "nn/cuda/norm_grid.cuh"

#define CLOSE_CHANNELS 32
#define CLOSE_ROWS 32

/* What z takes of a channel's mean and variance. */
__device__ static __forceinline__ void store_terms(const NormClose &close, int channels, int c, double mean,
                                                   double variance) {
    double deviation = 1.0 / sqrt(variance + close.eps);
    double gamma = close.scale == nullptr ? 1.0 : (double)close.scale[c];
    close.terms[NORM_MEAN * channels + c] = (float)mean;
    close.terms[NORM_SCALE * channels + c] = (float)(gamma * deviation);
    close.terms[NORM_SHIFT * channels + c] = close.shift[c];
    close.terms[NORM_DEVIATION * channels + c] = (float)deviation;
}

/* Sums of the column's threads, pair by pair; the first row gets them. All threads call it. */
template <int COUNT> __device__ __forceinline__ void add_column(double (&sums)[COUNT]) {
    __shared__ double partial[COUNT][CLOSE_ROWS][CLOSE_CHANNELS];
    for (int i = 0; i < COUNT; i++) partial[i][threadIdx.y][threadIdx.x] = sums[i];
    for (int half = CLOSE_ROWS / 2; half > 0; half /= 2) {
        __syncthreads();
        if ((int)threadIdx.y >= half) continue;
        for (int i = 0; i < COUNT; i++) {
            sums[i] += partial[i][(int)threadIdx.y + half][threadIdx.x];
            partial[i][threadIdx.y][threadIdx.x] = sums[i];
        }
    }
}

/* All squared deviations are those within the blocks and, between them, sum n m^2 - (sum n m)^2 / n of the blocks'
 * means m: Chan's formula for all blocks at once. */
__global__ void __launch_bounds__(CLOSE_CHANNELS *CLOSE_ROWS)
    close_statistics(NormClose close, int channels, int blocks) {
    int c = (int)(blockIdx.x * CLOSE_CHANNELS + threadIdx.x);
    double sums[4] = {0, 0, 0, 0}; /* n, n m, n m^2, deviations within the blocks */
    for (int block = (int)threadIdx.y; block < blocks && c < channels; block += CLOSE_ROWS) {
        double n = (double)*partial_count(close.partials, channels, (unsigned)blocks, (unsigned)block);
        double mean = (double)partial_row(close.partials, channels, (unsigned)block, 0)[c];
        sums[0] += n;
        sums[1] += n * mean;
        sums[2] += n * mean * mean;
        sums[3] += (double)partial_row(close.partials, channels, (unsigned)block, 1)[c];
    }
    add_column(sums);
    if (threadIdx.y > 0 || c >= channels) return;
    double n = sums[0], mean = (double)partial_zero(close.partials, channels, (unsigned)blocks)[c] + sums[1] / n;
    double squares = sums[3] + fmax(sums[2] - sums[1] * sums[1] / n, 0.0);
    double variance = squares / n, unbiased = n > 1 ? squares / (n - 1) : variance, change = 1 - close.keep;
    store_terms(close, channels, c, mean, variance);
    close.running_mean[c] = (float)(close.keep * (double)close.running_mean[c] + change * mean);
    close.running_variance[c] = (float)(close.keep * (double)close.running_variance[c] + change * unbiased);
}

__global__ void close_running(NormClose close, int channels) {
    GRID_LOOP(c, channels) {
        store_terms(close, channels, (int)c, (double)close.running_mean[c], (double)close.running_variance[c]);
    }
}

/* `apart`: the products are of x - mean, not of x. */
__global__ void __launch_bounds__(CLOSE_CHANNELS *CLOSE_ROWS)
    close_gradients(NormBackwardClose close, int channels, int blocks, double pixels, bool apart) {
    int c = (int)(blockIdx.x * CLOSE_CHANNELS + threadIdx.x);
    double sums[2] = {0, 0};
    for (int block = (int)threadIdx.y; block < blocks && c < channels; block += CLOSE_ROWS) {
        sums[0] += (double)partial_row(close.partials, channels, (unsigned)block, 0)[c];
        sums[1] += (double)partial_row(close.partials, channels, (unsigned)block, 1)[c];
    }
    add_column(sums);
    if (threadIdx.y > 0 || c >= channels) return;
    double mean = (double)close.terms[NORM_MEAN * channels + c], factor = (double)close.factor;
    double scale = (double)close.terms[NORM_SCALE * channels + c];
    double deviation = (double)close.terms[NORM_DEVIATION * channels + c];
    double sum = sums[0], product = apart ? sums[1] : sums[1] - mean * sum;
    close.terms[NORM_BASE * channels + c] = (float)(-scale * sum / pixels);
    close.terms[NORM_TILT * channels + c] = (float)(-scale * deviation * deviation * product / pixels);
    close.bias_gradient[c] = (float)(sum * factor);
    if (close.scale_gradient != nullptr) close.scale_gradient[c] = (float)(product * deviation * factor);
}

static dim3 close_threads(void) { return dim3(CLOSE_CHANNELS, CLOSE_ROWS); }

static unsigned close_blocks(const NormShape *shape) {
    return (unsigned)ceil_div((size_t)shape->channels, CLOSE_CHANNELS);
}

extern "C" Status cuda_norm_close(const NormShape *shape, NormClose close, DeviceStream *stream) {
    int blocks = close.blocks > 0 ? close.blocks : (int)statistics_grid(shape).blocks.x;
    return LAUNCH(close_statistics, close_blocks(shape), close_threads(), 0, stream, close, shape->channels, blocks);
}

extern "C" Status cuda_norm_running(const NormShape *shape, NormClose close, DeviceStream *stream) {
    return LAUNCH(close_running, close_blocks(shape), CLOSE_CHANNELS, 0, stream, close, shape->channels);
}

extern "C" Status cuda_norm_backward_close(const NormShape *shape, NormBackwardClose close, DeviceStream *stream) {
    Grid grid = reduce_grid(shape);
    return LAUNCH(close_gradients, close_blocks(shape), close_threads(), 0, stream, close, shape->channels,
                  (int)grid.blocks.x, (double)saved_pixels_of(shape), shape->precision == PRECISION_FLOAT32);
}
