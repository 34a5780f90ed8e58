/* The gradient of what a norm normalised, for kernels that make it themselves. A thread has a pack of channels; terms
 * (NORM_TERMS, channels), float32, maps (images, height, width, channels) as grid.cuh says. */
#ifndef CGXFFCV_NN_CUDA_NORM_SLOPES_CUH
#define CGXFFCV_NN_CUDA_NORM_SLOPES_CUH

#include "nn/cuda/norm/grid.cuh"

/* Of COUNT neighbouring channels. The gradient at x without that of the statistics is dz scale; with it:
 * dz scale + lean x + level. In 16 bits the mean goes into shift and level: what that rounds off is far below what the
 * storage did. */
template <typename T, int COUNT = Pack<T>::PACK> struct Slopes {
    float mean[COUNT], scale[COUNT], shift[COUNT], tilt[COUNT], base[COUNT];

    __device__ __forceinline__ void load(const float *terms, int channels, int channel) {
        load_term(terms, NORM_MEAN, channels, channel, mean);
        load_term(terms, NORM_SCALE, channels, channel, scale);
        load_term(terms, NORM_SHIFT, channels, channel, shift);
        load_term(terms, NORM_TILT, channels, channel, tilt);
        load_term(terms, NORM_BASE, channels, channel, base);
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            shift[i] = is_narrow<T>() ? fmaf(-mean[i], scale[i], shift[i]) : shift[i];
            base[i] = is_narrow<T>() ? fmaf(-mean[i], tilt[i], base[i]) : base[i];
        }
    }
    __device__ __forceinline__ float z(float x, int i) const {
        return fmaf(is_narrow<T>() ? x : x - mean[i], scale[i], shift[i]);
    }
    /* The part of the gradient that comes by way of the statistics. */
    __device__ __forceinline__ float level(float x, int i) const {
        return fmaf(tilt[i], is_narrow<T>() ? x : x - mean[i], base[i]);
    }
    /* The whole of it, from that of the activation's value. */
    template <Activation ACTIVATION> __device__ __forceinline__ float gradient(float x, float dy, int i) const {
        float dz = dy * activation_slope<ACTIVATION>(z(x, i));
        return fmaf(scale[i], dz, level(x, i));
    }
};

#endif
