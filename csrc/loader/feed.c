/* Owns the slots on the device, the uploading stream, and a reference to the one batch whose upload may be in progress.
 * A slot is filled again only after an event on the reading stream, and a batch goes back to its loader only once the
 * upload stream is idle. */
#include "loader/feed.h"

#include "base/memory.h"

#define SLOTS 2 /* one is read while the other is filled */
#define CHANNELS 3

typedef struct Slot {
    uint8_t *images; /* owned, device */
    int64_t *labels, *ids;
    DeviceEvent *uploaded, *free; /* owned */
    bool used;                    /* `free` has been recorded */
} Slot;

struct LoaderFeed {
    LoaderFeedConfig config;
    DeviceStream *stream; /* owned */
    Slot slots[SLOTS];
    int last;           /* the slot of the last batch */
    LoaderBatch *batch; /* owned, or NULL */
};

static size_t feed_image_bytes(const LoaderFeed *feed) {
    return (size_t)feed->config.side * (size_t)feed->config.side * CHANNELS;
}

static Status create_slot(const LoaderFeed *feed, Slot *slot) {
    size_t batch = (size_t)feed->config.batch;
    TRY(device_alloc(batch * feed_image_bytes(feed), &slot->images));
    TRY(device_alloc(batch * sizeof *slot->labels, &slot->labels));
    TRY(device_alloc(batch * sizeof *slot->ids, &slot->ids));
    TRY(device_event_create(&slot->uploaded));
    return device_event_create(&slot->free);
}

Status loader_feed_create(const LoaderFeedConfig *config, LoaderFeed **out) {
    Status status = STATUS_OK;
    LoaderFeed *feed = NULL;
    TRY(memory_calloc(1, sizeof *feed, &feed));
    feed->config = *config;
    TRY_GOTO(device_stream_create(&feed->stream));
    for (int i = 0; i < SLOTS; i++) TRY_GOTO(create_slot(feed, &feed->slots[i]));
    *out = feed;
    feed = NULL;
done:
    loader_feed_destroy(feed);
    return status;
}

void loader_feed_destroy(LoaderFeed *feed) {
    if (feed == NULL) return;
    (void)loader_feed_settle(feed);
    for (int i = 0; i < SLOTS; i++) {
        device_event_destroy(feed->slots[i].free);
        device_event_destroy(feed->slots[i].uploaded);
        device_free(feed->slots[i].ids);
        device_free(feed->slots[i].labels);
        device_free(feed->slots[i].images);
    }
    device_stream_destroy(feed->stream);
    memory_free(feed);
}

Status loader_feed_check(const Loader *loader, int side) {
    uint64_t pixels = (uint64_t)side;
    if (loader_outputs(loader) == 2) {
        const LoaderArray *images = loader_array(loader, 0), *labels = loader_array(loader, 1);
        const char *why;
        bool stays = loader_moved(loader, 0, &why) == LOADER_STAYS && loader_moved(loader, 1, &why) == LOADER_STAYS;
        bool fits = stays && images->dtype == BETON_U8 && images->ndim == 3 && images->shape[0] == pixels &&
                    images->shape[1] == pixels && images->shape[2] == CHANNELS;
        if (fits && labels->dtype == BETON_I64 && labels->sample_bytes == sizeof(int64_t)) return STATUS_OK;
    }
    FAIL(STATUS_ARGUMENT,
         "training needs a loader that gives uint8 images of %d x %d x 3 and int64 labels, and nothing else", side,
         side);
}

Status loader_feed_check_labels(const int64_t *labels, const int64_t *ids, int64_t count, int64_t classes) {
    for (int64_t i = 0; i < count; i++) {
        if (labels[i] >= 0 && labels[i] < classes) continue;
        return error_at_sample(error_fail(STATUS_ARGUMENT, "sample %lld has the label %lld; expected 0 to %lld",
                                          (long long)ids[i], (long long)labels[i], (long long)classes - 1),
                               ids[i]);
    }
    return STATUS_OK;
}

/* After a failed wait, the stream has nothing left to wait for, so the second wait ends, too. */
Status loader_feed_settle(LoaderFeed *feed) {
    const LoaderFeedConfig *config = &feed->config;
    if (feed->batch == NULL) return STATUS_OK;
    Status status = config->wait(config->wait_context, feed->stream);
    if (status != STATUS_OK) {
        ErrorRecord cause = *error_record();
        (void)device_stream_synchronize(feed->stream);
        (void)error_adopt(&cause);
    }
    loader_batch_release(feed->batch);
    feed->batch = NULL;
    return status;
}

static Status check_batch(const LoaderFeed *feed, const LoaderBatch *batch) {
    if (batch->count > (size_t)feed->config.batch) {
        FAIL(STATUS_ARGUMENT, "got a batch of %zu images, but there is only room for %d", batch->count,
             feed->config.batch);
    }
    return loader_feed_check_labels(batch->arrays[1], (const int64_t *)(const void *)batch->ids, (int64_t)batch->count,
                                    feed->config.classes);
}

static Status upload(LoaderFeed *feed, const LoaderBatch *batch, Slot *slot) {
    size_t count = batch->count;
    if (slot->used) TRY(device_stream_wait(feed->stream, slot->free));
    TRY(device_copy(slot->images, batch->arrays[0], count * feed_image_bytes(feed), feed->stream));
    TRY(device_copy(slot->labels, batch->arrays[1], count * sizeof *slot->labels, feed->stream));
    TRY(device_copy(slot->ids, batch->ids, count * sizeof *slot->ids, feed->stream));
    TRY(device_event_record(slot->uploaded, feed->stream));
    return device_stream_wait(feed->config.reader, slot->uploaded);
}

Status loader_feed_next(LoaderFeed *feed, Loader *loader, LoaderFeedBatch *out) {
    int next = (feed->last + 1) % SLOTS;
    Slot *slot = &feed->slots[next];
    *out = (LoaderFeedBatch){0};
    TRY(loader_feed_settle(feed));
    TRY(loader_next(loader, feed->config.poll, feed->config.poll_context, &feed->batch));
    if (feed->batch == NULL) return STATUS_OK;
    TRY(check_batch(feed, feed->batch));
    TRY(upload(feed, feed->batch, slot));
    feed->last = next;
    *out = (LoaderFeedBatch){.count = (int)feed->batch->count,
                             .images = slot->images,
                             .labels = slot->labels,
                             .ids = slot->ids,
                             .host_labels = feed->batch->arrays[1]};
    return STATUS_OK;
}

Status loader_feed_free(LoaderFeed *feed) {
    Slot *slot = &feed->slots[feed->last];
    TRY(device_event_record(slot->free, feed->config.reader));
    slot->used = true;
    return STATUS_OK;
}

Status loader_feed_blank(LoaderFeed *feed, LoaderFeedBatch *out) {
    size_t batch = (size_t)feed->config.batch;
    DeviceStream *reader = feed->config.reader;
    Slot *slot = &feed->slots[feed->last];
    TRY(loader_feed_settle(feed));
    TRY(device_fill(slot->images, 0, batch * feed_image_bytes(feed), reader));
    TRY(device_fill(slot->labels, 0, batch * sizeof *slot->labels, reader));
    TRY(device_fill(slot->ids, 0, batch * sizeof *slot->ids, reader));
    *out = (LoaderFeedBatch){
        .count = feed->config.batch, .images = slot->images, .labels = slot->labels, .ids = slot->ids};
    return loader_feed_free(feed);
}
