/* Where a step's batch comes from, and in which order. */
#include "train/source.h"

#include <string.h>

#include "train/step_stream.h"

NnImages train_runner_images(const TrainRunner *r, const uint8_t *data) {
    NnImages images = {.data = data, .on_device = r->stream != NULL, .type = PIXELS_U8, .layout = PIXELS_NHWC};
    memcpy(images.mean, r->config.mean, sizeof r->config.mean);
    memcpy(images.std, r->config.std, sizeof r->config.std);
    for (int c = 3; c < NN_MAX_IMAGE_CHANNELS; c++) images.std[c] = 1;
    return images;
}

Status train_source_gather(const TrainSource *source, int count, StepBatch *out) {
    TrainRunner *r = source->r;
    *out = (StepBatch){train_runner_images(r, r->batch_images), r->batch_labels, r->batch_losses, count};
    return augment_gather_batch(&source->set, r->order, &r->trainer->on_stream->clock->batch, count, r->config.ops,
                                r->config.op_count, r->batch_images, r->batch_labels, r->stream);
}

static Status next_of_set(void *context, StepBatch *out) {
    const TrainSource *source = context;
    return train_source_gather(source, source->r->trainer->config.batch, out);
}

static Status check_step_batch(int count, int batch) {
    if (count == batch) return STATUS_OK;
    FAIL(STATUS_ARGUMENT, "the loader gave %d images where a step takes %d", count, batch);
}

/* The batch is uploaded while earlier steps run. */
static Status next_of_feed(void *context, StepBatch *out) {
    TrainSource next = *(const TrainSource *)context;
    const TrainerConfig *config = &next.r->trainer->config;
    LoaderFeedBatch batch;
    TRY(loader_feed_next(next.r->feed, next.loader, &batch));
    TRY(check_step_batch(batch.count, config->batch));
    next.set = (GatherSet){batch.images, batch.labels, batch.ids, batch.count, config->side, config->side};
    TRY(train_source_gather(&next, batch.count, out));
    return loader_feed_free(next.r->feed);
}

/* ---- of a loader, on the CPU ---- */

Status train_source_take(TrainSource *source, StepBatch *out) {
    const TrainRunner *r = source->r;
    const TrainerConfig *config = &r->trainer->config;
    *out = (StepBatch){0};
    loader_batch_release(source->batch);
    source->batch = NULL;
    TRY(loader_next(source->loader, config->check, config->check_context, &source->batch));
    const LoaderBatch *batch = source->batch;
    if (batch == NULL) return STATUS_OK;
    const int64_t *ids = (const int64_t *)(const void *)batch->ids;
    TRY(loader_feed_check_labels(batch->arrays[1], ids, (int64_t)batch->count, (int64_t)trainer_classes(r->trainer)));
    *out = (StepBatch){train_runner_images(r, batch->arrays[0]), batch->arrays[1], NULL, (int)batch->count};
    return STATUS_OK;
}

static Status next_on_host(void *context, StepBatch *out) {
    TrainSource *source = context;
    int batch = source->r->trainer->config.batch;
    TRY(train_source_take(source, out));
    TRY(check_step_batch(out->count, batch));
    out->losses = source->losses;
    if (source->losses != NULL) source->losses += batch;
    return STATUS_OK;
}

Status train_source_open_host(TrainRunner *r, Loader *loader, float *losses, TrainSource *out) {
    *out = (TrainSource){.r = r, .loader = loader, .losses = losses, .steps = {.next = next_on_host}};
    return loader_feed_check(loader, r->trainer->config.side);
}

/* ---- on a stream ---- */

/* Without positions, each batch is used in its own order. */
static Status upload_order(TrainRunner *r, const int32_t *positions, int64_t images) {
    int batch = r->trainer->config.batch;
    for (int64_t i = 0; i < images; i++) r->host_order[i] = positions == NULL ? (int32_t)(i % batch) : positions[i];
    return device_copy(r->order, r->host_order, (size_t)images * sizeof *r->order, r->stream);
}

Status train_source_open_set(TrainRunner *r, const int32_t *positions, int64_t images, uint32_t epoch,
                             TrainSource *out) {
    *out = (TrainSource){.r = r, .steps = {.next = next_of_set, .recordable = true}};
    out->steps.seed = r->config.seed;
    out->steps.epoch = epoch;
    TRY(train_runner_need(r, TRAIN_SET_TRAINING, &out->set));
    TRY(train_runner_check_positions(positions, images, out->set.count));
    TRY(train_runner_reserve(r, images > out->set.count ? images : out->set.count, false));
    return upload_order(r, positions, images);
}

Status train_source_open_feed(TrainRunner *r, Loader *loader, int64_t images, uint32_t epoch, TrainSource *out) {
    int side = r->trainer->config.side;
    LoaderFeedBatch blank;
    *out = (TrainSource){.r = r, .loader = loader, .steps = {.next = next_of_feed}};
    out->steps.seed = r->config.seed;
    out->steps.epoch = epoch;
    TRY(train_runner_need_feed(r, loader));
    TRY(train_runner_reserve(r, images, true));
    TRY(loader_feed_blank(r->feed, &blank));
    out->set = (GatherSet){blank.images, blank.labels, blank.ids, blank.count, side, side};
    return upload_order(r, NULL, images);
}

Status train_source_close(TrainSource *source) {
    loader_batch_release(source->batch);
    source->batch = NULL;
    return source->loader == NULL || source->r->stream == NULL ? STATUS_OK : loader_feed_settle(source->r->feed);
}
