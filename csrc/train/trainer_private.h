/* What trainer.c and resident.c share: the trainer itself, its memory on either backend, its plans. Private to this
 * folder. */
#ifndef CGXFFCV_TRAIN_TRAINER_PRIVATE_H
#define CGXFFCV_TRAIN_TRAINER_PRIVATE_H

#include "train/trainer.h"

typedef struct SidePlan {
    int side;
    NnPlan *plan; /* owned */
} SidePlan;

/* `statistics` and `slow` are memory of the model's backend. */
struct Trainer {
    TrainerConfig config;
    NnModel *model;       /* borrowed */
    DeviceStream *stream; /* borrowed from the model; NULL on the CPU */
    Optim *optim;         /* owned */
    /* For training at each resolution: on a GPU all that were needed so far, for graphs hold their memory; on the CPU
     * the current one. */
    SidePlan plans[TRAINER_MAX_PHASES];
    int plan_count;
    NnPlan *test;        /* owned unless it is one of the above; made by the first test */
    bool test_owned;     /* whether it is owned */
    float *shrunk;       /* owned, host: the batch at a lower resolution */
    size_t shrunk_room;  /* elements */
    float *statistics;   /* owned: the running statistics before the step */
    float *slow;         /* owned: averaged parameters, then statistics; NULL without averaging */
    float *view_logits;  /* owned, host: the logits of one view of test_batch images */
    uint64_t *hash;      /* owned, device memory; NULL on the CPU and before the first hash */
    uint64_t *host_hash; /* owned, page-locked; likewise */
    int64_t step;        /* steps done */
};

/* Zeroed memory of the model's backend, and copies within it (on the model's stream). */
Status trainer_alloc(const Trainer *trainer, size_t elems, float **out);
void trainer_free(const Trainer *trainer, float *memory);
Status trainer_copy(const Trainer *trainer, float *to, const float *from, size_t elems);

/* The plan for training at a resolution, and the one for tests; borrowed, on a GPU until trainer_destroy. */
Status trainer_plan(Trainer *trainer, int side, NnPlan **out);
Status trainer_test_plan(Trainer *trainer, NnPlan **out);

/* The exchange of gradients, where there are several ranks: what backward tells, and the run behind it. A loss that is
 * not finite can be marked in the first gradient in between. */
GradientHook trainer_gradient_hook(const Trainer *trainer);
Status trainer_exchange(Trainer *trainer, const TrainerPhase *phase);

/* For what the stream (NULL: the CPU, where nothing is to be waited for) holds, or held when the event was recorded
 * (NULL: none), exchanges included. */
Status trainer_wait(const Trainer *trainer, DeviceStream *stream, DeviceEvent *event);

size_t trainer_classes(const Trainer *trainer);

/* The averages before the first step; what averaging does after a step, when trainer->step of them are done; on a GPU
 * both put work on the stream only. `changed` (may be NULL): whether parameters and statistics are others now. */
Status trainer_begin_averaging(Trainer *trainer);
Status trainer_average(Trainer *trainer, bool *changed);

#endif
