/* Batches at a lower resolution, for the start of a training: the linear (triangle) filter, widened by the ratio of the
 * sizes, so that every input pixel counts; at the borders the weights are normalised. On the host (shrink.c) and on a
 * GPU (cuda/shrink.cu; cuda_none.c is its twin in a build without CUDA) by the weights of triangle.h. */
#ifndef CGXFFCV_AUGMENT_SHRINK_H
#define CGXFFCV_AUGMENT_SHRINK_H

#include <stdbool.h>
#include <stdint.h>

#include "base/pool.h"
#include "base/status.h"
#include "device/device.h"

#define AUGMENT_MAX_SHRUNK 128 /* side of images that a GPU shrinks to */

/* Dense images with 3 channels, of bytes, which are normalised on the way, or of floats, which are so already. */
typedef struct AugmentShrunk {
    const void *data;        /* borrowed */
    bool floats, planes;     /* planes: a channel after the other */
    const float *mean, *std; /* borrowed: 3 each, of bytes, in units of 0..255 */
} AugmentShrunk;

/* Shrinks `count` images of height x width to side x side: `to` gets float32, channels last. Enlarging is refused. */
Status augment_shrink(const AugmentShrunk *images, int64_t count, int64_t height, int64_t width, int64_t side,
                      Pool *pool, float *to);

/* The same of bytes (count, height, width, 3) in device memory. Only puts work on the stream, and may be recorded. */
Status augment_shrink_on_device(const uint8_t *images, int count, int height, int width, int side, const float mean[3],
                                const float std[3], float *to, DeviceStream *stream);

#endif
