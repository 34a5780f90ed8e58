/* Private to image/: the filters' weights, and the loops over rows and columns, a table for each instruction set. */
#ifndef CGXFFCV_IMAGE_RESIZE_PRIVATE_H
#define CGXFFCV_IMAGE_RESIZE_PRIVATE_H

#include <stdbool.h>

#include "image/resize.h"

#define RESIZE_CHANNELS 3
#define RESIZE_LANES 4 /* in which a pixel of the channels is added up */

/* The source pixels of output pixel x along one axis: weights [x * taps, x * taps + count[x]) are those of first[x] and
 * the following ones; the rest of its `taps` are 0. */
typedef struct ResizeAxis {
    uint32_t from, to, taps;
    uint32_t *first, *count; /* borrowed: `to` of each */
    double *weights;         /* borrowed: to * taps */
} ResizeAxis;

/* Finds `first`, `count` and `taps`. */
void resize_axis_place(ResizeAxis *axis, ResizeFilter filter);

/* Fills the weights, whose place is known by now: of AREA whole numbers that add up to `from`, of BILINEAR's the sum is
 * 1. */
void resize_axis_weigh(const ResizeAxis *axis, ResizeFilter filter);

typedef struct ResizeKernels {
    /* sums[i] = (0, or with `add` sums[i]) + weights[0] * row 0 [i] + weights[1] * row 1 [i] + ..., in this order. */
    void (*rows)(float *sums, const uint8_t *rgb, size_t stride, const float *weights, uint32_t taps, size_t count,
                 bool add);
    /* out = trunc((sum over the taps of weight * sums, in their order) * factor + half), in float64; finite values
     * follow the row of sums, as many as a pixel's taps may reach beyond it. `totals` is scratch memory. */
    void (*columns)(const float *sums, const ResizeAxis *axis, double factor, double half, double *totals,
                    uint8_t *out);
} ResizeKernels;

extern const ResizeKernels resize_kernels_scalar;
#if defined(__x86_64__)
extern const ResizeKernels resize_kernels_avx2, resize_kernels_avx512;
#endif

#endif
