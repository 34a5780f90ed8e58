/* Private to loader/: the worker threads and the batches in flight between them and the caller. */
#ifndef CGXFFCV_LOADER_RING_H
#define CGXFFCV_LOADER_RING_H

#include "loader/pipeline.h"
#include "loader/slots.h"

typedef struct Ring Ring;

typedef struct RingConfig {
    const Pipeline *pipeline; /* borrowed until loader_ring_destroy */
    Slots *slots;             /* borrowed until loader_ring_destroy */
    LoaderSplit split;
    int workers;
    size_t ahead; /* batches in flight, at least 1 */
    size_t chunk; /* samples a worker takes at once */
    bool read_ahead;
} RingConfig;

typedef struct RingPass {
    uint64_t *ids; /* of the whole epoch, all ranks; the ring takes ownership, also on failure */
    uint64_t samples;
    PipelineDraws draws;
    uint64_t first_batch;
} RingPass;

Status loader_ring_create(const RingConfig *config, Ring **out);
void loader_ring_destroy(Ring *ring); /* joins the workers; NULL is fine */

/* Starts a pass, after stopping the one under way; the first call starts the threads. */
Status loader_ring_begin(Ring *ring, RingPass pass);
Status loader_ring_next(Ring *ring, LoaderPoll poll, void *context, LoaderBatch **out);
void loader_ring_stop(Ring *ring);

LoaderPosition loader_ring_position(Ring *ring);

/* Adds the ring's part. */
void loader_ring_stats(Ring *ring, LoaderStats *stats);

#endif
