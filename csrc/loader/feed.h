/* Batches on their way from a loader to a GPU: the loader fills page-locked buffers, and a separate stream uploads them
 * into slots on the device while earlier batches are being processed. */
#ifndef CGXFFCV_LOADER_FEED_H
#define CGXFFCV_LOADER_FEED_H

#include "device/device.h"
#include "loader/loader.h"

typedef struct LoaderFeed LoaderFeed;

typedef struct LoaderFeedConfig {
    int batch; /* samples that a slot has room for */
    int side, classes;
    DeviceStream *reader; /* borrowed until loader_feed_destroy: the stream that reads the slots */
    /* Waits for a stream that may itself wait for `reader`. If it fails, whatever the stream waited for has ended. */
    Status (*wait)(void *context, DeviceStream *stream);
    LoaderPoll poll; /* called while waiting for a batch; may be NULL */
    void *wait_context, *poll_context;
} LoaderFeedConfig;

Status loader_feed_create(const LoaderFeedConfig *config, LoaderFeed **out);
void loader_feed_destroy(LoaderFeed *feed); /* NULL does nothing */

typedef struct LoaderFeedBatch {
    int count; /* 0: the pass is over */
    /* In device memory: until loader_feed_free, for work queued on `reader`. */
    const uint8_t *images;
    const int64_t *labels, *ids;
    const int64_t *host_labels; /* valid until the next call */
} LoaderFeedBatch;

/* Refuses a loader whose batches are anything but uint8 images (side, side, 3) and int64 labels. */
Status loader_feed_check(const Loader *loader, int side);

/* The next batch of the loader's pass: waits for it, starts its upload, and makes `reader` wait for the upload. Labels
 * outside the classes are refused. */
Status loader_feed_next(LoaderFeed *feed, Loader *loader, LoaderFeedBatch *out);

/* Says that everything that reads the last batch is queued on `reader`: after that, the slot may be filled again. */
Status loader_feed_free(LoaderFeed *feed);

/* Waits for the uploads in progress; afterwards no memory of the loader is in use, even if this fails. */
Status loader_feed_settle(LoaderFeed *feed);

/* A slot, zeroed on `reader`, for a rehearsal that must complete before the first batch. */
Status loader_feed_blank(LoaderFeed *feed, LoaderFeedBatch *out);

/* Refuses labels outside 0 .. classes - 1, by sample number. */
Status loader_feed_check_labels(const int64_t *labels, const int64_t *ids, int64_t count, int64_t classes);

#endif
