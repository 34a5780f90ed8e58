/* Runs: many steps on batches of a set or of a loader. Owns a graph for each phase; the memory that a graph uses does
 * not move while the graph exists. */
#include <string.h>

#include "train/source.h"
#include "train/step_stream.h"

/* ---- memory ---- */

void train_runner_free_run(TrainRunner *r) {
    for (int i = 0; i < TRAINER_MAX_PHASES; i++) {
        device_graph_destroy(r->graphs[i].one);
        device_graph_destroy(r->graphs[i].many);
        r->graphs[i] = (StepGraphs){0};
        r->warm[i] = false;
    }
    train_stream_release(r->trainer->on_stream);
    device_free(r->order);
    device_host_free(r->host_order);
    r->order = r->host_order = NULL;
    r->run_room = 0;
}

Status train_runner_reserve(TrainRunner *r, int64_t images, bool fed) {
    if (r->run_room >= images && r->fed == fed) return STATUS_OK;
    TRY(device_stream_synchronize(r->stream));
    train_runner_free_run(r);
    TRY(device_alloc((size_t)images * sizeof *r->order, &r->order));
    TRY(device_host_alloc((size_t)images * sizeof *r->order, &r->host_order));
    TRY(train_stream_reserve(r->trainer, 1 + images / r->trainer->config.batch, images));
    r->run_room = images;
    r->fed = fed;
    return STATUS_OK;
}

/* ---- recorded steps ---- */

/* Records the steps with the gathering of their batches if that can be recorded; else without it, on the memory of
 * `batch`, where every batch is put. */
static Status record_steps(TrainRunner *r, const StepSource *source, StepBatch batch, int phase, int steps,
                           DeviceGraph **out) {
    Status status = STATUS_OK;
    TRY(device_capture_begin(r->stream));
    for (int i = 0; i < steps && status == STATUS_OK; i++) {
        if (source->recordable) status = source->next(source->context, &batch);
        if (status == STATUS_OK) status = train_step_put(r->trainer, phase, &batch, true);
    }
    return device_capture_end(r->stream, status, out);
}

/* A step that counts as skipped from the start, without other ranks, changes nothing; but after it plans exist,
 * libraries have done their lazy initialisation, and the real step can be recorded. */
static Status warm_up_phase(TrainRunner *r, const TrainSource *source, int phase) {
    const TrainerConfig *config = &r->trainer->config;
    StepBatch batch;
    TRY(train_stream_set(r->trainer, &source->steps, 1, true));
    TRY(train_step_save_statistics(r->trainer));
    TRY(train_source_gather(source, config->batch, &batch));
    TRY(train_step_put(r->trainer, phase, &batch, false));
    TRY(device_stream_synchronize(r->stream));
    if (r->config.graphs && (config->allreduce == NULL || allreduce_recordable(config->allreduce))) {
        StepGraphs *graphs = &r->graphs[phase];
        TRY(record_steps(r, &source->steps, batch, phase, 1, &graphs->one));
        bool alone = r->trainer->slow == NULL && source->steps.recordable;
        if (alone) TRY(record_steps(r, &source->steps, batch, phase, STEP_MANY, &graphs->many));
    }
    r->warm[phase] = true;
    return STATUS_OK;
}

/* Warms up the current phase and those to come, except for phases without steps left. */
static Status warm_up_phases(TrainRunner *r, const TrainSource *source) {
    const TrainerConfig *config = &r->trainer->config;
    for (int i = 0; i < config->phase_count; i++) {
        int64_t end = i + 1 < config->phase_count ? config->phases[i + 1].first_step : config->steps;
        bool over = end <= r->trainer->step || end <= config->phases[i].first_step;
        if (!over && !r->warm[i]) TRY(warm_up_phase(r, source, i));
    }
    return STATUS_OK;
}

/* ---- a run ---- */

static Status check_steps(const TrainRunner *r, int steps, int64_t most) {
    int64_t left = r->trainer->config.steps - r->trainer->step;
    if (steps >= 1 && steps <= most && steps <= left) return STATUS_OK;
    FAIL(STATUS_ARGUMENT, "%d steps at once, but a pass over the set has %lld, and %lld are left in this training run",
         steps, (long long)most, (long long)left);
}

static Status open_source(TrainRunner *r, const TrainBatches *from, int steps, uint32_t epoch, float *losses,
                          TrainSource *out) {
    const TrainerConfig *config = &r->trainer->config;
    int64_t count = r->sets[TRAIN_SET_TRAINING].count, images = (int64_t)steps * config->batch;
    if (from->loader != NULL) {
        TRY(check_steps(r, steps, INT32_MAX / config->batch));
        if (r->stream == NULL) return train_source_open_host(r, from->loader, losses, out);
        return train_source_open_feed(r, from->loader, images, epoch, out);
    }
    if (count > 0 && count < config->batch) {
        FAIL(STATUS_ARGUMENT, "a batch of %d images, but the training set has only %lld", config->batch,
             (long long)count);
    }
    if (count > 0) TRY(check_steps(r, steps, count / config->batch));
    return train_source_open_set(r, from->positions, images, epoch, out);
}

Status train_runner_run(TrainRunner *r, const TrainBatches *from, int steps, uint32_t epoch, TrainerStep *out,
                        float *losses, int *done) {
    TrainSource source;
    *done = 0;
    TRY(open_source(r, from, steps, epoch, losses, &source));
    source.steps.context = &source;
    if (r->stream != NULL) TRY(warm_up_phases(r, &source));
    Status status = train_steps_run(r->trainer, &source.steps, r->graphs, steps, out, losses, done);
    ErrorRecord cause = *error_record();
    Status closed = train_source_close(&source);
    return status == STATUS_OK ? closed : error_adopt(&cause);
}

Status train_runner_restart(TrainRunner *r, uint64_t seed) {
    size_t momenta;
    float *momentum = trainer_buffer(r->trainer, TRAINER_MOMENTUM, &momenta);
    if (r->stream == NULL) {
        memset(momentum, 0, momenta * sizeof *momentum);
    } else {
        TRY(device_fill(momentum, 0, momenta * sizeof *momentum, r->stream));
        TRY(device_stream_synchronize(r->stream));
    }
    r->config.seed = seed;
    return trainer_set_step(r->trainer, 0);
}

Status train_runner_preview(TrainRunner *r, const TrainBatches *from, int count, uint32_t epoch, uint8_t *images,
                            int64_t *labels) {
    const TrainerConfig *config = &r->trainer->config;
    size_t n = (size_t)count, bytes = (size_t)config->side * (size_t)config->side * 3;
    TrainSource source;
    StepBatch batch;
    bool fed = from->loader != NULL;
    TRY(train_runner_need_device(r));
    if (count < 1 || count > config->batch || (fed && count != config->batch)) {
        FAIL(STATUS_ARGUMENT, "cannot look at %d images: a batch has %d", count, config->batch);
    }
    TRY(fed ? train_source_open_feed(r, from->loader, count, epoch, &source)
            : train_source_open_set(r, from->positions, count, epoch, &source));
    TRY(train_stream_set(r->trainer, &source.steps, 1, false));
    TRY(fed ? source.steps.next(&source, &batch) : train_source_gather(&source, count, &batch));
    TRY(device_copy(images, r->batch_images, n * bytes, r->stream));
    TRY(device_copy(labels, r->batch_labels, n * sizeof *labels, r->stream));
    TRY(device_stream_synchronize(r->stream));
    return train_source_close(&source);
}

Status train_runner_take_seconds(TrainRunner *r, double *out) {
    TRY(train_runner_need_device(r));
    *out = r->trainer->on_stream->seconds;
    r->trainer->on_stream->seconds = 0;
    return STATUS_OK;
}

int train_runner_graphs(const TrainRunner *r) {
    int count = 0;
    for (int i = 0; i < TRAINER_MAX_PHASES; i++) count += r->graphs[i].one != NULL;
    return count;
}
