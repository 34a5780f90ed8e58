/* A step on a stream. Owns the device memory that its kernels use in addition to the model's. */
#include "train/step_stream.h"

#include <string.h>

#include "augment/shrink.h"
#include "base/memory.h"
#include "train/step_kernels.h"

/* The least number of steps between two checks of the device's progress; up to twice as many may be in flight. */
#define STEPS_UNSEEN 32
#define STEPS_UNSEEN_OF_RANKS 2 /* for recorded steps with exchanges; 1 if they are not recorded */

/* ---- memory ---- */

/* Uploads the rates of all steps, and finds in which phases each group may be active. */
static Status load_rates(const Trainer *trainer, StepStream *s) {
    Status status = STATUS_OK;
    const TrainerConfig *config = &trainer->config;
    size_t groups = (size_t)config->group_count;
    OptimRate *rates = NULL;
    TRY(memory_calloc((size_t)config->steps * groups, sizeof *rates, &rates));
    for (int64_t step = 0; step < config->steps; step++) {
        ptrdiff_t phase = trainer_phase(trainer, step) - config->phases;
        for (int g = 0; g < config->group_count; g++) {
            OptimRate rate = trainer_rate(trainer, g, step);
            rates[(size_t)step * groups + (size_t)g] = rate;
            if (rate.active) s->enabled[phase][g] = true;
        }
    }
    TRY_GOTO(optim_load_rates(trainer->optim, rates, config->steps));
done:
    memory_free(rates);
    return status;
}

static Status create_memory(const Trainer *trainer, StepStream *s) {
    const TrainerConfig *config = &trainer->config;
    size_t most = 0;
    for (int i = 0; i < config->phase_count; i++) {
        size_t side = (size_t)config->phases[i].side;
        if (config->phases[i].side < config->side && side * side * 3 > most) most = side * side * 3;
    }
    TRY(device_event_create(&s->begin));
    TRY(device_event_create(&s->end));
    for (int i = 0; i < 2; i++) TRY(device_event_create(&s->marks[i]));
    if (most > 0) TRY(device_alloc((size_t)config->batch * most * sizeof(float), &s->shrunk));
    TRY(device_alloc(sizeof *s->clock, &s->clock));
    TRY(device_host_alloc(sizeof *s->host_clock, &s->host_clock));
    TRY(device_alloc(sizeof *s->flag, &s->flag));
    return STATUS_OK;
}

Status train_stream_create(const Trainer *trainer, StepStream **out) {
    Status status = STATUS_OK;
    StepStream *s = NULL;
    TRY(memory_calloc(1, sizeof *s, &s));
    TRY_GOTO(create_memory(trainer, s));
    TRY_GOTO(load_rates(trainer, s));
    TRY_GOTO(device_stream_synchronize(trainer->stream));
    *out = s;
    s = NULL;
done:
    train_stream_destroy(s);
    return status;
}

void train_stream_release(StepStream *s) {
    device_free(s->records);
    device_host_free(s->host_records);
    device_free(s->skipped);
    device_host_free(s->host_skipped);
    device_free(s->all_losses);
    device_host_free(s->host_losses);
    s->records = s->host_records = NULL;
    s->skipped = s->host_skipped = NULL;
    s->all_losses = s->host_losses = NULL;
    s->step_room = s->image_room = 0;
}

void train_stream_destroy(StepStream *s) {
    if (s == NULL) return;
    train_stream_release(s);
    device_free(s->shrunk);
    device_free(s->clock);
    device_host_free(s->host_clock);
    device_free(s->flag);
    for (int i = 0; i < 2; i++) device_event_destroy(s->marks[i]);
    device_event_destroy(s->begin);
    device_event_destroy(s->end);
    memory_free(s);
}

Status train_stream_reserve(Trainer *trainer, int64_t steps, int64_t images) {
    StepStream *s = trainer->on_stream;
    size_t n = (size_t)images, count = (size_t)steps;
    if (s->step_room >= steps && s->image_room >= images) return STATUS_OK;
    TRY(device_stream_synchronize(trainer->stream));
    train_stream_release(s);
    TRY(device_alloc(n * sizeof *s->all_losses, &s->all_losses));
    TRY(device_host_alloc(n * sizeof *s->all_losses, &s->host_losses));
    TRY(device_alloc(count * sizeof *s->records, &s->records));
    TRY(device_host_alloc(count * sizeof *s->records, &s->host_records));
    TRY(device_alloc(count * sizeof *s->skipped, &s->skipped));
    TRY(device_host_alloc(count * sizeof *s->skipped, &s->host_skipped));
    s->step_room = steps;
    s->image_room = images;
    return STATUS_OK;
}

/* ---- around steps ---- */

Status train_stream_set(Trainer *trainer, const StepSource *source, int steps, bool skip) {
    StepStream *s = trainer->on_stream;
    size_t n = (size_t)steps;
    *s->host_clock =
        (TrainClock){.batch = {.seed = source->seed, .epoch = source->epoch}, .step = (int32_t)trainer->step};
    TRY(device_copy(s->clock, s->host_clock, sizeof *s->clock, trainer->stream));
    TRY(device_fill(s->records, 0, n * sizeof *s->records, trainer->stream));
    TRY(device_fill(s->skipped, 0, n * sizeof *s->skipped, trainer->stream));
    return device_fill(s->flag, skip, sizeof *s->flag, trainer->stream);
}

Status train_stream_begin(Trainer *trainer) { return device_event_record(trainer->on_stream->begin, trainer->stream); }

Status train_stream_wait(Trainer *trainer) {
    StepStream *s = trainer->on_stream;
    float milliseconds = 0;
    TRY(device_event_record(s->end, trainer->stream));
    TRY(trainer_wait(trainer, trainer->stream, NULL));
    TRY(device_event_elapsed(s->begin, s->end, &milliseconds));
    s->seconds += (double)milliseconds * 1e-3;
    return STATUS_OK;
}

static Status stream_begin(Trainer *trainer, const StepSource *source, int steps, TrainerStep *out) {
    (void)out;
    TRY(train_stream_reserve(trainer, steps, 1));
    trainer->on_stream->unmarked = trainer->on_stream->marked = 0;
    TRY(train_stream_begin(trainer));
    return train_stream_set(trainer, source, steps, false);
}

/* Keeps the host at most twice STEPS_UNSEEN steps ahead of the device, so that an interruption is noticed. With several
 * ranks it is kept closer: while the device waits for a lost rank, its queue must never be so full that a launch
 * blocks, too, since that wait would have no deadline. */
static Status stream_throttle(Trainer *trainer, int steps, bool recorded) {
    StepStream *s = trainer->on_stream;
    s->unmarked += steps;
    int least = trainer->config.allreduce == NULL ? STEPS_UNSEEN : recorded ? STEPS_UNSEEN_OF_RANKS : 1;
    if (s->unmarked < least) return STATUS_OK;
    s->unmarked = 0;
    TRY(device_event_record(s->marks[s->marked % 2], trainer->stream));
    return s->marked++ == 0 ? STATUS_OK : trainer_wait(trainer, trainer->stream, s->marks[s->marked % 2]);
}

static Status stream_finish(Trainer *trainer, int64_t first, int done, TrainerStep *out, float *losses) {
    StepStream *s = trainer->on_stream;
    size_t n = (size_t)done, images = n * (size_t)trainer->config.batch;
    if (done == 0) return train_stream_wait(trainer);
    TRY(device_copy(s->host_records, s->records, n * sizeof *s->records, trainer->stream));
    TRY(device_copy(s->host_skipped, s->skipped, n * sizeof *s->skipped, trainer->stream));
    if (losses != NULL) TRY(device_copy(s->host_losses, s->all_losses, images * sizeof *losses, trainer->stream));
    TRY(train_stream_wait(trainer));
    for (int i = 0; i < done; i++) {
        const NnStepTotals *record = &s->host_records[i];
        out[i] = (TrainerStep){.step = first + i,
                               .loss = record->loss,
                               .correct = record->correct,
                               .images = record->images,
                               .skipped = s->host_skipped[i] != 0,
                               .side = trainer_phase(trainer, first + i)->side};
    }
    if (losses != NULL) memcpy(losses, s->host_losses, images * sizeof *losses);
    return STATUS_OK;
}

/* ---- the parts of a step ---- */

static Status stream_shrink(Trainer *trainer, const StepBatch *batch, int side, float **out) {
    const NnImages *images = &batch->images;
    int from = trainer->config.side;
    *out = trainer->on_stream->shrunk;
    return augment_shrink_on_device(images->data, batch->count, from, from, side, images->mean, images->std, *out,
                                    trainer->stream);
}

static Status stream_count(Trainer *trainer, NnPlan *plan) {
    StepStream *s = trainer->on_stream;
    return nn_plan_store_totals(plan, s->records, &s->clock->done);
}

static Status stream_update(Trainer *trainer, int phase) {
    StepStream *s = trainer->on_stream;
    TRY(optim_check_scheduled(trainer->optim, &s->clock->step, s->flag));
    return optim_step_scheduled(trainer->optim, &s->clock->step, s->flag, s->enabled[phase]);
}

static Status stream_close(Trainer *trainer, const StepBatch *batch) {
    StepStream *s = trainer->on_stream;
    const TrainStepClosing closing = {.clock = s->clock,
                                      .flag = s->flag,
                                      .skipped = s->skipped,
                                      .statistics = nn_model_statistic_data(trainer->model),
                                      .backup = trainer->backup,
                                      .elems = nn_model_statistic_elems(trainer->model),
                                      .losses = batch->losses,
                                      .all_losses = s->all_losses,
                                      .batch = batch->count};
    return train_step_close(&closing, trainer->stream);
}

const StepBackend train_step_stream = {stream_begin, stream_shrink,   stream_count, stream_update,
                                       stream_close, stream_throttle, stream_finish};
