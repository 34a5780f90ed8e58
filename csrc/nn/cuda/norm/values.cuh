/* What a thread of the norms' kernels computes for a pack of channels: sums for statistics, normalised values.
 * Maps and terms are as in grid.cuh. */
#ifndef CGXFFCV_NN_CUDA_NORM_VALUES_CUH
#define CGXFFCV_NN_CUDA_NORM_VALUES_CUH

#include "nn/cuda/norm/grid.cuh"

/* Sums of a thread's values relative to the first of them, to avoid cancellation. */
template <int PACK> struct Moments {
    float origin[PACK], sum[PACK], square[PACK];
    int count;

    __device__ __forceinline__ Moments() : count(0) {
#pragma unroll
        for (int i = 0; i < PACK; i++) origin[i] = sum[i] = square[i] = 0;
    }
    __device__ __forceinline__ void begin(const float (&x)[PACK]) {
        if (count > 0) return;
#pragma unroll
        for (int i = 0; i < PACK; i++) origin[i] = x[i];
    }
    __device__ __forceinline__ void add(const float (&x)[PACK]) {
        count++;
#pragma unroll
        for (int i = 0; i < PACK; i++) {
            float apart = x[i] - origin[i];
            sum[i] += apart;
            square[i] = fmaf(apart, apart, square[i]);
        }
    }
};

/* z of a channel. With 16-bit storage the mean is folded into the shift: a rounding error far below the storage's. */
template <typename T> struct Normalise {
    static constexpr int PACK = Pack<T>::PACK;
    float mean[PACK], scale[PACK], shift[PACK];

    __device__ __forceinline__ void load(const float *terms, int channels, int channel) {
        load_term(terms, NORM_MEAN, channels, channel, mean);
        load_term(terms, NORM_SCALE, channels, channel, scale);
        load_term(terms, NORM_SHIFT, channels, channel, shift);
#pragma unroll
        for (int i = 0; i < PACK; i++) shift[i] = is_narrow<T>() ? fmaf(-mean[i], scale[i], shift[i]) : shift[i];
    }
    /* x minus the mean, unless that is folded into the shift. */
    __device__ __forceinline__ float apart(float x, int i) const { return is_narrow<T>() ? x : x - mean[i]; }
    __device__ __forceinline__ float z(float x, int i) const { return fmaf(apart(x, i), scale[i], shift[i]); }
};

template <typename T> __device__ __forceinline__ void add_pack(const Pack<T> &pack, float (&to)[Pack<T>::PACK]) {
#pragma unroll
    for (int i = 0; i < Pack<T>::PACK; i++) to[i] += pack.get(i);
}

/* The choice costs all threads one branch. */
template <int PACK> __device__ __forceinline__ void activate_all(Activation activation, float (&y)[PACK]) {
    DISPATCH_ACTIVATION(activation, A, {
#pragma unroll
        for (int i = 0; i < PACK; i++) y[i] = activate<A>(y[i]);
    });
}

#endif
