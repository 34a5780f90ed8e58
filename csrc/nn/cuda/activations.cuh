/* Activation functions and their derivatives on one float, with an absolute error of at most 1.2e-6, in at most 16
 * instructions; GELU is the exact one, by the normal distribution. */
#ifndef CGXFFCV_NN_CUDA_ACTIVATIONS_CUH
#define CGXFFCV_NN_CUDA_ACTIVATIONS_CUH

#include "device/kernel.cuh"

extern "C" {
#include "nn/model.h"
}

#define LOG2_E 1.4426950408889634f

/* x Phi(x) = max(x, 0) - t (1 - Phi(t)) with t = |x|. The logarithm of the normal distribution's tail is nearly a
 * parabola; the polynomial's error is weighted by t (1 - Phi(t)), which keeps it to 5.7e-7. */
__device__ static __forceinline__ float gelu(float x) {
    float t = fabsf(x);
    float p = fmaf(t, -4.87609880e-4f, 7.19426530e-3f);
    p = fmaf(t, p, -5.21314055e-2f);
    p = fmaf(t, p, -4.59620319e-1f);
    p = fmaf(t, p, -1.15098217f);
    p = fmaf(t, p, -1.00000511f);
    return fmaf(-t, fast_exp2(p), fmaxf(x, 0.0f));
}

/* Phi(x) + x phi(x), to 1.1e-6: at -t it is e^(-t^2 / 2) times a smooth function of t; at t, one minus that. */
__device__ static __forceinline__ float gelu_slope(float x) {
    float t = fabsf(x);
    float e = fast_exp2(t * t * (-0.5f * LOG2_E));
    float q = fmaf(t, 3.79037041e-5f, -6.15390893e-4f);
    q = fmaf(t, q, 4.39982965e-3f);
    q = fmaf(t, q, -1.88250525e-2f);
    q = fmaf(t, q, 5.61492677e-2f);
    q = fmaf(t, q, -1.29972238e-1f);
    q = fmaf(t, q, 2.49279190e-1f);
    q = fmaf(t, q, -7.97818119e-1f);
    q = fmaf(t, q, 4.99998995e-1f);
    q = t < 7.0f ? q : 0.0f; /* the polynomial is cut off before it outgrows the exponential */
    return x < 0.0f ? e * q : fmaf(-e, q, 1.0f);
}

__device__ static __forceinline__ float sigmoid(float x) { return fast_reciprocal(1.0f + fast_exp2(-LOG2_E * x)); }

__device__ static __forceinline__ float silu(float x) { return x * sigmoid(x); }

__device__ static __forceinline__ float silu_slope(float x) {
    float s = sigmoid(x);
    return s * fmaf(x, 1.0f - s, 1.0f);
}

/* The activation is a compile-time constant, see DISPATCH_ACTIVATION. */
template <Activation A> __device__ __forceinline__ float activate(float x) {
    return A == ACTIVATION_RELU   ? (x < 0.0f ? 0.0f : x) /* propagates NaN */
           : A == ACTIVATION_GELU ? gelu(x)
           : A == ACTIVATION_SILU ? silu(x)
                                  : x;
}

template <Activation A> __device__ __forceinline__ float activation_slope(float x) {
    return A == ACTIVATION_RELU   ? (x > 0.0f ? 1.0f : 0.0f)
           : A == ACTIVATION_GELU ? gelu_slope(x)
           : A == ACTIVATION_SILU ? silu_slope(x)
                                  : 1.0f;
}

/* Runs the statements with A as the constant that `activation` equals; for host and device code. */
#define DISPATCH_ACTIVATION(activation, A, ...)                                                                        \
    do {                                                                                                               \
        if ((activation) == ACTIVATION_RELU) {                                                                         \
            constexpr Activation A = ACTIVATION_RELU;                                                                  \
            __VA_ARGS__                                                                                                \
        } else if ((activation) == ACTIVATION_GELU) {                                                                  \
            constexpr Activation A = ACTIVATION_GELU;                                                                  \
            __VA_ARGS__                                                                                                \
        } else if ((activation) == ACTIVATION_SILU) {                                                                  \
            constexpr Activation A = ACTIVATION_SILU;                                                                  \
            __VA_ARGS__                                                                                                \
        } else {                                                                                                       \
            constexpr Activation A = ACTIVATION_NONE;                                                                  \
            __VA_ARGS__                                                                                                \
        }                                                                                                              \
    } while (0)

#endif
