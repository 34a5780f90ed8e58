/* One step of a training, written once for every source of batches and for both backends:
 *
 *   batch -> smaller images -> forward, backward -> totals -> gradients over all ranks -> update -> what is kept of it
 *
 * On the CPU each part is done when it returns. On a GPU every part only puts work on the model's stream, which reads
 * the step's number, its rates and where its results go from device memory, so that steps can be recorded once and
 * replayed. Private to this folder. */
#ifndef CGXFFCV_TRAIN_STEP_H
#define CGXFFCV_TRAIN_STEP_H

#include "train/trainer_private.h"

/* In memory of the model's backend. */
typedef struct StepBatch {
    NnImages images;       /* (count, side, side, 3) or planes first, of the trainer's side */
    const int64_t *labels; /* (count) */
    float *losses;         /* (count): gets the smoothed cross entropy of each image; NULL: not wanted */
    int count;
} StepBatch;

/* Where batches come from, and what keys their augmentation. */
typedef struct StepSource {
    Status (*next)(void *context, StepBatch *out);
    void *context;   /* borrowed */
    bool recordable; /* `next` puts the same work on the stream each time */
    uint64_t seed;
    uint32_t epoch;
} StepSource;

/* Steps of one phase, recorded; all NULL: they are put on the stream one by one. */
typedef struct StepGraphs {
    DeviceGraph *one;  /* owned; with the source's `next` if that can be recorded, else from its batch on */
    DeviceGraph *many; /* owned; STEP_MANY steps, where the host has no work between them; else NULL */
} StepGraphs;

#define STEP_MANY 8

/* What differs between host memory (step_host.c) and a stream (step_stream.c). */
struct StepWay {
    Status (*begin)(Trainer *trainer, const StepSource *source, int steps, TrainerStep *out);
    Status (*shrink)(Trainer *trainer, const StepBatch *batch, int side, float **out);
    /* The plan's totals become those of the step, and a loss that is not finite makes the first gradient NaN, which all
     * ranks get to see. */
    Status (*count)(Trainer *trainer, NnPlan *plan);
    /* Nothing is updated if a gradient is not finite: the step is skipped. */
    Status (*update)(Trainer *trainer, int phase);
    /* Running statistics: the backup's after a skipped step, else the new backup. */
    Status (*close)(Trainer *trainer, const StepBatch *batch);
    /* After `steps` more steps: lets the host not run too far ahead. */
    Status (*throttle)(Trainer *trainer, int steps, bool recorded);
    /* Waits for `done` steps, which `out` tells of; `losses` (NULL: not wanted) where batches have none. */
    Status (*finish)(Trainer *trainer, int64_t first, int done, TrainerStep *out, float *losses);
};

extern const StepWay train_step_host, train_step_stream;

/* One step of a phase on a batch. `exchange`: with the other ranks. A failure leaves the running statistics as they
 * were. */
Status train_step_put(Trainer *trainer, int phase, const StepBatch *batch, bool exchange);

/* Keeps the running statistics in case the next step is skipped. */
Status train_step_save_statistics(Trainer *trainer);

/* `steps` steps from trainer->step on; `graphs`, NULL or one for each phase. See train_runner_run. */
Status train_steps_run(Trainer *trainer, const StepSource *source, const StepGraphs *graphs, int steps,
                       TrainerStep *out, float *losses, int *done);

#endif
