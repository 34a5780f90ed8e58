/* What the files of resident.h share. Private to this folder. */
#ifndef CGXFFCV_TRAIN_RESIDENT_PRIVATE_H
#define CGXFFCV_TRAIN_RESIDENT_PRIVATE_H

#include "loader/feed.h"
#include "train/resident.h"
#include "train/step_kernels.h"
#include "train/trainer_private.h"

/* A set in device memory, owned; complete when filled == count. */
typedef struct SetMemory {
    uint8_t *images;
    int64_t *labels, *ids;
    int64_t count, filled;
} SetMemory;

/* What a phase's steps need; kept when the phase is over. */
typedef struct PhaseState {
    NnPlan *plan;       /* borrowed from the trainer; NULL before the first step */
    bool warm;          /* its steps can begin */
    DeviceGraph *graph; /* owned; NULL where steps are not recorded; of a fed run, from the augmented batch on */
    DeviceGraph *many;  /* owned; MANY steps one after the other; NULL where the host has work between steps */
    bool enabled[TRAINER_MAX_GROUPS];
} PhaseState;

/* Memory is device memory, or with a name in host_ page-locked; all owned. */
struct Resident {
    Trainer *trainer;     /* borrowed */
    NnModel *model;       /* borrowed */
    DeviceStream *stream; /* borrowed */
    ResidentConfig config;
    SetMemory sets[RESIDENT_SETS];
    LoaderFeed *feed; /* owned; NULL before the first batch from a loader */
    PhaseState phases[TRAINER_MAX_PHASES];
    /* one batch */
    uint8_t *batch_images;
    float *shrunk; /* NULL if no phase shrinks */
    int64_t *batch_labels;
    float *batch_losses;
    GatherClock *clock, *host_clock;
    uint32_t *flag; /* the step is to be skipped */
    float *backup;  /* the running statistics before the step */
    /* a run: room for so many images, 0 before the first; whether the phases are ready for a loader's batches */
    int64_t run_room;
    bool fed;
    int32_t *order, *host_order;
    float *all_losses, *host_losses;
    NnStepTotals *records, *host_records;
    uint32_t *skipped, *host_skipped;
    /* a test: room for so many images */
    int64_t test_room;
    int32_t *positions;
    uint8_t *test_images; /* a batch */
    float *view_logits;   /* of a batch */
    float *sums, *host_sums;
    bool test_warm;                   /* a batch of a test has run */
    uint64_t *moments, *host_moments; /* of the whitening; NULL before the first */
    DeviceEvent *begin, *end, *marks[2];
    double seconds;
};

/* The set, or a refusal if it is not complete. */
Status resident_need(const Resident *resident, ResidentSet which, GatherSet *out);

Status resident_check_positions(const int32_t *positions, int64_t count, int64_t limit);

/* Makes r->feed if there is none, and refuses a loader that does not suit it. */
Status resident_need_feed(Resident *resident, const Loader *loader);

/* Waits for what was put on the stream since r->begin was recorded, and counts the time. */
Status resident_wait(Resident *resident);

void resident_free_run(Resident *resident);
void resident_free_test(Resident *resident);

#endif
