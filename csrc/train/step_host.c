/* A step in host memory: when it returns, it is done and its record is written. */
#include <math.h>

#include "augment/shrink.h"
#include "base/memory.h"
#include "train/step.h"

static Status host_begin(Trainer *trainer, const StepSource *source, int steps, TrainerStep *out) {
    (void)source, (void)steps;
    trainer->record = out;
    return STATUS_OK;
}

static Status host_shrink(Trainer *trainer, const StepBatch *batch, int side, float **out) {
    int from = trainer->config.side;
    const NnImages *images = &batch->images;
    const AugmentShrunk shrunk = {images->data, images->type == PIXELS_F32, images->layout == PIXELS_NCHW, images->mean,
                                  images->std};
    if (images->type == PIXELS_BF16) FAIL(STATUS_ARGUMENT, "images to be shrunk must be uint8 or float32");
    if (images->mirror || images->shift_y != 0 || images->shift_x != 0) {
        FAIL(STATUS_ARGUMENT, "views of images cannot be shrunk");
    }
    TRY(memory_reserve(&trainer->shrunk, &trainer->shrunk_room,
                       (size_t)trainer->config.batch * (size_t)side * (size_t)side * 3, sizeof(float)));
    *out = trainer->shrunk;
    return augment_shrink(&shrunk, batch->count, from, from, side, nn_model_pool(trainer->model), *out);
}

static Status host_count(Trainer *trainer, NnPlan *plan) {
    NnStepTotals totals;
    TRY(nn_plan_take_totals(plan, &totals));
    *trainer->record = (TrainerStep){.step = trainer->step,
                                     .loss = totals.loss,
                                     .correct = totals.correct,
                                     .images = totals.images,
                                     .side = trainer_phase(trainer, trainer->step)->side};
    if (!isfinite(totals.loss)) *nn_model_gradient_data(trainer->model) = NAN;
    return STATUS_OK;
}

static Status host_update(Trainer *trainer, int phase) {
    OptimRate rates[TRAINER_MAX_GROUPS];
    bool finite;
    (void)phase;
    for (int g = 0; g < trainer->config.group_count; g++) rates[g] = trainer_rate(trainer, g, trainer->step);
    TRY(optim_gradients_finite(trainer->optim, rates, &finite));
    trainer->record->skipped = !finite;
    return finite ? optim_step(trainer->optim, rates) : STATUS_OK;
}

static Status host_close(Trainer *trainer, const StepBatch *batch) {
    (void)batch;
    if (!trainer->record->skipped) return train_step_save_statistics(trainer);
    return trainer_copy(trainer, nn_model_statistic_data(trainer->model), trainer->backup,
                        nn_model_statistic_elems(trainer->model));
}

static Status host_throttle(Trainer *trainer, int steps, bool recorded) {
    (void)recorded;
    trainer->record += steps;
    return STATUS_OK;
}

static Status host_finish(Trainer *trainer, int64_t first, int done, TrainerStep *out, float *losses) {
    (void)first, (void)done, (void)out, (void)losses;
    trainer->record = NULL;
    return STATUS_OK;
}

const StepBackend train_step_host = {host_begin, host_shrink,   host_count, host_update,
                                     host_close, host_throttle, host_finish};
