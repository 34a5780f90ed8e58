/* Batches from a data set of uint8 images in device memory: gathered in a given order and augmented by the draws of
 * draw.h, so that the pixels are the same as from the CPU's augmentation. In cuda/gather.cu, or cuda_none.c in a build
 * without CUDA. All functions only enqueue work on the stream, and may be captured. */
#ifndef CGXFFCV_AUGMENT_GATHER_H
#define CGXFFCV_AUGMENT_GATHER_H

#include "augment/augment.h"
#include "device/device.h"

#define GATHER_MAX_OPS 16

typedef struct GatherSet {
    const uint8_t *images; /* device, (count, height, width, 3) */
    const int64_t *labels; /* device, (count) */
    const int64_t *ids;    /* device, (count): the samples' indices in the file, which key the draws */
    int64_t count;
    int height, width;
} GatherSet;

/* Which batch to gather, in device memory: read when the kernel runs, so that one recorded launch serves for all. */
typedef struct GatherClock {
    uint64_t seed;  /* for the draws */
    uint32_t epoch; /* likewise */
    int32_t first;  /* where the batch's images begin in `order` */
} GatherClock;

/* Fails for operations that change the size or follow the normalisation, for more than GATHER_MAX_OPS, for images of 2
 * GiB, and where augment_create fails. */
Status augment_gather_check(const AugmentOp *ops, int op_count, int height, int width);

/* Fills to (batch, height, width, 3) and to_labels (batch) with the images order[clock->first + i], augmented by
 * operations that augment_gather_check accepts; labels are not mixed. `to` is aligned to 16 bytes. */
Status augment_gather_batch(const GatherSet *set, const int32_t *order, const GatherClock *clock, int batch,
                            const AugmentOp *ops, int op_count, uint8_t *to, int64_t *to_labels, DeviceStream *stream);

/* Fills to (count, height, width, 3), aligned likewise, with the images places[i] (device), unchanged. */
Status augment_gather_plain(const GatherSet *set, const int32_t *places, int count, uint8_t *to, DeviceStream *stream);

#endif
