/* What steps on a stream keep in device memory: the clock by which they know which step they are, their rates, their
 * results. Private to this folder. */
#ifndef CGXFFCV_TRAIN_STEP_STREAM_H
#define CGXFFCV_TRAIN_STEP_STREAM_H

#include "train/step.h"
#include "train/step_kernels.h"

/* Device memory, or with a name in host_ page-locked; all owned. */
struct StepStream {
    TrainClock *clock, *host_clock;
    uint32_t *flag; /* the step is to be skipped */
    float *shrunk;  /* a batch of the largest lower resolution; NULL if no phase shrinks */
    bool enabled[TRAINER_MAX_PHASES][TRAINER_MAX_GROUPS];
    /* room for so many steps and the losses of so many images; nothing moves while it lives */
    int64_t step_room, image_room;
    NnStepTotals *records, *host_records;
    uint32_t *skipped, *host_skipped;
    float *all_losses, *host_losses;
    DeviceEvent *begin, *end, *marks[2];
    int unmarked, marked; /* steps of a run since its last mark; its marks */
    double seconds;
};

Status train_stream_create(const Trainer *trainer, StepStream **out);
void train_stream_destroy(StepStream *stream); /* NULL does nothing */

/* Room for a run; what was recorded before must be gone if it grows. */
Status train_stream_reserve(Trainer *trainer, int64_t steps, int64_t images);
void train_stream_release(StepStream *stream);

/* The clock of steps from trainer->step on, and empty results; with `skip` the first step counts as skipped from the
 * start. */
Status train_stream_set(Trainer *trainer, const StepSource *source, int steps, bool skip);

/* From here on the stream's time counts; waits for what has been put on it since then. */
Status train_stream_begin(Trainer *trainer);
Status train_stream_wait(Trainer *trainer);

#endif
