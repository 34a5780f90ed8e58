/* What the files of this folder share: the trainer itself, its memory on either backend, its plans. */
#ifndef CGXFFCV_TRAIN_TRAINER_PRIVATE_H
#define CGXFFCV_TRAIN_TRAINER_PRIVATE_H

#include "train/trainer.h"

typedef struct SidePlan {
    int side;
    NnPlan *plan; /* owned */
} SidePlan;

typedef struct StepBackend StepBackend;
typedef struct StepStream StepStream;

/* `backup` and `slow` are memory of the model's backend. */
struct Trainer {
    TrainerConfig config;
    NnModel *model;       /* borrowed */
    DeviceStream *stream; /* borrowed from the model; NULL on the CPU */
    const StepBackend *backend;
    Optim *optim;          /* owned */
    StepStream *on_stream; /* owned; NULL on the CPU */
    /* For training at each resolution: on a GPU all that were needed so far, since graphs use their memory; on the CPU
     * only the current one. */
    SidePlan plans[TRAINER_MAX_PHASES];
    int plan_count;
    NnPlan *evaluation;    /* owned unless it is one of the above; made by the first evaluation */
    bool evaluation_owned; /* whether it is owned */
    float *shrunk;         /* owned, host: the batch at a lower resolution */
    size_t shrunk_room;    /* elements */
    float *backup;         /* owned: the running statistics before the step */
    float *slow;           /* owned: averaged parameters, then statistics; NULL without averaging */
    float *view_logits;    /* owned, host: the logits of one view of test_batch images */
    uint64_t *hash;        /* owned, device memory; NULL on the CPU and before the first hash */
    uint64_t *host_hash;   /* owned, page-locked; likewise */
    int64_t step;          /* steps done */
    TrainerStep *record;   /* on the CPU, borrowed during a run: receives the current step's results */
    bool taken;            /* a runner uses it */
};

/* Memory of the model's backend, and copies within it (on the model's stream). */
void trainer_free(const Trainer *trainer, float *memory);
Status trainer_copy(const Trainer *trainer, float *to, const float *from, size_t elems);

/* The plan for training at a resolution, and the one for evaluation; borrowed, on a GPU until trainer_destroy. */
Status trainer_plan(Trainer *trainer, int side, NnPlan **out);
Status trainer_evaluation_plan(Trainer *trainer, NnPlan **out);

/* Waits for all work on the stream or, with `event` not NULL, for the work before the event, exchanges included. Does
 * nothing on the CPU (`stream` NULL). */
Status trainer_wait(const Trainer *trainer, DeviceStream *stream, DeviceEvent *event);

size_t trainer_classes(const Trainer *trainer);

#endif
