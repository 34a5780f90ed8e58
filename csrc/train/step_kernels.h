/* Training's own kernels: what closes a step, and the sum over the views of a test. step.cu; step_none.c is its twin in
 * a build without CUDA. Private to this folder. */
#ifndef CGXFFCV_TRAIN_STEP_KERNELS_H
#define CGXFFCV_TRAIN_STEP_KERNELS_H

#include "augment/gather.h"

/* Where a training stands, in device memory: read when kernels run, so that one recorded step serves them all. */
typedef struct TrainClock {
    GatherClock batch;
    int32_t step; /* of the training: the row of the rates */
    int32_t done; /* steps since the clock was set */
} TrainClock;

/* Device memory throughout. */
typedef struct TrainStepClosing {
    TrainClock *clock;
    uint32_t *flag;             /* not 0: the step was skipped; 0 afterwards */
    uint32_t *skipped;          /* [clock->done] gets the flag */
    float *statistics, *backup; /* of a skipped step come from the backup; others go there */
    size_t elems;               /* of both */
    const float *losses;        /* (batch): of the step's images */
    float *all_losses;          /* [clock->batch.first + i] gets the i-th */
    int batch;
} TrainStepClosing;

/* All of the above, and the clock moves on by a step. */
Status train_step_close(const TrainStepClosing *closing, DeviceStream *stream);

/* sums = weight logits, or with `add` sums += weight logits: `elems` floats. */
Status train_add_view(const float *logits, size_t elems, float weight, bool add, float *sums, DeviceStream *stream);

#endif
