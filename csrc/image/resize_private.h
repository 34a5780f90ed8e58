/* Private to image/: the filters' weights, and the loops over rows and columns, in a table per instruction set. */
#ifndef CGXFFCV_IMAGE_RESIZE_PRIVATE_H
#define CGXFFCV_IMAGE_RESIZE_PRIVATE_H

#include <stdbool.h>

#include "image/resize.h"

#define RESIZE_CHANNELS 3
#define RESIZE_LANES 4 /* of the vector in which a pixel's channels are added up */

/* The source pixels of output pixel x along one axis: weights [x * taps, x * taps + count[x]) are those of first[x] and
 * the following ones; the rest of its `taps` are 0. */
typedef struct ResizeAxis {
    uint32_t from, to, unit, offset; /* `from` and `offset` in units; a source pixel is `unit` of them wide */
    uint32_t taps;
    uint32_t *first, *count; /* borrowed: `to` items each */
    double *weights;         /* borrowed: to * taps */
} ResizeAxis;

/* The number of source pixels that the axis touches. */
static inline uint32_t resize_axis_pixels(const ResizeAxis *axis) {
    return (axis->offset + axis->from + axis->unit - 1) / axis->unit;
}

/* Finds `first`, `count` and `taps`. */
void resize_axis_place(ResizeAxis *axis, ResizeFilter filter);

/* Fills in the weights, after resize_axis_place: for AREA, whole numbers whose sum is `from`; otherwise their sum is
 * 1. */
void resize_axis_weigh(const ResizeAxis *axis, ResizeFilter filter);

/* Reverses the axis: the last output pixel is then made of what output pixel 0 was made of, and so on. */
void resize_axis_reverse(const ResizeAxis *axis);

/* How an output row is computed from a row of sums: out = trunc(total * factor + half) in float64, where the total is
 * the sum over a pixel's taps, in order, of weight * sum. */
typedef struct ResizeColumns {
    ResizeAxis axis;
    double factor, half;
    bool exact;     /* no product and no sum is rounded */
    bool spread;    /* exact averages have so many different fractions that few of them are close to one half */
    double *totals; /* borrowed: scratch memory for an output row */
    void *lanes;    /* borrowed: the axis in the kernels' own layout, or NULL */
} ResizeColumns;

#define RESIZE_BEYOND 64 /* padding values, which are finite, after a row of sums; more if a pixel has more taps */

typedef struct ResizeKernels {
    /* sums[i] = (0, or with `add` sums[i]) + weights[0] * row 0 [i] + weights[1] * row 1 [i] + ..., in this order. */
    void (*rows)(float *sums, const uint8_t *rgb, size_t stride, const float *weights, uint32_t taps, size_t count,
                 bool add);
    void (*columns)(const float *sums, const ResizeColumns *columns, uint8_t *out);
    /* Both may be NULL: the size of `lanes` for this axis, 0 if it has none; and a function that fills them. */
    size_t (*lanes_bytes)(const ResizeAxis *axis);
    void (*make_lanes)(const ResizeColumns *columns);
} ResizeKernels;

extern const ResizeKernels resize_kernels_scalar;
#if defined(__x86_64__)
extern const ResizeKernels resize_kernels_avx2, resize_kernels_avx512;
#endif

#endif
