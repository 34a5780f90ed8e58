/* Sources of batches for steps on a stream: a set in device memory, or a loader that feeds the device. Either gathers
 * and augments its batches into the same memory of the runner. Private to this folder. */
#ifndef CGXFFCV_TRAIN_SOURCE_H
#define CGXFFCV_TRAIN_SOURCE_H

#include "train/runner_private.h"

typedef struct TrainSource {
    StepSource steps;
    TrainRunner *r; /* borrowed */
    GatherSet set;  /* what batches are gathered from; of a loader's, an empty slot for rehearsals */
    Loader *loader; /* borrowed; NULL: the set */
} TrainSource;

/* Images positions[0], positions[1], ... of the training set, in turn. */
Status train_source_open_set(TrainRunner *runner, const int32_t *positions, int64_t images, uint32_t epoch,
                             TrainSource *out);

/* The next batches of the loader's pass, each of the trainer's size: so many images. */
Status train_source_open_feed(TrainRunner *runner, Loader *loader, int64_t images, uint32_t epoch, TrainSource *out);

/* The next batch of the set, or of a loader's source a rehearsal's: `count` images. */
Status train_source_gather(const TrainSource *source, int count, StepBatch *out);

/* Nothing of a loader's is in use afterwards, also if this fails. */
Status train_source_settle(const TrainSource *source);

#endif
