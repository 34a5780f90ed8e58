/* Private to image/: what the two ways of resampling share. */
#ifndef CGXFFCV_IMAGE_RESIZE_PRIVATE_H
#define CGXFFCV_IMAGE_RESIZE_PRIVATE_H

#include <stdbool.h>

#include "image/resize.h"

#define RESIZE_CHANNELS 3

struct Resizer {
    float *floats; /* owned: rows added up, weights */
    void *boxes;   /* owned: where each column of the result comes from */
    size_t float_bytes, box_bytes;
};

/* Refuses impossible sizes; copies where nothing changes, and says so. */
Status resizer_begin(const uint8_t *rgb, size_t stride, ImageSize from, uint8_t *out, size_t out_stride, ImageSize to,
                     bool *done);

/* Room for so many bytes of each. */
Status resizer_reserve(Resizer *resizer, size_t float_bytes, size_t box_bytes);

#endif
