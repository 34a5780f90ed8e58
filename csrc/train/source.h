/* Sources of batches for steps. On a stream: a set in device memory, or a loader that feeds the device; both gather and
 * augment their batches into the same memory of the runner. On the CPU: a loader, whose batches are used in place.
 * Private to this folder. */
#ifndef CGXFFCV_TRAIN_SOURCE_H
#define CGXFFCV_TRAIN_SOURCE_H

#include "train/runner_private.h"

typedef struct TrainSource {
    StepSource steps;
    TrainRunner *r; /* borrowed */
    GatherSet set;  /* what batches are gathered from; with a loader, a blank batch for warm-ups */
    Loader *loader; /* borrowed; NULL: the set */
    /* on the CPU */
    LoaderBatch *batch; /* owned reference: the one in use */
    float *losses;      /* borrowed: for the images to come; NULL: not wanted */
} TrainSource;

/* Images positions[0], positions[1], ... of the training set, in turn. */
Status train_source_open_set(TrainRunner *runner, const int32_t *positions, int64_t images, uint32_t epoch,
                             TrainSource *out);

/* The next `images` images of the loader's pass, in batches of the trainer's size. */
Status train_source_open_feed(TrainRunner *runner, Loader *loader, int64_t images, uint32_t epoch, TrainSource *out);

/* The same for a trainer on the CPU; `losses` (NULL: not wanted) receives the losses of all images. */
Status train_source_open_host(TrainRunner *runner, Loader *loader, float *losses, TrainSource *out);

/* On the CPU: the next batch, whatever its size; valid until the next call. */
Status train_source_take(TrainSource *source, StepBatch *out);

/* The next batch of the set, or for a loader's source the blank batch of a warm-up: `count` images. */
Status train_source_gather(const TrainSource *source, int count, StepBatch *out);

/* Releases everything of the loader's that is in use, even if this fails. */
Status train_source_close(TrainSource *source);

#endif
