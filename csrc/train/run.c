/* Runs: steps on batches of a set or of a loader's. Owns a graph for each phase, whose memory never moves while it
 * lives, and device memory for what a run reads back. */
#include <string.h>

#include "train/resident_private.h"

#define CHECK_EVERY 8
#define MANY 8 /* steps in one graph, which begin together with a check */
/* Steps between two looks at how far the device is; two chunks may be under way. */
#define CHUNK 32
#define CHUNK_OF_RANKS 2 /* of recorded steps with exchanges; of others 1 */

_Static_assert(MANY % CHECK_EVERY == 0 && CHUNK % MANY == 0, "what comes between steps comes between graphs");

/* ---- memory ---- */

static void destroy_graphs(Resident *r) {
    for (int i = 0; i < TRAINER_MAX_PHASES; i++) {
        device_graph_destroy(r->phases[i].graph);
        device_graph_destroy(r->phases[i].many);
        r->phases[i].graph = r->phases[i].many = NULL;
        r->phases[i].warm = false;
    }
}

void resident_free_run(Resident *r) {
    destroy_graphs(r);
    device_free(r->order);
    device_host_free(r->host_order);
    device_free(r->records);
    device_host_free(r->host_records);
    device_free(r->skipped);
    device_host_free(r->host_skipped);
    device_free(r->all_losses);
    device_host_free(r->host_losses);
    r->order = r->host_order = NULL;
    r->records = r->host_records = NULL;
    r->skipped = r->host_skipped = NULL;
    r->all_losses = r->host_losses = NULL;
    r->run_room = 0;
}

/* Room for a run over so many images, of a set or of a loader's. */
static Status prepare_run(Resident *r, int64_t images, bool fed) {
    size_t n = (size_t)images, steps = n / (size_t)r->trainer->config.batch;
    if (r->run_room >= images && r->fed == fed) return STATUS_OK;
    TRY(device_stream_synchronize(r->stream));
    resident_free_run(r);
    TRY(device_alloc(n * sizeof *r->order, &r->order));
    TRY(device_host_alloc(n * sizeof *r->order, &r->host_order));
    TRY(device_alloc(n * sizeof *r->all_losses, &r->all_losses));
    TRY(device_host_alloc(n * sizeof *r->all_losses, &r->host_losses));
    TRY(device_alloc(steps * sizeof *r->records, &r->records));
    TRY(device_host_alloc(steps * sizeof *r->records, &r->host_records));
    TRY(device_alloc(steps * sizeof *r->skipped, &r->skipped));
    TRY(device_host_alloc(steps * sizeof *r->skipped, &r->host_skipped));
    r->run_room = images;
    r->fed = fed;
    return STATUS_OK;
}

/* ---- a step ---- */

/* Where batches come from. */
typedef struct Source {
    GatherSet set;  /* with a loader: for rehearsals */
    Loader *loader; /* NULL: the set */
} Source;

static NnImages batch_of(const Resident *r, const uint8_t *data) {
    NnImages images = {.data = data, .on_device = true, .type = PIXELS_U8, .layout = PIXELS_NHWC};
    memcpy(images.mean, r->config.mean, sizeof r->config.mean);
    memcpy(images.std, r->config.std, sizeof r->config.std);
    for (int c = 3; c < NN_MAX_IMAGE_CHANNELS; c++) images.std[c] = 1;
    return images;
}

/* The next batch's images and labels. */
static Status put_batch(Resident *r, const GatherSet *set) {
    return gather_batch(set, r->order, r->clock, r->trainer->config.batch, r->config.ops, r->config.op_count,
                        r->batch_images, r->batch_labels, r->stream);
}

/* The same of the loader's next batch, which is uploaded while earlier steps go on. */
static Status feed_batch(Resident *r, Loader *loader) {
    const TrainerConfig *config = &r->trainer->config;
    LoaderFeedBatch batch;
    TRY(loader_feed_next(r->feed, loader, &batch));
    if (batch.count != config->batch) {
        FAIL(STATUS_ARGUMENT, "the loader gave %d images where a step takes %d", batch.count, config->batch);
    }
    GatherSet set = {batch.images, batch.labels, batch.ids, batch.count, config->side, config->side};
    TRY(put_batch(r, &set));
    return loader_feed_free(r->feed);
}

static Status put_gradients(Resident *r, const TrainerPhase *phase, NnPlan *plan, bool exchange) {
    const TrainerConfig *config = &r->trainer->config;
    NnImages images = batch_of(r, r->batch_images);
    NnStepOptions options = {.label_smoothing = config->label_smoothing,
                             .reduction = config->reduction,
                             .first_block = phase->first_block,
                             .losses = r->batch_losses,
                             .hook = exchange ? trainer_gradient_hook(r->trainer) : NULL,
                             .hook_context = config->allreduce};
    if (phase->side < config->side) {
        TRY(gather_shrink(r->batch_images, config->batch, config->side, config->side, phase->side, r->config.mean,
                          r->config.std, r->shrunk, r->stream));
        images.data = r->shrunk;
        images.type = PIXELS_F32;
    }
    TRY(nn_plan_step(plan, &images, r->batch_labels, config->batch, &options));
    TRY(nn_plan_store_totals(plan, r->records, &r->clock->done));
    return exchange ? trainer_exchange(r->trainer, phase) : STATUS_OK;
}

/* A step on the batch that has been put. */
static Status put_step(Resident *r, int phase, bool exchange) {
    const PhaseState *state = &r->phases[phase];
    Trainer *trainer = r->trainer;
    const TrainStepClosing closing = {.clock = r->clock,
                                     .flag = r->flag,
                                     .skipped = r->skipped,
                                     .statistics = nn_model_statistic_data(r->model),
                                     .backup = r->backup,
                                     .elems = nn_model_statistic_elems(r->model),
                                     .losses = r->batch_losses,
                                     .all_losses = r->all_losses,
                                     .batch = trainer->config.batch};
    TRY(put_gradients(r, &trainer->config.phases[phase], state->plan, exchange));
    TRY(optim_check_scheduled(trainer->optim, &r->clock->step, r->flag));
    TRY(optim_step_scheduled(trainer->optim, &r->clock->step, r->flag, state->enabled));
    return train_step_close(&closing, r->stream);
}

/* With their batches, if those come from a set. */
static Status record_steps(Resident *r, const GatherSet *set, int phase, int steps, DeviceGraph **out) {
    Status status = STATUS_OK;
    TRY(device_capture_begin(r->stream));
    for (int i = 0; i < steps && status == STATUS_OK; i++) {
        if (set != NULL) status = put_batch(r, set);
        if (status == STATUS_OK) status = put_step(r, phase, true);
    }
    if (status == STATUS_OK) return device_capture_end(r->stream, out);
    ErrorRecord cause = *error_record();
    DeviceGraph *part = NULL;
    if (device_capture_end(r->stream, &part) == STATUS_OK) device_graph_destroy(part);
    return error_adopt(&cause);
}

static int phase_at(const Resident *r, int64_t step) {
    return (int)(trainer_phase(r->trainer, step) - r->trainer->config.phases);
}

/* Steps of the one graph that begins after `done` steps of a run. */
static int steps_at_once(const Resident *r, int done, int steps) {
    int64_t step = r->trainer->step;
    int phase = phase_at(r, step);
    bool many = r->phases[phase].many != NULL && done % MANY == 0 && steps - done >= MANY;
    return many && phase_at(r, step + MANY - 1) == phase ? MANY : 1;
}

static Status next_steps(Resident *r, const Source *source, int count) {
    int phase = phase_at(r, r->trainer->step);
    const PhaseState *state = &r->phases[phase];
    if (count == MANY) return device_graph_launch(state->many, r->stream);
    if (source->loader != NULL) {
        TRY(feed_batch(r, source->loader));
    } else if (state->graph == NULL) {
        TRY(put_batch(r, &source->set));
    }
    return state->graph == NULL ? put_step(r, phase, true) : device_graph_launch(state->graph, r->stream);
}

/* ---- a run ---- */

static Status save_statistics(Resident *r) {
    return trainer_copy(r->trainer, r->backup, nn_model_statistic_data(r->model), nn_model_statistic_elems(r->model));
}

static Status upload_clock(Resident *r, uint32_t epoch) {
    *r->host_clock = (GatherClock){.seed = r->config.seed, .epoch = epoch, .step = (int32_t)r->trainer->step};
    return device_copy(r->clock, r->host_clock, sizeof *r->clock, r->stream);
}

/* A loader's batches are used in their own order. */
static Status upload_order(Resident *r, const int32_t *positions, size_t images) {
    size_t batch = (size_t)r->trainer->config.batch;
    for (size_t i = 0; i < images; i++) r->host_order[i] = positions == NULL ? (int32_t)(i % batch) : positions[i];
    return device_copy(r->order, r->host_order, images * sizeof *positions, r->stream);
}

/* A step of a phase that counts as skipped from the start, without other ranks, changes nothing; but after it plans are
 * there, libraries have set up what they set up late, and the real step can be recorded. */
static Status warm_up(Resident *r, const Source *source, int phase, uint32_t epoch) {
    const TrainerConfig *config = &r->trainer->config;
    PhaseState *state = &r->phases[phase];
    TRY(trainer_plan(r->trainer, config->phases[phase].side, &state->plan));
    TRY(upload_clock(r, epoch));
    TRY(device_fill(r->records, 0, sizeof *r->records, r->stream));
    TRY(device_fill(r->flag, 1, sizeof *r->flag, r->stream));
    TRY(save_statistics(r));
    TRY(put_batch(r, &source->set));
    TRY(put_step(r, phase, false));
    TRY(device_stream_synchronize(r->stream));
    if (r->config.graphs && (config->allreduce == NULL || allreduce_recordable(config->allreduce))) {
        const GatherSet *set = source->loader == NULL ? &source->set : NULL;
        TRY(record_steps(r, set, phase, 1, &state->graph));
        bool alone = config->allreduce == NULL && r->trainer->slow == NULL;
        if (alone && set != NULL) TRY(record_steps(r, set, phase, MANY, &state->many));
    }
    state->warm = true;
    return STATUS_OK;
}

/* For the phases from the next step on, as far as there are more steps in them. */
static Status warm_up_all(Resident *r, const Source *source, uint32_t epoch) {
    const TrainerConfig *config = &r->trainer->config;
    for (int i = 0; i < config->phase_count; i++) {
        int64_t end = i + 1 < config->phase_count ? config->phases[i + 1].first_step : config->steps;
        bool over = end <= r->trainer->step || end <= config->phases[i].first_step;
        if (!over && !r->phases[i].warm) TRY(warm_up(r, source, i, epoch));
    }
    return STATUS_OK;
}

/* From here on the clock runs. */
static Status begin_run(Resident *r, int steps, uint32_t epoch) {
    Trainer *trainer = r->trainer;
    size_t n = (size_t)steps;
    TRY(device_event_record(r->begin, r->stream));
    TRY(upload_clock(r, epoch));
    TRY(device_fill(r->records, 0, n * sizeof *r->records, r->stream));
    TRY(device_fill(r->skipped, 0, n * sizeof *r->skipped, r->stream));
    TRY(device_fill(r->flag, 0, sizeof *r->flag, r->stream));
    if (trainer->slow != NULL && trainer->step == 0) TRY(trainer_begin_averaging(trainer));
    return save_statistics(r);
}

/* After step number `done` of a run, recorded or not: keeps the device at most two chunks behind, so that an
 * interruption is noticed. Ranks keep it closer: where the device waits for a lost rank, its queue must never be so
 * full that a launch waits, too, since that wait would have no deadline. */
static Status throttle(Resident *r, int done, bool recorded) {
    const TrainerConfig *config = &r->trainer->config;
    int chunk = config->allreduce == NULL ? CHUNK : recorded ? CHUNK_OF_RANKS : 1;
    if (done % chunk != 0) return STATUS_OK;
    DeviceEvent *mine = r->marks[done / chunk % 2], *before = r->marks[(done / chunk + 1) % 2];
    TRY(device_event_record(mine, r->stream));
    if (done == chunk) return STATUS_OK;
    return trainer_wait(r->trainer, r->stream, before);
}

static Status put_steps(Resident *r, const Source *source, int steps, int *done) {
    Trainer *trainer = r->trainer;
    const TrainerConfig *config = &trainer->config;
    for (*done = 0; *done < steps;) {
        bool changed = false;
        bool look = source->loader != NULL || *done % CHECK_EVERY == 0;
        if (config->check != NULL && look) TRY(config->check(config->check_context));
        int count = steps_at_once(r, *done, steps);
        bool recorded = r->phases[phase_at(r, trainer->step)].graph != NULL;
        TRY(next_steps(r, source, count));
        trainer->step += count;
        *done += count;
        if (trainer->slow != NULL) TRY(trainer_average(trainer, &changed));
        if (changed) TRY(save_statistics(r));
        TRY(throttle(r, *done, recorded));
    }
    return STATUS_OK;
}

Status resident_wait(Resident *r) {
    float milliseconds = 0;
    TRY(device_event_record(r->end, r->stream));
    TRY(trainer_wait(r->trainer, r->stream, NULL));
    TRY(device_event_elapsed(r->begin, r->end, &milliseconds));
    r->seconds += (double)milliseconds * 1e-3;
    return STATUS_OK;
}

/* What the steps have left on the device. */
static Status read_run(Resident *r, int64_t first, int done, TrainerStep *out, float *losses) {
    size_t n = (size_t)done, images = n * (size_t)r->trainer->config.batch;
    if (done == 0) return resident_wait(r);
    TRY(device_copy(r->host_records, r->records, n * sizeof *r->records, r->stream));
    TRY(device_copy(r->host_skipped, r->skipped, n * sizeof *r->skipped, r->stream));
    if (losses != NULL) TRY(device_copy(r->host_losses, r->all_losses, images * sizeof *losses, r->stream));
    TRY(resident_wait(r));
    for (int i = 0; i < done; i++) {
        const NnStepTotals *record = &r->host_records[i];
        out[i] = (TrainerStep){.step = first + i,
                               .loss = record->loss,
                               .correct = record->correct,
                               .images = record->images,
                               .skipped = r->host_skipped[i] != 0,
                               .side = trainer_phase(r->trainer, first + i)->side};
    }
    if (losses != NULL) memcpy(losses, r->host_losses, images * sizeof *losses);
    return STATUS_OK;
}

static Status check_steps(const Resident *r, int steps, int64_t most) {
    int64_t left = r->trainer->config.steps - r->trainer->step;
    if (steps >= 1 && steps <= most && steps <= left) return STATUS_OK;
    FAIL(STATUS_ARGUMENT, "%d steps at once, but a pass over the set has %lld, and %lld are left of the training",
         steps, (long long)most, (long long)left);
}

static Status open_set(Resident *r, const int32_t *positions, int64_t images, Source *out) {
    TRY(resident_need(r, RESIDENT_TRAIN, &out->set));
    TRY(resident_check_positions(positions, images, out->set.count));
    TRY(prepare_run(r, out->set.count, false));
    return upload_order(r, positions, (size_t)images);
}

/* Rehearsals take a slot without pictures. */
static Status open_feed(Resident *r, Loader *loader, int64_t images, Source *out) {
    int side = r->trainer->config.side;
    LoaderFeedBatch blank;
    TRY(resident_need_feed(r, loader));
    TRY(prepare_run(r, images, true));
    TRY(loader_feed_blank(r->feed, &blank));
    out->set = (GatherSet){blank.images, blank.labels, blank.ids, blank.count, side, side};
    out->loader = loader;
    return upload_order(r, NULL, (size_t)images);
}

static Status open_source(Resident *r, const ResidentSource *from, int steps, Source *out) {
    const TrainerConfig *config = &r->trainer->config;
    int64_t count = r->sets[RESIDENT_TRAIN].count, images = (int64_t)steps * config->batch;
    *out = (Source){0};
    if (from->loader != NULL) {
        TRY(check_steps(r, steps, INT32_MAX / config->batch));
        return open_feed(r, from->loader, images, out);
    }
    if (count > 0 && count < config->batch) {
        FAIL(STATUS_ARGUMENT, "a batch of %d images, but the training set has only %lld", config->batch,
             (long long)count);
    }
    if (count > 0) TRY(check_steps(r, steps, count / config->batch));
    return open_set(r, from->positions, images, out);
}

/* What the run has left; nothing of the loader's is in use afterwards. */
static Status close_run(Resident *r, const Source *source, int64_t first, int done, TrainerStep *out, float *losses) {
    Status status = read_run(r, first, done, out, losses);
    ErrorRecord cause = *error_record();
    Status settled = source->loader == NULL ? STATUS_OK : loader_feed_settle(r->feed);
    return status == STATUS_OK ? settled : error_adopt(&cause);
}

Status resident_run(Resident *r, const ResidentSource *from, int steps, uint32_t epoch, TrainerStep *out, float *losses,
                    int *done) {
    Source source;
    int64_t first = r->trainer->step;
    *done = 0;
    TRY(open_source(r, from, steps, &source));
    TRY(warm_up_all(r, &source, epoch));
    TRY(begin_run(r, steps, epoch));
    Status status = put_steps(r, &source, steps, done);
    ErrorRecord cause = *error_record();
    Status closing = close_run(r, &source, first, *done, out, losses);
    if (closing != STATUS_OK) { /* the device or a rank is lost: nobody knows how far the steps came */
        r->trainer->step = first;
        *done = 0;
    }
    return status == STATUS_OK ? closing : error_adopt(&cause);
}

Status resident_restart(Resident *r, uint64_t seed) {
    size_t momenta;
    float *momentum = trainer_buffer(r->trainer, TRAINER_MOMENTUM, &momenta);
    TRY(device_fill(momentum, 0, momenta * sizeof *momentum, r->stream));
    TRY(device_stream_synchronize(r->stream));
    r->config.seed = seed;
    return trainer_set_step(r->trainer, 0);
}

Status resident_look(Resident *r, const ResidentSource *from, int count, uint32_t epoch, uint8_t *images,
                     int64_t *labels) {
    const TrainerConfig *config = &r->trainer->config;
    size_t n = (size_t)count, bytes = (size_t)config->side * (size_t)config->side * 3;
    Source source = {0};
    if (count < 1 || count > config->batch || (from->loader != NULL && count != config->batch)) {
        FAIL(STATUS_ARGUMENT, "a look at %d images, but a batch has %d", count, config->batch);
    }
    TRY(from->loader != NULL ? open_feed(r, from->loader, count, &source)
                             : open_set(r, from->positions, count, &source));
    TRY(upload_clock(r, epoch));
    if (from->loader != NULL) {
        TRY(feed_batch(r, from->loader));
    } else {
        TRY(gather_batch(&source.set, r->order, r->clock, count, r->config.ops, r->config.op_count, r->batch_images,
                         r->batch_labels, r->stream));
    }
    TRY(device_copy(images, r->batch_images, n * bytes, r->stream));
    TRY(device_copy(labels, r->batch_labels, n * sizeof *labels, r->stream));
    TRY(device_stream_synchronize(r->stream));
    return from->loader == NULL ? STATUS_OK : loader_feed_settle(r->feed);
}

Status resident_take_seconds(Resident *r, double *out) {
    *out = r->seconds;
    r->seconds = 0;
    return STATUS_OK;
}

int resident_graphs(const Resident *r) {
    int count = 0;
    for (int i = 0; i < TRAINER_MAX_PHASES; i++) count += r->phases[i].graph != NULL;
    return count;
}
