/* Batches at a lower resolution, for the start of a training. */
#ifndef CGXFFCV_TRAIN_SHRINK_H
#define CGXFFCV_TRAIN_SHRINK_H

#include <stdint.h>

#include "base/pool.h"
#include "base/status.h"
#include "nn/model.h"

/* Shrinks `count` images of height x width with 3 channels to side x side: the linear (triangle) filter, widened by
 * the ratio of the sizes, so that every input pixel counts; at the borders the weights are normalised. `to` gets
 * float32, channels last; bytes are normalised on the way, by images->mean and images->std. Views (mirror, shifts)
 * and enlarging are refused. */
Status shrink_images(const NnImages *images, int64_t count, int64_t height, int64_t width, int64_t side, Pool *pool,
                     float *to);

#endif
