/* Resampling of 8-bit RGB, row by row, so that a source that is still being decoded need never be in memory as a whole.
 *
 *     TRY(resizer_begin(resizer, RESIZE_AREA, from, to, out, out_stride));
 *     resizer_push(resizer, rows, stride, count);        until all rows have been pushed
 *
 * The result depends neither on how the rows are split between calls nor on the processor. */
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
     * edges: antialiased bilinear resampling, like Pillow's except for its rounding between the two axes. */
    RESIZE_BILINEAR,
    /* The source pixel under the output pixel's centre, unchanged: for values that must not be mixed. */
    RESIZE_NEAREST
} ResizeFilter;

/* "area", "bilinear_antialias", "nearest"; NULL if there is no such number. */
const char *resize_filter_name(int filter);

typedef struct ImageSize {
    uint32_t width, height;
} ImageSize;

/* The grid of a source that has already been reduced: each of its pixels stands for unit x unit of the pixels in which
 * `from` is measured; `from` begins at (x, y) within the first one, both less than `unit`. */
typedef struct ResizeGrid {
    uint32_t unit, x, y;
} ResizeGrid;

/* One thread's workspace, which grows as needed: some rows of the source, as float32, and the filter's weights. */
typedef struct Resizer Resizer;

Status resizer_create(Resizer **out);
void resizer_destroy(Resizer *resizer); /* does nothing if NULL */

/* The memory that it uses, in bytes. */
size_t resizer_bytes(const Resizer *resizer);

/* Begins resampling from `from` pixels to `to` pixels at `out`, which is borrowed until the last row has been pushed.
 * Sides are 1 to RESIZE_MAX_SIDE; each may be enlarged or reduced. */
Status resizer_begin(Resizer *resizer, ResizeFilter filter, ImageSize from, ImageSize to, uint8_t *out,
                     size_t out_stride);

/* The same from a reduced source, whose rows and columns are those that `from` touches; `mirrored` flips the result
 * left to right. */
Status resizer_begin_reduced(Resizer *resizer, ResizeFilter filter, ResizeGrid grid, ImageSize from, ImageSize to,
                             bool mirrored, uint8_t *out, size_t out_stride);

/* Adds the next `count` rows of the source, at most as many as are left. */
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

/* Resamples an image with any channels and values, by plain loops, to `out`, which is contiguous. Averages over areas
 * of whole numbers are exact, and rounded like those of 8-bit RGB. */
Status resize_general(const ResizeImage *image, ResizeFilter filter, ImageSize to, void *out);

#endif
