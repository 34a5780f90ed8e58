/* One training step, written once for every source of batches and for both backends:
 *
 *   batch -> shrink images -> forward, backward -> totals -> allreduce gradients -> update -> save statistics, losses
 *
 * On the CPU each part is done when it returns. On a GPU every part only enqueues work on the model's stream, which
 * reads the step number, the rates and the place of its results from device memory, so that steps can be recorded once
 * and replayed. Private to this folder. */
#ifndef CGXFFCV_TRAIN_STEP_H
#define CGXFFCV_TRAIN_STEP_H

#include "train/trainer_private.h"

/* In memory of the model's backend. */
typedef struct StepBatch {
    NnImages images;       /* (count, side, side, 3) or planes first, of the trainer's side */
    const int64_t *labels; /* (count) */
    float *losses;         /* (count): receives the smoothed cross entropy of each image; NULL: not wanted */
    int count;
} StepBatch;

/* Where batches come from, and the keys of their augmentation. */
typedef struct StepSource {
    Status (*next)(void *context, StepBatch *out);
    void *context;   /* borrowed */
    bool recordable; /* `next` enqueues the same work on the stream each time */
    uint64_t seed;
    uint32_t epoch;
} StepSource;

/* Steps of one phase, recorded; all NULL: their kernels are launched one by one. */
typedef struct StepGraphs {
    DeviceGraph *one;  /* owned; includes the source's `next` if that can be recorded */
    DeviceGraph *many; /* owned; STEP_MANY steps, if the host has no work between them; else NULL */
} StepGraphs;

#define STEP_MANY 8

/* The parts of a step that differ between host memory (step_host.c) and a stream (step_stream.c). */
struct StepBackend {
    Status (*begin)(Trainer *trainer, const StepSource *source, int steps, TrainerStep *out);
    Status (*shrink)(Trainer *trainer, const StepBatch *batch, int side, float **out);
    /* Moves the plan's totals to the step's; a loss that is not finite sets the first gradient to NaN, so that all
     * ranks see it. */
    Status (*count)(Trainer *trainer, NnPlan *plan);
    /* Nothing is updated if a gradient is not finite: the step is skipped. */
    Status (*update)(Trainer *trainer, int phase);
    /* Restores the running statistics from the backup after a skipped step, else backs them up. */
    Status (*close)(Trainer *trainer, const StepBatch *batch);
    /* After `steps` more steps: keeps the host from running too far ahead. */
    Status (*throttle)(Trainer *trainer, int steps, bool recorded);
    /* Waits for `done` steps; gives their results in `out`, and in `losses` (NULL: not wanted) unless batches have
     * them. */
    Status (*finish)(Trainer *trainer, int64_t first, int done, TrainerStep *out, float *losses);
};

extern const StepBackend train_step_host, train_step_stream;

/* One step of a phase on a batch. `exchange`: with the other ranks. A failure leaves the running statistics
 * unchanged. */
Status train_step_put(Trainer *trainer, int phase, const StepBatch *batch, bool exchange);

/* Backs up the running statistics in case the next step is skipped. */
Status train_step_save_statistics(Trainer *trainer);

/* `steps` steps starting at trainer->step; `graphs` is NULL or has one entry per phase. See train_runner_run. */
Status train_steps_run(Trainer *trainer, const StepSource *source, const StepGraphs *graphs, int steps,
                       TrainerStep *out, float *losses, int *done);

#endif
