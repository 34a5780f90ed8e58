/* What a training consists of besides the model: plans, optimizer, schedules, averages; and the test. Its steps are
 * taken by a runner (runner.h).
 *
 * A trainer owns plans and optimizer; the model is borrowed. Everything that a resumed run needs besides the model's
 * parameters and statistics stands in the buffers of trainer_buffer and in the step number. */
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

/* From a step on: images of side x side pixels, the blocks below first_block frozen. */
typedef struct TrainerPhase {
    int64_t first_step;
    int side;
    int first_block;
} TrainerPhase;

typedef struct TrainerConfig {
    TrainerGroup groups[TRAINER_MAX_GROUPS];
    int group_count;
    TrainerPhase phases[TRAINER_MAX_PHASES]; /* the first begins with step 0; in order */
    int phase_count;
    int64_t steps;
    int side;       /* of the images that come in; phases may shrink them */
    int batch;      /* images of a step */
    int test_batch; /* the largest of trainer_evaluate */
    double label_smoothing;
    LossReduction reduction;
    ScheduleProject project;
    /* Averaging: after each `lookahead_every` steps slow = d slow + (1 - d) p, p = slow, over parameters and running
     * statistics, d = lookahead_base (steps done / steps)^3; after the last step p = slow. 0: none. */
    int lookahead_every;
    double lookahead_base;
    Allreduce *allreduce; /* of the gradients (train/gradients.h); borrowed until trainer_destroy; NULL: one rank */
    /* Called now and then during a step; a failure (an interruption, say) ends the step, which then has not happened:
     * the trainer stands where it did. NULL: none. */
    Status (*check)(void *context);
    void *check_context;
} TrainerConfig;

typedef struct Trainer Trainer;

/* Every trained layer must belong to exactly one group. The model is borrowed until trainer_destroy. */
Status trainer_create(const TrainerConfig *config, NnModel *model, Trainer **out);
/* NULL does nothing. */
void trainer_destroy(Trainer *trainer);

/* The step number rises also when the update is left out; a step that fails has changed nothing. */
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

/* What a step does to a group (rates are rounded to float32 once). */
OptimRate trainer_rate(const Trainer *trainer, int group, int64_t step);
const TrainerPhase *trainer_phase(const Trainer *trainer, int64_t step);

typedef enum TrainerBuffer {
    TRAINER_MOMENTUM,
    TRAINER_SLOW_PARAMETERS, /* of the averaging; empty without it */
    TRAINER_SLOW_STATISTICS,
    TRAINER_BUFFERS
} TrainerBuffer;

/* Borrowed until trainer_destroy; memory of the model's backend, for nn_model_read and nn_model_write between steps. */
float *trainer_buffer(Trainer *trainer, TrainerBuffer which, size_t *elems);

/* A hash of parameters and momenta, equal on ranks that are equal: XXH64 on the CPU, on a GPU the sum of
 * train/fingerprint.h, made there. */
Status trainer_hash(Trainer *trainer, uint64_t *out);

/* The plans made so far that are still there, the i-th and the side of its images; NULL behind the last. Borrowed until
 * the next step or test. */
const NnPlan *trainer_plan_at(const Trainer *trainer, int index, int *side);

/* Floating-point operations of one optimizer step's matrix products. */
double trainer_optimizer_flops(const Trainer *trainer);

#endif
