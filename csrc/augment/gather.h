/* Batches from a data set of uint8 images that lies in device memory: gathered by an order, augmented by the draws of
 * draw.h, so that the pixels are those of the CPU's augmentation. cuda/gather.cu; cuda_none.c is its twin in a build
 * without CUDA. All of them only put work on the stream, and may be recorded. */
#ifndef CGXFFCV_AUGMENT_GATHER_H
#define CGXFFCV_AUGMENT_GATHER_H

#include "augment/augment.h"
#include "device/device.h"

#define GATHER_MAX_OPS 16

typedef struct GatherSet {
    const uint8_t *images; /* device, (count, height, width, 3) */
    const int64_t *labels; /* device, (count) */
    const int64_t *ids;    /* device, (count): the samples' numbers in the file, which the draws are keyed by */
    int64_t count;
    int height, width;
} GatherSet;

/* Which batch it is, in device memory: read when the kernel runs, so that one recorded launch serves them all. */
typedef struct GatherClock {
    uint64_t seed;  /* for the draws */
    uint32_t epoch; /* likewise */
    int32_t first;  /* where the batch's images begin in `order` */
} GatherClock;

/* Refuses operations that change the size or follow the normalisation, more than GATHER_MAX_OPS, images of 2 GiB, and
 * what augment_create refuses. */
Status augment_gather_check(const AugmentOp *ops, int op_count, int height, int width);

/* to (batch, height, width, 3) and to_labels (batch): the images order[clock->first + i], augmented by operations that
 * augment_gather_check took; labels are not mixed. `to` is aligned to 16 bytes. */
Status augment_gather_batch(const GatherSet *set, const int32_t *order, const GatherClock *clock, int batch,
                            const AugmentOp *ops, int op_count, uint8_t *to, int64_t *to_labels, DeviceStream *stream);

/* to (count, height, width, 3): the images places[i] (device), as they are; aligned likewise. */
Status augment_gather_plain(const GatherSet *set, const int32_t *places, int count, uint8_t *to, DeviceStream *stream);

#endif
