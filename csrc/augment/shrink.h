/* Batches at a lower resolution, for the start of training: the linear (triangle) filter, widened by the ratio of the
 * sizes, so that every input pixel counts; at the borders the weights are normalised. On the host (shrink.c) and on a
 * GPU (cuda/shrink.cu, or cuda_none.c in a build without CUDA), with the weights of triangle.h. */
#ifndef CGXFFCV_AUGMENT_SHRINK_H
#define CGXFFCV_AUGMENT_SHRINK_H

#include <stdbool.h>
#include <stdint.h>

#include "base/pool.h"
#include "base/status.h"
#include "device/device.h"

#define AUGMENT_MAX_SHRUNK 128 /* largest side that a GPU shrinks images to */

/* Dense images with 3 channels, of bytes, which are normalised on the way, or of floats, which already are. */
typedef struct AugmentShrunk {
    const void *data;        /* borrowed */
    bool floats, planes;     /* planes: one channel after another */
    const float *mean, *std; /* borrowed: 3 each, for bytes, in units of 0..255 */
} AugmentShrunk;

/* Shrinks `count` images of height x width to side x side, float32, channels last, in `to`. Cannot enlarge. */
Status augment_shrink(const AugmentShrunk *images, int64_t count, int64_t height, int64_t width, int64_t side,
                      Pool *pool, float *to);

/* The same for bytes (count, height, width, 3) in device memory. Only enqueues work on the stream; may be captured. */
Status augment_shrink_on_device(const uint8_t *images, int count, int height, int width, int side, const float mean[3],
                                const float std[3], float *to, DeviceStream *stream);

#endif
