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
    uint32_t from, to, unit, offset; /* `from` and `offset` in units, of which a source pixel has `unit` */
    uint32_t taps;
    uint32_t *first, *count; /* borrowed: `to` of each */
    double *weights;         /* borrowed: to * taps */
} ResizeAxis;

/* The source pixels that it touches. */
static inline uint32_t resize_axis_pixels(const ResizeAxis *axis) {
    return (axis->offset + axis->from + axis->unit - 1) / axis->unit;
}

/* Finds `first`, `count` and `taps`. */
void resize_axis_place(ResizeAxis *axis, ResizeFilter filter);

/* Fills the weights, whose place is known by now: of AREA whole numbers that add up to `from`, of BILINEAR's the sum is
 * 1. */
void resize_axis_weigh(const ResizeAxis *axis, ResizeFilter filter);

/* The same from its end: what output pixel 0 is made of is then the last one's. */
void resize_axis_turn(const ResizeAxis *axis);

/* How an output row is made of a row of sums: out = trunc(total * factor + half) in float64, where the total is the sum
 * over a pixel's taps, in their order, of weight * sum. */
typedef struct ResizeColumns {
    ResizeAxis axis;
    double factor, half;
    bool exact;     /* no product and no sum is rounded */
    double *totals; /* borrowed: scratch memory for an output row */
    void *lanes;    /* borrowed: the kernels' own form of the axis, or NULL */
} ResizeColumns;

#define RESIZE_BEYOND 64 /* finite values that follow a row of sums, or as many as a pixel's taps if they are more */

typedef struct ResizeKernels {
    /* sums[i] = (0, or with `add` sums[i]) + weights[0] * row 0 [i] + weights[1] * row 1 [i] + ..., in this order. */
    void (*rows)(float *sums, const uint8_t *rgb, size_t stride, const float *weights, uint32_t taps, size_t count,
                 bool add);
    void (*columns)(const float *sums, const ResizeColumns *columns, uint8_t *out);
    /* NULL, or: the bytes of `lanes` for this axis, 0 if it has none; and what fills them. */
    size_t (*lanes_bytes)(const ResizeAxis *axis);
    void (*make_lanes)(const ResizeColumns *columns);
} ResizeKernels;

extern const ResizeKernels resize_kernels_scalar;
#if defined(__x86_64__)
extern const ResizeKernels resize_kernels_avx2, resize_kernels_avx512;
#endif

#endif
