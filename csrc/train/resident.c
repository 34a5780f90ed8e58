/* Owns device memory for the sets, for one batch, and what its runs (run.c) and tests (evaluate.c) keep
 * there. */
#include "train/resident_private.h"

#include "base/memory.h"

static const char *const NAMES[RESIDENT_SETS] = {"training", "test", "sample"};

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
    return trainer_alloc(r->trainer, nn_model_statistic_elems(r->model), &r->backup);
}

/* The rates of all steps, and in which phases each group may be active. */
static Status load_rates(Resident *r) {
    Status status = STATUS_OK;
    const TrainerConfig *config = &r->trainer->config;
    size_t groups = (size_t)config->group_count;
    OptimRate *rates = NULL;
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

static void free_set(SetMemory *set) {
    device_free(set->images);
    device_free(set->labels);
    device_free(set->ids);
    *set = (SetMemory){0};
}

void resident_destroy(Resident *r) {
    if (r == NULL) return;
    (void)device_stream_synchronize(r->stream);
    resident_free_run(r);
    loader_feed_destroy(r->feed);
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

Status resident_drop(Resident *r, ResidentSet which) {
    TRY(device_stream_synchronize(r->stream));
    if (which == RESIDENT_TRAIN) resident_free_run(r);
    free_set(&r->sets[which]);
    return STATUS_OK;
}

Status resident_begin_load(Resident *r, ResidentSet which, int64_t count) {
    SetMemory *set = &r->sets[which];
    if (count < 1 || count > INT32_MAX) {
        FAIL(STATUS_ARGUMENT, "a resident set has 1 to %d images, not %lld", INT32_MAX, (long long)count);
    }
    TRY(resident_drop(r, which));
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

Status resident_put(Resident *r, ResidentSet which, const uint8_t *images, const int64_t *labels, const int64_t *ids,
                    int64_t count) {
    SetMemory *set = &r->sets[which];
    size_t bytes = image_bytes(r), at = (size_t)set->filled, n = (size_t)count;
    if (count < 0 || count > set->count - set->filled) {
        FAIL(STATUS_ARGUMENT, "%lld more images, but there is room for %lld", (long long)count,
             (long long)(set->count - set->filled));
    }
    TRY(loader_feed_check_labels(labels, ids, count, (int64_t)trainer_classes(r->trainer)));
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
        FAIL(STATUS_ARGUMENT, "the %s set has %lld of its %lld images", NAMES[which], (long long)set->filled,
             (long long)set->count);
    }
    *out = (GatherSet){set->images, set->labels, set->ids, set->count, side, side};
    return STATUS_OK;
}

Status resident_check_positions(const int32_t *positions, int64_t count, int64_t limit) {
    for (int64_t i = 0; i < count; i++) {
        if (positions[i] >= 0 && positions[i] < limit) continue;
        FAIL(STATUS_INDEX, "position %d (number %lld) is not in a set of %lld images", positions[i], (long long)i,
             (long long)limit);
    }
    return STATUS_OK;
}

/* ---- the feed ---- */

static Status wait_for_uploads(void *context, DeviceStream *stream) {
    return trainer_wait(((const Resident *)context)->trainer, stream, NULL);
}

Status resident_need_feed(Resident *r, const Loader *loader) {
    const TrainerConfig *config = &r->trainer->config;
    LoaderFeedConfig feed = {.batch = config->batch > config->test_batch ? config->batch : config->test_batch,
                             .side = config->side,
                             .classes = (int)trainer_classes(r->trainer),
                             .reader = r->stream,
                             .wait = wait_for_uploads,
                             .wait_context = r,
                             .poll = config->check,
                             .poll_context = config->check_context};
    if (r->feed == NULL) TRY(loader_feed_create(&feed, &r->feed));
    return loader_feed_check(r->feed, loader);
}
