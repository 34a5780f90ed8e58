/* Resampling of 8-bit RGB, row after row, so that a source that is decoded meanwhile need never be whole in memory.
 *
 *     TRY(resizer_begin(resizer, RESIZE_AREA, from, to, out, out_stride));
 *     resizer_push(resizer, rows, stride, count);        until all rows were given
 *
 * The result does not depend on how the rows are divided, nor on the processor. */
#ifndef CGXFFCV_IMAGE_RESIZE_H
#define CGXFFCV_IMAGE_RESIZE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

#define RESIZE_MAX_SIDE 65535

typedef enum ResizeFilter {
    /* Each value is the exact average of the source over the output pixel's box, rounded to nearest (halves up). */
    RESIZE_AREA,
    /* A triangle as wide as two source pixels, or two output pixels where those are larger, cut off at the image's
     * edges: antialiased bilinear resampling, as Pillow's but for its rounding between the two axes. */
    RESIZE_BILINEAR,
    /* The source pixel below the output pixel's centre, unchanged: for numbers that are no brightness. */
    RESIZE_NEAREST
} ResizeFilter;

/* "area", "bilinear_antialias", "nearest"; NULL if there is no such number. */
const char *resize_filter_name(int filter);

typedef struct ImageSize {
    uint32_t width, height;
} ImageSize;

/* How a source lies that has been reduced already: each of its pixels stands for unit x unit of the pixels that `from`
 * counts, which begins at (x, y) of the first, both below `unit`. */
typedef struct ResizeGrid {
    uint32_t unit, x, y;
} ResizeGrid;

/* Working memory of one thread; grows as needed: some rows of the source, as float32, and the filter's weights. */
typedef struct Resizer Resizer;

Status resizer_create(Resizer **out);
void resizer_destroy(Resizer *resizer); /* does nothing if NULL */

/* The memory that it holds. */
size_t resizer_bytes(const Resizer *resizer);

/* From `from` pixels to `to` pixels at `out`, which is borrowed until the last row was given; sides 1 to
 * RESIZE_MAX_SIDE, in either direction, enlarging or reducing. */
Status resizer_begin(Resizer *resizer, ResizeFilter filter, ImageSize from, ImageSize to, uint8_t *out,
                     size_t out_stride);

/* The same from a reduced source, whose rows and columns are those that `from` touches; `mirrored`: the result, left to
 * right. */
Status resizer_begin_reduced(Resizer *resizer, ResizeFilter filter, ResizeGrid grid, ImageSize from, ImageSize to,
                             bool mirrored, uint8_t *out, size_t out_stride);

/* The next `count` rows of the source, at most as many as are left. */
void resizer_push(Resizer *resizer, const uint8_t *rgb, size_t stride, uint32_t count);

/* ---- other formats ---- */

typedef enum ResizeValue { RESIZE_U8, RESIZE_U16, RESIZE_F32 } ResizeValue;

typedef struct ResizeImage {
    ResizeValue type;
    uint32_t channels;
    ImageSize size;
    const void *pixels; /* borrowed, not aligned */
    size_t stride;
} ResizeImage;

/* An image of any channels and values, by plain loops, to `out`, row after row. Averages over areas of whole numbers
 * are exact, and rounded as those of 8-bit RGB. */
Status resize_general(const ResizeImage *image, ResizeFilter filter, ImageSize to, void *out);

#endif
