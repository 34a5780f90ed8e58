/* The second moments of image patches, from which the whitening filters are computed (nn/whiten.h): on the host
 * (moments.c) and on a GPU (cuda/moments.cu, or cuda_none.c in a build without CUDA). Patches are 2 x 2 over 3
 * channels; a patch's 12 elements are ordered (channel, row, column). */
#ifndef CGXFFCV_AUGMENT_MOMENTS_H
#define CGXFFCV_AUGMENT_MOMENTS_H

#include <stdint.h>

#include "augment/gather.h"
#include "base/pool.h"

#define AUGMENT_PATCH 12

/* The mean over all patches of their outer product (the patches' mean is not subtracted), 12 x 12.
 * `images`: count x 3 x height x width, normalised, element strides in `strides` (image, channel, row, column).
 * The result is the same for any number of threads. */
Status augment_moments(const float *images, int64_t count, int64_t height, int64_t width, const int64_t strides[4],
                       Pool *pool, double moments[AUGMENT_PATCH * AUGMENT_PATCH]);

/* Exact sums over all patches of the set's first `count` images: of the products of a patch's bytes i <= j, in rows of
 * the upper triangle, then of the bytes. Each of the first *parts rows of `to` (device, AUGMENT_MOMENT_PARTS x
 * AUGMENT_MOMENTS) receives a part of the sums. Only enqueues work on the stream. */
#define AUGMENT_MOMENTS 90
#define AUGMENT_MOMENT_PARTS 264
Status augment_moments_on_device(const GatherSet *set, int64_t count, uint64_t *to, int *parts, DeviceStream *stream);

#endif
