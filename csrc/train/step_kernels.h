/* Training's own kernels: the end of a step, and the sum over an evaluation's views. In step.cu, or step_none.c in a
 * build without CUDA. Private to this folder. */
#ifndef CGXFFCV_TRAIN_STEP_KERNELS_H
#define CGXFFCV_TRAIN_STEP_KERNELS_H

#include "augment/gather.h"

/* The progress of a training run, in device memory: read when kernels run, so that one recorded step serves for all. */
typedef struct TrainClock {
    GatherClock batch;
    int32_t step; /* of the training run: the row of the rates */
    int32_t done; /* steps since the clock was set */
} TrainClock;

/* Device memory throughout. */
typedef struct TrainStepClosing {
    TrainClock *clock;
    uint32_t *flag;             /* not 0: the step was skipped; 0 afterwards */
    uint32_t *skipped;          /* [clock->done] receives the flag */
    float *statistics, *backup; /* restored from the backup after a skipped step, else copied to it */
    size_t elems;               /* of both */
    const float *losses;        /* (batch): of the step's images */
    float *all_losses;          /* [clock->batch.first + i] receives the i-th */
    int batch;
} TrainStepClosing;

/* Does all of the above, and advances the clock by a step. */
Status train_step_close(const TrainStepClosing *closing, DeviceStream *stream);

/* sums = weight logits, or with `add` sums += weight logits: `elems` floats. */
Status train_add_view(const float *logits, size_t elems, float weight, bool add, float *sums, DeviceStream *stream);

#endif
