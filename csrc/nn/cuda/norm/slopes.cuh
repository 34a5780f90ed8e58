/* The gradient at a norm's input, for kernels that compute it themselves. A thread has a pack of channels; terms
 * (NORM_TERMS, channels), float32, maps (images, height, width, channels) as in grid.cuh. */
#ifndef CGXFFCV_NN_CUDA_NORM_SLOPES_CUH
#define CGXFFCV_NN_CUDA_NORM_SLOPES_CUH

#include "nn/cuda/norm/grid.cuh"

/* For COUNT neighbouring channels. The gradient at x without the statistics' share is dz scale; with it, dz scale +
 * tilt (x - mean) + base. With 16-bit storage the mean is folded into shift and base: the rounding error of that is far
 * below that of the storage. */
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
    /* The part of the gradient that comes through the statistics. */
    __device__ __forceinline__ float level(float x, int i) const {
        return fmaf(tilt[i], is_narrow<T>() ? x : x - mean[i], base[i]);
    }
    /* The whole gradient, from that of the activation's output. */
    template <Activation ACTIVATION> __device__ __forceinline__ float gradient(float x, float dy, int i) const {
        float dz = dy * activation_slope<ACTIVATION>(z(x, i));
        return fmaf(scale[i], dz, level(x, i));
    }
};

#endif
