/* The loops over activations, compiled for each instruction set (kernels_*.c from kernels_*.h) and chosen at run time.
 * All tensors are channels-last and dense; `void` pointers to activations are float32 or bfloat16, depending on the
 * table. Arrays over channels have room for the channels rounded up to KERNELS_ROUND. */
#ifndef CGXFFCV_NN_CPU_KERNELS_H
#define CGXFFCV_NN_CPU_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "nn/model.h"

#define KERNELS_ROUND 16

/* `images` maps of height x width x channels. */
typedef struct Maps {
    int images, height, width, channels;
} Maps;

static inline size_t maps_pixels(const Maps *maps) {
    return (size_t)maps->images * (size_t)maps->height * (size_t)maps->width;
}

/* Normalisation of a channel: z = (x - mean) * scale + shift. The gradient at x is scale * dz + tilt * (x - mean) +
 * base. */
typedef struct NormTerms {
    float *mean, *scale, *shift, *tilt, *base;
} NormTerms;

/* A convolution that reads the images: float32 `input`, whose height and width include its zero border. */
typedef struct StemShape {
    Maps input;
    int out_height, out_width, out_channels;
    int kernel, stride;
    Activation activation;
} StemShape;

typedef struct Kernels {
    /* Maximum over windows of `pool` x `pool`; index (NULL: not wanted): the row-major position of the maximum in its
     * window, the first of equal ones. */
    void (*pool)(const void *input, const Maps *input_maps, int pool, void *output, uint8_t *index);
    /* The reverse: each element of `gradient` goes to its place; the rest is zero, odd rows and columns included. */
    void (*unpool)(const void *gradient, const uint8_t *index, const Maps *output_maps, int pool, void *output);

    /* Per channel: the mean and the sum of squared deviations from it. */
    void (*moments)(const void *input, size_t pixels, int channels, float *mean, float *deviations);
    /* activate(normalise(input)), with the residual (NULL: none) added before or after the activation. */
    void (*normalise)(const void *input, size_t pixels, int channels, const NormTerms *terms, Activation activation,
                      const void *residual, ResidualPlace place, void *output);
    /* dz = (gradient + skip) * activation'(z); sums[c] += dz, products[c] += dz * (input - mean). `skip` and the
     * `residual` in z may be NULL; `store_sum` stores gradient + skip in gradient. */
    void (*reduce)(const void *input, size_t pixels, int channels, const NormTerms *terms, Activation activation,
                   void *gradient, const void *skip, bool store_sum, const void *residual, void *dz, float *sums,
                   float *products);
    void (*norm_backward)(const void *input, const void *dz, size_t pixels, int channels, const NormTerms *terms,
                          void *output);

    /* `weights`: (kernel row, kernel column, in, rounded out channels), `bias` (NULL: none): (rounded out channels).
     * `row`: scratch memory, out_width x out_channels + KERNELS_ROUND. */
    void (*stem_forward)(const StemShape *shape, const float *input, const float *weights, const float *bias,
                         float *row, void *output);
    /* Adds to `weight_gradient` and `bias_gradient` (NULL: not wanted), with shapes as above. */
    void (*stem_backward)(const StemShape *shape, const float *input, const float *weights, const float *bias,
                          const void *gradient, float *row, float *weight_gradient, float *bias_gradient);

    /* The largest pixel of each channel of one image, and its index (the first of equal ones). */
    void (*global_pool)(const void *input, int pixels, int channels, float *pooled, int32_t *index);
    void (*global_unpool)(const float *gradient, const int32_t *index, int pixels, int channels, void *output);
    /* The mean over the pixels of each channel of one image; and the reverse: each pixel gets an equal share. */
    void (*global_average)(const void *input, int pixels, int channels, float *pooled);
    void (*global_spread)(const float *gradient, int pixels, int channels, void *output);
    /* logits = scale * weights (classes, channels) . pooled */
    void (*linear)(const float *pooled, int channels, const float *weights, int classes, float scale, float *logits);
    /* pooled_gradient = scale * weights^T . logits_gradient; weight_gradient += scale * logits_gradient x pooled. */
    void (*linear_backward)(const float *pooled, int channels, const float *weights, int classes, float scale,
                            const float *logits_gradient, float *pooled_gradient, float *weight_gradient);

    /* to[i] += from[i] */
    void (*add_maps)(const void *from, size_t elems, void *to);
    void (*to_float)(const void *from, size_t elems, float *to);
    void (*from_float)(const float *from, size_t elems, void *to);
    /* to[i] = from[map[i]] in the storage type, 0 where map[i] is negative. */
    void (*gather)(const float *from, const int32_t *map, size_t elems, void *to);
    /* to[i] = sum over k < count of from[k * stride + map[i]]. */
    void (*gather_sum)(const float *from, size_t count, size_t stride, const int32_t *map, size_t elems, float *to);
    /* to[i] = sum over k < count of from[k * stride + i]. */
    void (*sum)(const float *from, size_t count, size_t stride, size_t elems, float *to);
    /* to[i] += from[i] */
    void (*add)(const float *from, size_t elems, float *to);
} Kernels;

/* The table for this processor; `precision` is not AUTO. */
const Kernels *nn_cpu_kernels_for(Precision precision);

const Kernels *nn_cpu_kernels_scalar(Precision precision);
const Kernels *nn_cpu_kernels_avx2(Precision precision);
const Kernels *nn_cpu_kernels_avx512(Precision precision);
const Kernels *nn_cpu_kernels_avx512bf16(Precision precision);

#endif
