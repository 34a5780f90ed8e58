/* Sources of batches for steps. On a stream: a set in device memory, or a loader that feeds the device; either gathers
 * and augments its batches into the same memory of the runner. On the CPU: a loader, whose batches are used where they
 * lie. Private to this folder. */
#ifndef CGXFFCV_TRAIN_SOURCE_H
#define CGXFFCV_TRAIN_SOURCE_H

#include "train/runner_private.h"

typedef struct TrainSource {
    StepSource steps;
    TrainRunner *r; /* borrowed */
    GatherSet set;  /* what batches are gathered from; of a loader's, an empty slot for rehearsals */
    Loader *loader; /* borrowed; NULL: the set */
    /* on the CPU */
    LoaderBatch *batch; /* owned reference: the one in use */
    float *losses;      /* borrowed: of the images to come; NULL: not wanted */
} TrainSource;

/* Images positions[0], positions[1], ... of the training set, in turn. */
Status train_source_open_set(TrainRunner *runner, const int32_t *positions, int64_t images, uint32_t epoch,
                             TrainSource *out);

/* The next batches of the loader's pass, each of the trainer's size: so many images. */
Status train_source_open_feed(TrainRunner *runner, Loader *loader, int64_t images, uint32_t epoch, TrainSource *out);

/* The same for a trainer on the CPU; `losses` (NULL: not wanted) gets those of all images. */
Status train_source_open_host(TrainRunner *runner, Loader *loader, float *losses, TrainSource *out);

/* On the CPU: the next batch, whatever its size, until the next call. */
Status train_source_take(TrainSource *source, StepBatch *out);

/* The next batch of the set, or of a loader's source a rehearsal's: `count` images. */
Status train_source_gather(const TrainSource *source, int count, StepBatch *out);

/* Nothing of a loader's is in use afterwards, also if this fails. */
Status train_source_settle(TrainSource *source);

#endif
