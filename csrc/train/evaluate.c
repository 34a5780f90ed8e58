/* Evaluation on a set in device memory, or on a loader's batches. */
#include <string.h>

#include "train/source.h"
#include "train/step_kernels.h"
#include "train/step_stream.h"

#define FED_BATCHES 16 /* of a loader, between two reads of the results */

/* ---- of a set ---- */

void train_runner_free_evaluation(TrainRunner *r) {
    device_free(r->positions);
    device_free(r->evaluation_images);
    device_free(r->view_logits);
    device_free(r->sums);
    device_host_free(r->host_sums);
    r->positions = NULL;
    r->evaluation_images = NULL;
    r->view_logits = r->sums = r->host_sums = NULL;
    r->evaluation_room = 0;
}

static Status reserve_evaluation(TrainRunner *r, int64_t count) {
    const TrainerConfig *config = &r->trainer->config;
    size_t n = (size_t)count, classes = trainer_classes(r->trainer), batch = (size_t)config->test_batch;
    if (count <= r->evaluation_room) return STATUS_OK;
    TRY(device_stream_synchronize(r->stream));
    train_runner_free_evaluation(r);
    TRY(device_alloc(n * sizeof *r->positions, &r->positions));
    TRY(device_alloc(batch * (size_t)config->side * (size_t)config->side * 3, &r->evaluation_images));
    TRY(device_alloc(batch * classes * sizeof(float), &r->view_logits));
    TRY(device_alloc(n * classes * sizeof(float), &r->sums));
    TRY(device_host_alloc(n * classes * sizeof(float), &r->host_sums));
    r->evaluation_room = count;
    return STATUS_OK;
}

/* The images of one batch, starting at position `first`. */
static Status evaluation_images_at(TrainRunner *r, const GatherSet *set, bool chosen, int64_t first, int count,
                                   NnImages *out) {
    size_t bytes = (size_t)set->height * (size_t)set->width * 3;
    *out = train_runner_images(r, set->images + (size_t)first * bytes);
    if (!chosen) return STATUS_OK;
    out->data = r->evaluation_images;
    return augment_gather_plain(set, r->positions + first, count, r->evaluation_images, r->stream);
}

/* Evaluates the views of a batch; the sum of their logits goes to position `first` of the sums. */
static Status put_views(TrainRunner *r, NnImages images, int64_t first, int count, const TrainerView *views,
                        int view_count) {
    NnPlan *plan;
    size_t classes = trainer_classes(r->trainer);
    TRY(trainer_evaluation_plan(r->trainer, &plan));
    for (int v = 0; v < view_count; v++) {
        images.mirror = views[v].mirror;
        images.shift_y = views[v].dy;
        images.shift_x = views[v].dx;
        TRY(nn_plan_evaluate(plan, &images, count, r->view_logits));
        TRY(train_add_view(r->view_logits, (size_t)count * classes, views[v].weight, v > 0,
                           r->sums + (size_t)first * classes, r->stream));
    }
    return STATUS_OK;
}

static Status put_evaluation(TrainRunner *r, const GatherSet *set, bool chosen, int64_t count, const TrainerView *views,
                             int view_count) {
    int batch = r->trainer->config.test_batch;
    for (int64_t first = 0; first < count; first += batch) {
        int here = (int)(count - first < batch ? count - first : batch);
        NnImages images;
        TRY(evaluation_images_at(r, set, chosen, first, here, &images));
        TRY(put_views(r, images, first, here, views, view_count));
    }
    return STATUS_OK;
}

/* Runs one batch, so that plans exist and libraries have done their lazy initialisation before the clock starts. */
static Status warm_up_evaluation(TrainRunner *r, const GatherSet *set, const TrainerView *view) {
    int64_t count = r->trainer->config.test_batch;
    count = count < r->evaluation_room ? count : r->evaluation_room;
    count = count < set->count ? count : set->count;
    if (r->evaluation_warm) return STATUS_OK;
    TRY(put_evaluation(r, set, false, count, view, 1));
    TRY(device_stream_synchronize(r->stream));
    r->evaluation_warm = true;
    return STATUS_OK;
}

Status train_runner_evaluate(TrainRunner *r, TrainSet which, const int32_t *positions, int64_t count,
                             const TrainerView *views, int view_count, float *logits) {
    GatherSet set;
    size_t elems = (size_t)count * trainer_classes(r->trainer);
    TRY(train_runner_need(r, which, &set));
    if (count < 0 || count > set.count || view_count < 1) {
        FAIL(STATUS_ARGUMENT, "an evaluation takes 0 to %lld images and at least one view, not %lld and %d",
             (long long)set.count, (long long)count, view_count);
    }
    if (count == 0) return STATUS_OK;
    if (positions != NULL) TRY(train_runner_check_positions(positions, count, set.count));
    TRY(reserve_evaluation(r, count));
    TRY(warm_up_evaluation(r, &set, views));
    TRY(train_stream_begin(r->trainer));
    if (positions != NULL) TRY(device_copy(r->positions, positions, (size_t)count * sizeof *positions, r->stream));
    TRY(put_evaluation(r, &set, positions != NULL, count, views, view_count));
    TRY(device_copy(r->host_sums, r->sums, elems * sizeof *logits, r->stream));
    TRY(train_stream_wait(r->trainer));
    memcpy(logits, r->host_sums, elems * sizeof *logits);
    return STATUS_OK;
}

/* ---- of a loader's batches ---- */

static Status check_test_batch(const TrainerConfig *config, int count, int64_t left) {
    if (count >= 1 && count <= left && count <= config->test_batch) return STATUS_OK;
    FAIL(STATUS_ARGUMENT, "the loader gave a batch of %d images; an evaluation takes %d at a time, and %lld are left",
         count, config->test_batch, (long long)left);
}

/* On the CPU, each batch in place. */
static Status evaluate_on_host(TrainSource *source, int64_t count, const TrainerView *views, int view_count,
                               float *logits, int64_t *labels) {
    Trainer *trainer = source->r->trainer;
    size_t classes = trainer_classes(trainer);
    for (int64_t at = 0; at < count;) {
        StepBatch batch;
        TRY(train_source_take(source, &batch));
        TRY(check_test_batch(&trainer->config, batch.count, count - at));
        TRY(trainer_evaluate(trainer, &batch.images, batch.count, views, view_count, logits + (size_t)at * classes));
        memcpy(labels + at, batch.labels, (size_t)batch.count * sizeof *labels);
        at += batch.count;
    }
    return STATUS_OK;
}

/* Evaluates the next batch, whose results go to position `at`; *here is its number of images. */
static Status put_fed_batch(TrainRunner *r, Loader *loader, int64_t at, int64_t left, const TrainerView *views,
                            int view_count, int64_t *labels, int *here) {
    const TrainerConfig *config = &r->trainer->config;
    LoaderFeedBatch batch;
    NnImages images;
    TRY(loader_feed_next(r->feed, loader, &batch));
    TRY(check_test_batch(config, batch.count, left));
    GatherSet set = {batch.images, batch.labels, batch.ids, batch.count, config->side, config->side};
    TRY(evaluation_images_at(r, &set, false, 0, batch.count, &images));
    TRY(put_views(r, images, at, batch.count, views, view_count));
    TRY(loader_feed_free(r->feed));
    memcpy(labels, batch.host_labels, (size_t)batch.count * sizeof *labels);
    *here = batch.count;
    return STATUS_OK;
}

/* Evaluates batches until the room for results is used up or no images are left; *done counts the images. */
static Status put_fed_part(TrainRunner *r, Loader *loader, int64_t left, const TrainerView *views, int view_count,
                           int64_t *labels, int64_t *done) {
    const TrainerConfig *config = &r->trainer->config;
    for (*done = 0; *done < left && *done + config->test_batch <= r->evaluation_room;) {
        int here = 0;
        if (config->check != NULL) TRY(config->check(config->check_context));
        TRY(put_fed_batch(r, loader, *done, left - *done, views, view_count, labels + *done, &here));
        *done += here;
    }
    return STATUS_OK;
}

static Status evaluate_fed_part(TrainRunner *r, Loader *loader, int64_t left, const TrainerView *views, int view_count,
                                float *logits, int64_t *labels, int64_t *done) {
    size_t classes = trainer_classes(r->trainer);
    TRY(train_stream_begin(r->trainer));
    Status status = put_fed_part(r, loader, left, views, view_count, labels, done);
    ErrorRecord cause = *error_record();
    size_t bytes = (size_t)*done * classes * sizeof *logits;
    Status reading = device_copy(r->host_sums, r->sums, bytes, r->stream);
    if (reading == STATUS_OK) reading = train_stream_wait(r->trainer);
    Status settled = loader_feed_settle(r->feed);
    if (status != STATUS_OK) return error_adopt(&cause);
    TRY(reading);
    TRY(settled);
    memcpy(logits, r->host_sums, bytes);
    return STATUS_OK;
}

Status train_runner_evaluate_fed(TrainRunner *r, Loader *loader, int64_t count, const TrainerView *views,
                                 int view_count, float *logits, int64_t *labels) {
    const TrainerConfig *config = &r->trainer->config;
    LoaderFeedBatch blank;
    if (count < 0 || view_count < 1) {
        FAIL(STATUS_ARGUMENT, "an evaluation takes 0 or more images and at least one view, not %lld and %d",
             (long long)count, view_count);
    }
    if (r->stream == NULL) {
        TrainSource source;
        TRY(train_source_open_host(r, loader, NULL, &source));
        Status status = evaluate_on_host(&source, count, views, view_count, logits, labels);
        (void)train_source_close(&source);
        return status;
    }
    TRY(train_runner_need_feed(r, loader));
    TRY(reserve_evaluation(r, (int64_t)config->test_batch * FED_BATCHES));
    TRY(loader_feed_blank(r->feed, &blank));
    GatherSet set = {blank.images, blank.labels, blank.ids, blank.count, config->side, config->side};
    TRY(warm_up_evaluation(r, &set, views));
    for (int64_t at = 0, done; at < count; at += done) {
        TRY(evaluate_fed_part(r, loader, count - at, views, view_count,
                              logits + (size_t)at * trainer_classes(r->trainer), labels + at, &done));
    }
    return STATUS_OK;
}
