/* Batches on their way from a loader to a GPU: the loader fills page-locked buffers, a stream of its own uploads them
 * into slots on the device while earlier batches are worked on. */
#ifndef CGXFFCV_LOADER_FEED_H
#define CGXFFCV_LOADER_FEED_H

#include "device/device.h"
#include "loader/loader.h"

typedef struct LoaderFeed LoaderFeed;

typedef struct LoaderFeedConfig {
    int batch; /* samples that a slot has room for */
    int side, classes;
    DeviceStream *reader; /* borrowed until loader_feed_destroy: what reads the slots */
    /* Waits for a stream that may wait for `reader`; a failure has ended what it waits for. */
    Status (*wait)(void *context, DeviceStream *stream);
    LoaderPoll poll; /* while a batch is waited for; may be NULL */
    void *wait_context, *poll_context;
} LoaderFeedConfig;

Status loader_feed_create(const LoaderFeedConfig *config, LoaderFeed **out);
void loader_feed_destroy(LoaderFeed *feed); /* NULL does nothing */

typedef struct LoaderFeedBatch {
    int count; /* 0: the pass is over */
    /* Device: until loader_feed_free, for what is put on `reader`. */
    const uint8_t *images;
    const int64_t *labels, *ids;
    const int64_t *host_labels; /* until the next call */
} LoaderFeedBatch;

/* A loader that gives other batches than uint8 images (side, side, 3) and int64 labels is refused. */
Status loader_feed_check(const Loader *loader, int side);

/* The next batch of the loader's pass: waits for it, begins its upload, makes `reader` wait for that. Labels outside
 * the classes are refused. */
Status loader_feed_next(LoaderFeed *feed, Loader *loader, LoaderFeedBatch *out);

/* All that reads the last batch is on `reader`: behind it, the slot may be filled again. */
Status loader_feed_free(LoaderFeed *feed);

/* Waits for the uploads under way; no memory of the loader's is in use afterwards, also if this fails. */
Status loader_feed_settle(LoaderFeed *feed);

/* A slot, filled with zeros by `reader`, for a rehearsal that is waited for before the first batch. */
Status loader_feed_blank(LoaderFeed *feed, LoaderFeedBatch *out);

/* Refuses labels outside 0 .. classes - 1, by sample number. */
Status loader_feed_check_labels(const int64_t *labels, const int64_t *ids, int64_t count, int64_t classes);

#endif
