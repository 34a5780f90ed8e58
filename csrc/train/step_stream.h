/* What steps on a stream keep in device memory: the clock from which they read their step number, and their results.
 * Private to this folder. */
#ifndef CGXFFCV_TRAIN_STEP_STREAM_H
#define CGXFFCV_TRAIN_STEP_STREAM_H

#include "train/step.h"
#include "train/step_kernels.h"

/* Buffers are device memory, those named host_ page-locked; all owned. */
struct StepStream {
    TrainClock *clock, *host_clock;
    uint32_t *flag; /* the step is to be skipped */
    float *shrunk;  /* a batch of the largest lower resolution; NULL if no phase shrinks */
    bool enabled[TRAINER_MAX_PHASES][TRAINER_MAX_GROUPS];
    /* room for this many steps and the losses of this many images; does not move while graphs use it */
    int64_t step_room, image_room;
    NnStepTotals *records, *host_records;
    uint32_t *skipped, *host_skipped;
    float *all_losses, *host_losses;
    DeviceEvent *begin, *end, *marks[2];
    int unmarked, marked; /* steps of a run since its last mark; its number of marks */
    double seconds;
};

Status train_stream_create(const Trainer *trainer, StepStream **out);
void train_stream_destroy(StepStream *stream); /* NULL does nothing */

/* Ensures room for a run; if it has to grow, earlier graphs must have been destroyed. */
Status train_stream_reserve(Trainer *trainer, int64_t steps, int64_t images);
void train_stream_release(StepStream *stream);

/* Sets the clock to trainer->step and clears the results; with `skip` the first step counts as skipped from the
 * start. */
Status train_stream_set(Trainer *trainer, const StepSource *source, int steps, bool skip);

/* Begin starts timing the stream; wait waits for the work enqueued since then and adds its time to `seconds`. */
Status train_stream_begin(Trainer *trainer);
Status train_stream_wait(Trainer *trainer);

#endif
