/* What a batch is gathered from, and the order in which. */
#include "train/source.h"

#include <string.h>

#include "train/step_stream.h"

Status train_source_gather(const TrainSource *source, int count, StepBatch *out) {
    TrainRunner *r = source->r;
    NnImages images = {.data = r->batch_images, .on_device = true, .type = PIXELS_U8, .layout = PIXELS_NHWC};
    memcpy(images.mean, r->config.mean, sizeof r->config.mean);
    memcpy(images.std, r->config.std, sizeof r->config.std);
    for (int c = 3; c < NN_MAX_IMAGE_CHANNELS; c++) images.std[c] = 1;
    *out = (StepBatch){images, r->batch_labels, r->batch_losses, count};
    return augment_gather_batch(&source->set, r->order, &r->trainer->on_stream->clock->batch, count, r->config.ops,
                                r->config.op_count, r->batch_images, r->batch_labels, r->stream);
}

static Status next_of_set(void *context, StepBatch *out) {
    const TrainSource *source = context;
    return train_source_gather(source, source->r->trainer->config.batch, out);
}

/* The batch is uploaded while earlier steps go on. */
static Status next_of_feed(void *context, StepBatch *out) {
    TrainSource next = *(const TrainSource *)context;
    const TrainerConfig *config = &next.r->trainer->config;
    LoaderFeedBatch batch;
    TRY(loader_feed_next(next.r->feed, next.loader, &batch));
    if (batch.count != config->batch) {
        FAIL(STATUS_ARGUMENT, "the loader gave %d images where a step takes %d", batch.count, config->batch);
    }
    next.set = (GatherSet){batch.images, batch.labels, batch.ids, batch.count, config->side, config->side};
    TRY(train_source_gather(&next, batch.count, out));
    return loader_feed_free(next.r->feed);
}

/* Without positions the batches are used in their own order. */
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

Status train_source_settle(const TrainSource *source) {
    return source->loader == NULL ? STATUS_OK : loader_feed_settle(source->r->feed);
}
