/* What the files that implement runner.h share. Private to this folder. */
#ifndef CGXFFCV_TRAIN_RUNNER_PRIVATE_H
#define CGXFFCV_TRAIN_RUNNER_PRIVATE_H

#include "loader/feed.h"
#include "train/runner.h"
#include "train/step.h"

/* A set in device memory, owned; complete when filled == count. */
typedef struct SetMemory {
    uint8_t *images;
    int64_t *labels, *ids;
    int64_t count, filled;
} SetMemory;

/* Buffers are device memory, those named host_ page-locked; all owned, and all NULL for a trainer on the CPU. */
struct TrainRunner {
    Trainer *trainer;     /* borrowed */
    NnModel *model;       /* borrowed */
    DeviceStream *stream; /* borrowed; NULL on the CPU */
    TrainRunnerConfig config;
    SetMemory sets[TRAIN_SETS];
    LoaderFeed *feed; /* owned; NULL before the first batch from a loader */
    StepGraphs graphs[TRAINER_MAX_PHASES];
    bool warm[TRAINER_MAX_PHASES]; /* the phase has been warmed up */
    /* one batch, augmented */
    uint8_t *batch_images;
    int64_t *batch_labels;
    float *batch_losses;
    /* runs: room for this many images, 0 before the first; whether the phases are warm for a loader's batches */
    int64_t run_room;
    bool fed;
    int32_t *order, *host_order;
    /* evaluation: room for this many images */
    int64_t evaluation_room;
    int32_t *positions;
    uint8_t *evaluation_images; /* a batch */
    float *view_logits;         /* of a batch */
    float *sums, *host_sums;
    bool evaluation_warm;             /* an evaluation batch has run */
    uint64_t *moments, *host_moments; /* for the whitening; NULL before the first */
};

/* Fails for a trainer on the CPU. */
Status train_runner_need_device(const TrainRunner *runner);

/* Gives the set; fails if it is not complete. */
Status train_runner_need(const TrainRunner *runner, TrainSet which, GatherSet *out);

Status train_runner_check_positions(const int32_t *positions, int64_t count, int64_t limit);

/* Describes uint8 images of the trainer's side, in the memory of its model. */
NnImages train_runner_images(const TrainRunner *runner, const uint8_t *data);

/* Creates runner->feed if there is none; fails if the loader does not suit it. */
Status train_runner_need_feed(TrainRunner *runner, const Loader *loader);

/* Ensures room for runs over that many images, of a set or of a loader. */
Status train_runner_reserve(TrainRunner *runner, int64_t images, bool fed);

void train_runner_free_run(TrainRunner *runner);
void train_runner_free_evaluation(TrainRunner *runner);

#endif
