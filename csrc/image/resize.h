/* Resampling of 8-bit RGB, by area: each output value is the exact average of the source over the output pixel's box,
 * rounded to nearest (halves up); or bilinear. */
#ifndef CGXFFCV_IMAGE_RESIZE_H
#define CGXFFCV_IMAGE_RESIZE_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

#define RESIZE_MAX_SIDE 65535

typedef struct ImageSize {
    uint32_t width, height;
} ImageSize;

/* Working memory of one thread; grows as needed. */
typedef struct Resizer Resizer;

Status resizer_create(Resizer **out);
void resizer_destroy(Resizer *resizer); /* does nothing if NULL */

/* From `from` pixels at `rgb` to `to` pixels at `out`, each with its stride in bytes; sides 1 to RESIZE_MAX_SIDE, in
 * either direction, enlarging or reducing. A crop is a pointer into a larger image with that image's stride. */
Status resize_area(Resizer *resizer, const uint8_t *rgb, size_t stride, ImageSize from, uint8_t *out, size_t out_stride,
                   ImageSize to);

/* The same with a triangle over the source pixels, wider where the image is reduced: antialiased bilinear resampling,
 * as Pillow's but for its rounding between the two axes. */
Status resize_bilinear(Resizer *resizer, const uint8_t *rgb, size_t stride, ImageSize from, uint8_t *out,
                       size_t out_stride, ImageSize to);

#endif
