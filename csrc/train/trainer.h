/* A training run except for its model: plans, optimizer, schedules, averages; and evaluation. A runner (runner.h) takes
 * its steps.
 *
 * A trainer owns its plans and optimizer; the model is borrowed. Everything that a resumed run needs besides the
 * model's parameters and statistics is in the buffers of trainer_buffer and the step number. */
#ifndef CGXFFCV_TRAIN_TRAINER_H
#define CGXFFCV_TRAIN_TRAINER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "allreduce/allreduce.h"
#include "base/status.h"
#include "nn/model.h"
#include "optim/optim.h"
#include "train/schedule.h"

#define TRAINER_MAX_GROUPS 16
#define TRAINER_MAX_PHASES 8

/* The layers of some kinds in blocks [first_block, end_block), and how they are trained. */
typedef struct TrainerGroup {
    OptimGroup rule;
    Schedule schedule;
    unsigned kinds; /* bits 1 << NnLayerKind */
    int first_block, end_block;
} TrainerGroup;

/* From first_step on: images of side x side pixels, with the blocks below first_block frozen. */
typedef struct TrainerPhase {
    int64_t first_step;
    int side;
    int first_block;
} TrainerPhase;

typedef struct TrainerConfig {
    TrainerGroup groups[TRAINER_MAX_GROUPS];
    int group_count;
    TrainerPhase phases[TRAINER_MAX_PHASES]; /* in order; the first begins with step 0 */
    int phase_count;
    int64_t steps;
    int side;       /* of the incoming images; phases may shrink them */
    int batch;      /* images per step */
    int test_batch; /* the largest batch of an evaluation */
    double label_smoothing;
    LossReduction reduction;
    ScheduleProject project;
    /* Averaging: after every `lookahead_every` steps slow = d slow + (1 - d) p, p = slow, for parameters and running
     * statistics, d = lookahead_base (steps done / steps)^3; after the last step p = slow. 0: none. */
    int lookahead_every;
    double lookahead_base;
    Allreduce *allreduce; /* of the gradients (train/gradients.h); borrowed until trainer_destroy; NULL: one rank */
    /* Called now and then during a step; a failure (an interruption, say) abandons the step and leaves the trainer as
     * it was before it. NULL: none. */
    Status (*check)(void *context);
    void *check_context;
} TrainerConfig;

typedef struct Trainer Trainer;

/* Every trained layer must belong to exactly one group. The model is borrowed until trainer_destroy. */
Status trainer_create(const TrainerConfig *config, NnModel *model, Trainer **out);
/* NULL does nothing. */
void trainer_destroy(Trainer *trainer);

/* The result of one step. A skipped step also counts as a step; a step that fails has changed nothing. */
typedef struct TrainerStep {
    int64_t step; /* the number of this step */
    double loss;  /* sum over this rank's images */
    int64_t correct, images;
    bool skipped; /* a loss or a gradient was not finite on some rank: nothing was updated */
    int side;
} TrainerStep;

/* One view of the test images: pixel (y, x) comes from (y + dy, x + dx), reflected at the edges; then mirrored. */
typedef struct TrainerView {
    int dy, dx;
    bool mirror;
    float weight; /* of its logits */
} TrainerView;

/* The weighted sum of the views' logits, (count, classes); any count. */
Status trainer_evaluate(Trainer *trainer, const NnImages *images, int count, const TrainerView *views, int view_count,
                        float *logits);

int64_t trainer_steps_done(const Trainer *trainer);
/* For a resumed run, before the next step. */
Status trainer_set_step(Trainer *trainer, int64_t step);

/* The rate of a group in a step (rounded to float32 once). */
OptimRate trainer_rate(const Trainer *trainer, int group, int64_t step);
const TrainerPhase *trainer_phase(const Trainer *trainer, int64_t step);

typedef enum TrainerBuffer {
    TRAINER_MOMENTUM,
    TRAINER_SLOW_PARAMETERS, /* of the averaging; empty without it */
    TRAINER_SLOW_STATISTICS,
    TRAINER_BUFFERS
} TrainerBuffer;

/* Borrowed until trainer_destroy; in the model backend's memory, for nn_model_read and nn_model_write between steps. */
float *trainer_buffer(Trainer *trainer, TrainerBuffer which, size_t *elems);

/* A hash of the parameters and momentum buffers, to compare ranks: XXH64 on the CPU; on a GPU the sum of
 * train/fingerprint.h, computed there. */
Status trainer_hash(Trainer *trainer, uint64_t *out);

/* The index-th of the plans that exist, and the side of its images; NULL past the last. Borrowed until the next step or
 * evaluation. */
const NnPlan *trainer_plan_at(const Trainer *trainer, int index, int *side);

/* The number of floating-point operations in one optimizer step's matrix products. */
double trainer_optimizer_flops(const Trainer *trainer);

#endif
