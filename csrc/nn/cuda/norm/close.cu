/* Converts running statistics to the terms that evaluation needs, for all norms at once.
 *
 * Thread t of block (x, norm): channel 32 x + t. Buffers of each norm: running means and variances, scale, shift
 * (channels); terms (NORM_TERMS, channels), float32. */
#include "nn/cuda/norm/close.cuh"

#define CLOSE_CHANNELS 32

__global__ void norm_running_kernel(NormRunning running) {
    grid_begin();
    const NormClose &close = running.norms[blockIdx.y];
    int channels = running.channels[blockIdx.y];
    GRID_LOOP(c, channels) {
        store_terms(close, channels, (int)c, (double)close.running_mean[c], (double)close.running_variance[c]);
    }
}

extern "C" Status nn_cuda_norm_running(const NormRunning *running, DeviceStream *stream) {
    int most = 0;
    for (int i = 0; i < running->count; i++) most = running->channels[i] > most ? running->channels[i] : most;
    dim3 grid((unsigned)ceil_div((size_t)most, CLOSE_CHANNELS), (unsigned)running->count);
    return LAUNCH_AFTER(norm_running_kernel, grid, CLOSE_CHANNELS, 0, stream, *running);
}
