/* Training on a resident set. Owns device memory for the sets, for one batch and for what a run reads back; a graph for
 * each phase, whose memory never moves while it lives. */
#include "train/resident_private.h"

#include <string.h>

#include "base/clock.h"
#include "base/memory.h"

#define CHECK_EVERY 8
#define MANY 8   /* steps in one graph, which begin together with a check */
#define CHUNK 32 /* steps between two looks at how far the device is; two chunks may be under way */

_Static_assert(MANY % CHECK_EVERY == 0 && CHUNK % MANY == 0, "what comes between steps comes between graphs");

static size_t image_bytes(const Resident *r) {
    return (size_t)r->trainer->config.side * (size_t)r->trainer->config.side * 3;
}

/* ---- memory ---- */

static Status create_events(Resident *r) {
    TRY(device_event_create(&r->begin));
    TRY(device_event_create(&r->end));
    for (int i = 0; i < 2; i++) TRY(device_event_create(&r->marks[i]));
    return STATUS_OK;
}

static Status create_step_memory(Resident *r) {
    const TrainerConfig *config = &r->trainer->config;
    size_t batch = (size_t)config->batch, most = 0;
    for (int i = 0; i < config->phase_count; i++) {
        size_t side = (size_t)config->phases[i].side;
        if (config->phases[i].side < config->side && side * side * 3 > most) most = side * side * 3;
    }
    TRY(device_alloc(batch * image_bytes(r), &r->batch_images));
    TRY(device_alloc(batch * sizeof(int64_t), &r->batch_labels));
    TRY(device_alloc(batch * sizeof(float), &r->batch_losses));
    if (most > 0) TRY(device_alloc(batch * most * sizeof(float), &r->shrunk));
    TRY(device_alloc(sizeof *r->clock, &r->clock));
    TRY(device_host_alloc(sizeof *r->host_clock, &r->host_clock));
    TRY(device_alloc(sizeof *r->flag, &r->flag));
    TRY(device_fill(r->flag, 0, sizeof *r->flag, r->stream));
    return trainer_alloc(r->trainer, model_statistic_elems(r->model), &r->backup);
}

/* The rates of all steps, and in which phases each group may be active. */
static Status load_rates(Resident *r) {
    Status status = STATUS_OK;
    const TrainerConfig *config = &r->trainer->config;
    size_t groups = (size_t)config->group_count;
    OptimRate *rates = NULL;
    if (config->steps > INT32_MAX) FAIL(STATUS_ARGUMENT, "%lld steps are too many", (long long)config->steps);
    TRY(memory_calloc((size_t)config->steps * groups, sizeof *rates, &rates));
    for (int64_t step = 0; step < config->steps; step++) {
        ptrdiff_t phase = trainer_phase(r->trainer, step) - config->phases;
        for (int g = 0; g < config->group_count; g++) {
            OptimRate rate = trainer_rate(r->trainer, g, step);
            rates[(size_t)step * groups + (size_t)g] = rate;
            if (rate.active) r->phases[phase].enabled[g] = true;
        }
    }
    TRY_GOTO(optim_load_rates(r->trainer->optim, rates, config->steps));
done:
    memory_free(rates);
    return status;
}

Status resident_create(Trainer *trainer, const ResidentConfig *config, Resident **out) {
    Status status = STATUS_OK;
    Resident *r = NULL;
    if (trainer->stream == NULL) FAIL(STATUS_ARGUMENT, "a resident training needs a model on a GPU");
    TRY(gather_check(config->ops, config->op_count, trainer->config.side, trainer->config.side));
    TRY(memory_calloc(1, sizeof *r, &r));
    r->trainer = trainer;
    r->model = trainer->model;
    r->stream = trainer->stream;
    r->config = *config;
    TRY_GOTO(create_events(r));
    TRY_GOTO(create_step_memory(r));
    TRY_GOTO(load_rates(r));
    TRY_GOTO(device_stream_synchronize(r->stream));
    *out = r;
    r = NULL;
done:
    resident_destroy(r);
    return status;
}

static void destroy_graphs(Resident *r) {
    for (int i = 0; i < TRAINER_MAX_PHASES; i++) {
        device_graph_destroy(r->phases[i].graph);
        device_graph_destroy(r->phases[i].many);
        r->phases[i].graph = r->phases[i].many = NULL;
        r->phases[i].warm = false;
    }
}

static void free_run(Resident *r) {
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

static void free_set(SetMemory *set) {
    device_free(set->images);
    device_free(set->labels);
    device_free(set->ids);
    *set = (SetMemory){0};
}

void resident_destroy(Resident *r) {
    if (r == NULL) return;
    (void)device_stream_synchronize(r->stream);
    free_run(r);
    for (int i = 0; i < RESIDENT_SETS; i++) free_set(&r->sets[i]);
    resident_free_test(r);
    device_free(r->moments);
    device_host_free(r->host_moments);
    device_free(r->batch_images);
    device_free(r->batch_labels);
    device_free(r->batch_losses);
    device_free(r->shrunk);
    device_free(r->clock);
    device_host_free(r->host_clock);
    device_free(r->flag);
    trainer_free(r->trainer, r->backup);
    for (int i = 0; i < 2; i++) device_event_destroy(r->marks[i]);
    device_event_destroy(r->begin);
    device_event_destroy(r->end);
    memory_free(r);
}

/* ---- the sets ---- */

Status resident_begin_load(Resident *r, ResidentSet which, int64_t count) {
    SetMemory *set = &r->sets[which];
    if (count < 1 || count > INT32_MAX) {
        FAIL(STATUS_ARGUMENT, "a resident set has 1 to %d images, not %lld", INT32_MAX, (long long)count);
    }
    TRY(device_stream_synchronize(r->stream));
    if (which == RESIDENT_TRAIN) free_run(r);
    free_set(set);
    Status status = device_alloc((size_t)count * image_bytes(r), &set->images);
    if (status == STATUS_OK) status = device_alloc((size_t)count * sizeof(int64_t), &set->labels);
    if (status == STATUS_OK) status = device_alloc((size_t)count * sizeof(int64_t), &set->ids);
    if (status != STATUS_OK) {
        free_set(set);
        return status;
    }
    set->count = count;
    return STATUS_OK;
}

static Status check_labels(const Resident *r, const int64_t *labels, const int64_t *ids, int64_t count) {
    int64_t classes = (int64_t)trainer_classes(r->trainer);
    for (int64_t i = 0; i < count; i++) {
        if (labels[i] >= 0 && labels[i] < classes) continue;
        return error_at_sample(error_fail(STATUS_ARGUMENT, "sample %lld has the label %lld; expected 0 to %lld",
                                          (long long)ids[i], (long long)labels[i], (long long)classes - 1),
                               ids[i]);
    }
    return STATUS_OK;
}

Status resident_put(Resident *r, ResidentSet which, const uint8_t *images, const int64_t *labels, const int64_t *ids,
                    int64_t count) {
    SetMemory *set = &r->sets[which];
    size_t bytes = image_bytes(r), at = (size_t)set->filled, n = (size_t)count;
    if (count < 0 || count > set->count - set->filled) {
        FAIL(STATUS_ARGUMENT, "%lld more images, but there is room for %lld", (long long)count,
             (long long)(set->count - set->filled));
    }
    TRY(check_labels(r, labels, ids, count));
    TRY(device_copy(set->images + at * bytes, images, n * bytes, r->stream));
    TRY(device_copy(set->labels + at, labels, n * sizeof *labels, r->stream));
    TRY(device_copy(set->ids + at, ids, n * sizeof *ids, r->stream));
    TRY(device_stream_synchronize(r->stream));
    set->filled += count;
    return STATUS_OK;
}

Status resident_need(const Resident *r, ResidentSet which, GatherSet *out) {
    const SetMemory *set = &r->sets[which];
    int side = r->trainer->config.side;
    if (set->count == 0 || set->filled < set->count) {
        FAIL(STATUS_ARGUMENT, "the %s set has %lld of its %lld images", which == RESIDENT_TRAIN ? "training" : "test",
             (long long)set->filled, (long long)set->count);
    }
    *out = (GatherSet){set->images, set->labels, set->ids, set->count, side, side};
    return STATUS_OK;
}

Status resident_check_places(const int32_t *places, int64_t count, int64_t limit) {
    for (int64_t i = 0; i < count; i++) {
        if (places[i] >= 0 && places[i] < limit) continue;
        FAIL(STATUS_INDEX, "place %d (number %lld) is not in a set of %lld images", places[i], (long long)i,
             (long long)limit);
    }
    return STATUS_OK;
}

/* Room for a run over as many images as the set has. */
static Status prepare_run(Resident *r, int64_t images) {
    size_t n = (size_t)images, steps = n / (size_t)r->trainer->config.batch;
    if (r->run_room != 0) return STATUS_OK;
    TRY(device_alloc(n * sizeof *r->order, &r->order));
    TRY(device_host_alloc(n * sizeof *r->order, &r->host_order));
    TRY(device_alloc(n * sizeof *r->all_losses, &r->all_losses));
    TRY(device_host_alloc(n * sizeof *r->all_losses, &r->host_losses));
    TRY(device_alloc(steps * sizeof *r->records, &r->records));
    TRY(device_host_alloc(steps * sizeof *r->records, &r->host_records));
    TRY(device_alloc(steps * sizeof *r->skipped, &r->skipped));
    TRY(device_host_alloc(steps * sizeof *r->skipped, &r->host_skipped));
    r->run_room = images;
    return STATUS_OK;
}

/* ---- a step ---- */

static Images batch_of(const Resident *r, const uint8_t *data) {
    Images images = {.data = data, .on_device = true, .type = PIXELS_U8, .layout = PIXELS_NHWC};
    memcpy(images.mean, r->config.mean, sizeof r->config.mean);
    memcpy(images.std, r->config.std, sizeof r->config.std);
    for (int c = 3; c < MODEL_MAX_IMAGE_CHANNELS; c++) images.std[c] = 1;
    return images;
}

static Status put_gradients(Resident *r, const GatherSet *set, const TrainerPhase *phase, Plan *plan, bool exchange) {
    const TrainerConfig *config = &r->trainer->config;
    Images images = batch_of(r, r->batch_images);
    StepOptions options = {.label_smoothing = config->label_smoothing,
                           .reduction = config->reduction,
                           .first_block = phase->first_block,
                           .losses = r->batch_losses,
                           .hook = exchange ? config->reduce_hook : NULL,
                           .hook_context = config->reduce_context};
    TRY(gather_batch(set, r->order, r->clock, config->batch, r->config.ops, r->config.op_count, r->batch_images,
                     r->batch_labels, r->stream));
    if (phase->side < config->side) {
        TRY(gather_shrink(r->batch_images, config->batch, config->side, config->side, phase->side, r->config.mean,
                          r->config.std, r->shrunk, r->stream));
        images.data = r->shrunk;
        images.type = PIXELS_F32;
    }
    TRY(plan_step(plan, &images, r->batch_labels, config->batch, &options));
    TRY(plan_store_totals(plan, r->records, &r->clock->done));
    if (config->reduce == NULL || !exchange) return STATUS_OK;
    return config->reduce(config->reduce_context, r->trainer->step, model_gradient_data(r->model),
                          model_gradient_elems(r->model, phase->first_block));
}

static Status put_step(Resident *r, const GatherSet *set, int phase, bool exchange) {
    const PhaseState *state = &r->phases[phase];
    Trainer *trainer = r->trainer;
    const ResidentClosing closing = {.clock = r->clock,
                                     .flag = r->flag,
                                     .skipped = r->skipped,
                                     .statistics = model_statistic_data(r->model),
                                     .backup = r->backup,
                                     .elems = model_statistic_elems(r->model),
                                     .losses = r->batch_losses,
                                     .all_losses = r->all_losses,
                                     .batch = trainer->config.batch};
    TRY(put_gradients(r, set, &trainer->config.phases[phase], state->plan, exchange));
    TRY(optim_check_scheduled(trainer->optim, &r->clock->step, r->flag));
    TRY(optim_step_scheduled(trainer->optim, &r->clock->step, r->flag, state->enabled));
    return resident_close_step(&closing, r->stream);
}

static Status record_steps(Resident *r, const GatherSet *set, int phase, int steps, DeviceGraph **out) {
    Status status = STATUS_OK;
    TRY(device_capture_begin(r->stream));
    for (int i = 0; i < steps && status == STATUS_OK; i++) status = put_step(r, set, phase, true);
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

static Status next_steps(Resident *r, const GatherSet *set, int count) {
    int phase = phase_at(r, r->trainer->step);
    const PhaseState *state = &r->phases[phase];
    if (count == MANY) return device_graph_launch(state->many, r->stream);
    return state->graph == NULL ? put_step(r, set, phase, true) : device_graph_launch(state->graph, r->stream);
}

/* ---- a run ---- */

static Status save_statistics(Resident *r) {
    return trainer_copy(r->trainer, r->backup, model_statistic_data(r->model), model_statistic_elems(r->model));
}

static Status upload_clock(Resident *r, uint32_t epoch) {
    *r->host_clock = (GatherClock){.seed = r->config.seed, .epoch = epoch, .step = (int32_t)r->trainer->step};
    return device_copy(r->clock, r->host_clock, sizeof *r->clock, r->stream);
}

static Status upload_order(Resident *r, const int32_t *order, size_t images) {
    memcpy(r->host_order, order, images * sizeof *order);
    return device_copy(r->order, r->host_order, images * sizeof *order, r->stream);
}

/* A step of a phase that counts as skipped from the start, without other ranks, changes nothing; but after it plans are
 * there, libraries have set up what they set up late, and the real step can be recorded. */
static Status warm_up(Resident *r, const GatherSet *set, int phase, uint32_t epoch) {
    const TrainerConfig *config = &r->trainer->config;
    PhaseState *state = &r->phases[phase];
    TRY(trainer_plan(r->trainer, config->phases[phase].side, &state->plan));
    TRY(upload_clock(r, epoch));
    TRY(device_fill(r->records, 0, sizeof *r->records, r->stream));
    TRY(device_fill(r->flag, 1, sizeof *r->flag, r->stream));
    TRY(save_statistics(r));
    TRY(put_step(r, set, phase, false));
    TRY(device_stream_synchronize(r->stream));
    if (r->config.graphs && (config->reduce == NULL || config->reduce_capturable)) {
        TRY(record_steps(r, set, phase, 1, &state->graph));
        bool alone = config->reduce == NULL && r->trainer->slow == NULL;
        if (alone) TRY(record_steps(r, set, phase, MANY, &state->many));
    }
    state->warm = true;
    return STATUS_OK;
}

/* For the phases from the next step on, as far as there are more steps in them. */
static Status warm_up_all(Resident *r, const GatherSet *set, uint32_t epoch) {
    const TrainerConfig *config = &r->trainer->config;
    for (int i = 0; i < config->phase_count; i++) {
        int64_t end = i + 1 < config->phase_count ? config->phases[i + 1].first_step : config->steps;
        bool over = end <= r->trainer->step || end <= config->phases[i].first_step;
        if (!over && !r->phases[i].warm) TRY(warm_up(r, set, i, epoch));
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

/* After step number `done` of a run: keeps the device at most two chunks behind, so that an interruption is noticed. */
static Status throttle(Resident *r, int done) {
    if (done % CHUNK != 0) return STATUS_OK;
    DeviceEvent *mine = r->marks[done / CHUNK % 2], *before = r->marks[(done / CHUNK + 1) % 2];
    TRY(device_event_record(mine, r->stream));
    return done == CHUNK || r->trainer->config.reduce_wait != NULL ? STATUS_OK : device_event_synchronize(before);
}

static Status put_steps(Resident *r, const GatherSet *set, int steps, int *done) {
    Trainer *trainer = r->trainer;
    const TrainerConfig *config = &trainer->config;
    for (*done = 0; *done < steps;) {
        bool changed = false;
        if (config->check != NULL && *done % CHECK_EVERY == 0) TRY(config->check(config->check_context));
        int count = steps_at_once(r, *done, steps);
        TRY(next_steps(r, set, count));
        trainer->step += count;
        *done += count;
        if (trainer->slow != NULL) TRY(trainer_average(trainer, &changed));
        if (changed) TRY(save_statistics(r));
        TRY(throttle(r, *done));
    }
    return STATUS_OK;
}

Status resident_wait(Resident *r) {
    const TrainerConfig *config = &r->trainer->config;
    float milliseconds = 0;
    TRY(device_event_record(r->end, r->stream));
    if (config->reduce_wait != NULL) {
        TRY(config->reduce_wait(config->reduce_context, r->stream));
    } else {
        TRY(device_stream_synchronize(r->stream));
    }
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
        const StepTotals *record = &r->host_records[i];
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

static Status check_run(const Resident *r, const GatherSet *set, const int32_t *order, int steps) {
    const TrainerConfig *config = &r->trainer->config;
    int64_t left = config->steps - r->trainer->step, most = set->count / config->batch;
    if (most == 0) {
        FAIL(STATUS_ARGUMENT, "a batch of %d images, but the training set has only %lld", config->batch,
             (long long)set->count);
    }
    if (steps < 1 || steps > most || steps > left) {
        FAIL(STATUS_ARGUMENT, "%d steps at once, but a pass over the set has %lld, and %lld are left of the training",
             steps, (long long)most, (long long)left);
    }
    return resident_check_places(order, (int64_t)steps * config->batch, set->count);
}

Status resident_run(Resident *r, const int32_t *order, int steps, uint32_t epoch, TrainerStep *out, float *losses,
                    int *done) {
    GatherSet set;
    int64_t first = r->trainer->step;
    *done = 0;
    TRY(resident_need(r, RESIDENT_TRAIN, &set));
    TRY(check_run(r, &set, order, steps));
    TRY(prepare_run(r, set.count));
    TRY(upload_order(r, order, (size_t)steps * (size_t)r->trainer->config.batch));
    TRY(warm_up_all(r, &set, epoch));
    TRY(begin_run(r, steps, epoch));
    Status status = put_steps(r, &set, steps, done);
    ErrorRecord cause = *error_record();
    Status reading = read_run(r, first, *done, out, losses);
    if (reading != STATUS_OK) { /* the device or a rank is lost: nobody knows how far the steps came */
        r->trainer->step = first;
        *done = 0;
    }
    return status == STATUS_OK ? reading : error_adopt(&cause);
}

Status resident_restart(Resident *r, uint64_t seed) {
    size_t momenta;
    float *momentum = trainer_buffer(r->trainer, TRAINER_MOMENTUM, &momenta);
    TRY(device_fill(momentum, 0, momenta * sizeof *momentum, r->stream));
    TRY(device_stream_synchronize(r->stream));
    r->config.seed = seed;
    return trainer_set_step(r->trainer, 0);
}

Status resident_look(Resident *r, const int32_t *order, int count, uint32_t epoch, uint8_t *images, int64_t *labels) {
    GatherSet set;
    size_t n = (size_t)count;
    TRY(resident_need(r, RESIDENT_TRAIN, &set));
    if (count < 1 || count > r->trainer->config.batch || count > set.count) {
        FAIL(STATUS_ARGUMENT, "a look at %d images, but a batch has %d", count, r->trainer->config.batch);
    }
    TRY(resident_check_places(order, count, set.count));
    TRY(prepare_run(r, set.count));
    TRY(upload_order(r, order, n));
    TRY(upload_clock(r, epoch));
    TRY(gather_batch(&set, r->order, r->clock, count, r->config.ops, r->config.op_count, r->batch_images,
                     r->batch_labels, r->stream));
    TRY(device_copy(images, r->batch_images, n * image_bytes(r), r->stream));
    TRY(device_copy(labels, r->batch_labels, n * sizeof *labels, r->stream));
    return device_stream_synchronize(r->stream);
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
