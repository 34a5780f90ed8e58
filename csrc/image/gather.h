/* Batches from a data set of uint8 images that lies in device memory: gathered by an order, augmented by the draws of
 * crop.h, so that the pixels are those of the CPU's augmentation. gather.cu; gather_none.c is its twin in a build
 * without CUDA. */
#ifndef CGXFFCV_IMAGE_GATHER_H
#define CGXFFCV_IMAGE_GATHER_H

#include "device/device.h"
#include "image/augment.h"

#define GATHER_MAX_OPS 8

typedef struct GatherSet {
    const uint8_t *images; /* device, (count, height, width, 3) */
    const int64_t *labels; /* device, (count) */
    const int64_t *ids; /* device, (count): the samples' numbers in the file, which the draws are keyed by; NULL: i */
    int64_t count;
    int height, width;
} GatherSet;

/* Where a training stands, in device memory: read when the kernels run, so that one recorded step serves them all. */
typedef struct GatherClock {
    int32_t step;   /* of the training: the row of the rates */
    int32_t first;  /* where this step's images begin in `order` */
    uint32_t epoch; /* for the draws */
    int32_t done;   /* steps since the clock was set */
} GatherClock;

/* Refuses operations that the kernel has not (any but flips, translation, reflecting or filling crops to the same size,
 * cutout) and more than GATHER_MAX_OPS. */
Status gather_check(const AugmentOp *ops, int op_count, int height, int width);

/* to (batch, height, width, 3) and to_labels (batch): the images order[clock->first + i], augmented. */
Status gather_batch(const GatherSet *set, const int32_t *order, const GatherClock *clock, int batch,
                    const AugmentOp *ops, int op_count, uint64_t seed, uint8_t *to, int64_t *to_labels,
                    DeviceStream *stream);

/* The images ids[i] (device), as they are. */
Status gather_plain(const GatherSet *set, const int32_t *ids, int count, uint8_t *to, DeviceStream *stream);

/* clock->step, done += 1, clock->first += batch, on the device. */
Status gather_advance(GatherClock *clock, int batch, DeviceStream *stream);

/* images (count, height, width, 3) shrunk to side x side as train/shrink.h does it, normalised: float32. */
Status gather_shrink(const uint8_t *images, int count, int height, int width, int side, const float mean[3],
                     const float std[3], float *to, DeviceStream *stream);

#endif
