/* Owns, for a trainer on a GPU, the device memory of the data sets, of one batch, and of its runs (run.c) and
 * evaluations (evaluate.c). */
#include "train/runner_private.h"

#include "base/memory.h"
#include "train/step_stream.h"

static const char *const NAMES[TRAIN_SETS] = {"training", "test", "sample"};

static size_t runner_image_bytes(const TrainRunner *r) {
    return (size_t)r->trainer->config.side * (size_t)r->trainer->config.side * 3;
}

/* ---- memory ---- */

static Status create_batch(TrainRunner *r) {
    size_t batch = (size_t)r->trainer->config.batch;
    TRY(device_alloc(batch * runner_image_bytes(r), &r->batch_images));
    TRY(device_alloc(batch * sizeof(int64_t), &r->batch_labels));
    return device_alloc(batch * sizeof(float), &r->batch_losses);
}

Status train_runner_create(Trainer *trainer, const TrainRunnerConfig *config, TrainRunner **out) {
    Status status = STATUS_OK;
    TrainRunner *r = NULL;
    if (trainer->taken) FAIL(STATUS_ARGUMENT, "this trainer already has a Runner: close that first");
    if (trainer->stream != NULL) {
        TRY(augment_gather_check(config->ops, config->op_count, trainer->config.side, trainer->config.side));
    } else if (config->op_count > 0) {
        FAIL(STATUS_ARGUMENT, "for a trainer on the CPU the loader augments the images: give the Runner no operations");
    }
    TRY(memory_calloc(1, sizeof *r, &r));
    r->trainer = trainer;
    r->model = trainer->model;
    r->stream = trainer->stream;
    r->config = *config;
    trainer->taken = true;
    if (r->stream != NULL) TRY_GOTO(create_batch(r));
    *out = r;
    r = NULL;
done:
    train_runner_destroy(r);
    return status;
}

static void free_set(SetMemory *set) {
    device_free(set->images);
    device_free(set->labels);
    device_free(set->ids);
    *set = (SetMemory){0};
}

static void free_memory(TrainRunner *r) {
    (void)device_stream_synchronize(r->stream);
    train_runner_free_run(r);
    loader_feed_destroy(r->feed);
    for (int i = 0; i < TRAIN_SETS; i++) free_set(&r->sets[i]);
    train_runner_free_evaluation(r);
    device_free(r->moments);
    device_host_free(r->host_moments);
    device_free(r->batch_images);
    device_free(r->batch_labels);
    device_free(r->batch_losses);
}

void train_runner_destroy(TrainRunner *r) {
    if (r == NULL) return;
    r->trainer->taken = false;
    if (r->stream != NULL) free_memory(r);
    memory_free(r);
}

/* ---- the sets ---- */

Status train_runner_need_device(const TrainRunner *r) {
    if (r->stream != NULL) return STATUS_OK;
    FAIL(STATUS_ARGUMENT,
         "data sets are kept in GPU memory, and this trainer is on the CPU: give it a Loader's batches");
}

Status train_runner_drop(TrainRunner *r, TrainSet which) {
    TRY(train_runner_need_device(r));
    TRY(device_stream_synchronize(r->stream));
    if (which == TRAIN_SET_TRAINING) train_runner_free_run(r);
    free_set(&r->sets[which]);
    return STATUS_OK;
}

Status train_runner_begin_load(TrainRunner *r, TrainSet which, int64_t count) {
    SetMemory *set = &r->sets[which];
    if (count < 1 || count > INT32_MAX) {
        FAIL(STATUS_ARGUMENT, "a data set in GPU memory has 1 to %d images, not %lld", INT32_MAX, (long long)count);
    }
    TRY(train_runner_drop(r, which));
    Status status = device_alloc((size_t)count * runner_image_bytes(r), &set->images);
    if (status == STATUS_OK) status = device_alloc((size_t)count * sizeof(int64_t), &set->labels);
    if (status == STATUS_OK) status = device_alloc((size_t)count * sizeof(int64_t), &set->ids);
    if (status != STATUS_OK) {
        free_set(set);
        return status;
    }
    set->count = count;
    return STATUS_OK;
}

Status train_runner_put(TrainRunner *r, TrainSet which, const uint8_t *images, const int64_t *labels,
                        const int64_t *ids, int64_t count) {
    SetMemory *set = &r->sets[which];
    size_t bytes = runner_image_bytes(r), at = (size_t)set->filled, n = (size_t)count;
    TRY(train_runner_need_device(r));
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

Status train_runner_need(const TrainRunner *r, TrainSet which, GatherSet *out) {
    const SetMemory *set = &r->sets[which];
    int side = r->trainer->config.side;
    TRY(train_runner_need_device(r));
    if (set->count == 0 || set->filled < set->count) {
        FAIL(STATUS_ARGUMENT, "the %s set has %lld of its %lld images", NAMES[which], (long long)set->filled,
             (long long)set->count);
    }
    *out = (GatherSet){set->images, set->labels, set->ids, set->count, side, side};
    return STATUS_OK;
}

Status train_runner_check_positions(const int32_t *positions, int64_t count, int64_t limit) {
    for (int64_t i = 0; i < count; i++) {
        if (positions[i] >= 0 && positions[i] < limit) continue;
        FAIL(STATUS_INDEX, "position %d (number %lld) is not in a set of %lld images", positions[i], (long long)i,
             (long long)limit);
    }
    return STATUS_OK;
}

/* ---- the feed ---- */

static Status wait_for_uploads(void *context, DeviceStream *stream) {
    return trainer_wait(((const TrainRunner *)context)->trainer, stream, NULL);
}

Status train_runner_need_feed(TrainRunner *r, const Loader *loader) {
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
    return loader_feed_check(loader, config->side);
}
