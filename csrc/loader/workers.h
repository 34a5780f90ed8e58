/* Private to loader/: the worker threads, the batches of a pass in flight between them and the caller, and loops
 * alongside it. */
#ifndef CGXFFCV_LOADER_WORKERS_H
#define CGXFFCV_LOADER_WORKERS_H

#include "loader/pipeline.h"
#include "loader/slots.h"
#include "loader/uploads.h"

typedef struct Workers Workers;

typedef struct WorkersConfig {
    const Pipeline *pipeline; /* borrowed until loader_workers_destroy */
    Slots *slots;             /* borrowed until loader_workers_destroy */
    Uploads *uploads;         /* borrowed likewise; NULL if no output moves to a GPU */
    LoaderSplit split;
    int count;    /* threads */
    size_t ahead; /* batches in flight, at least 1 */
    size_t chunk; /* samples a worker takes at once */
    bool read_ahead;
    bool skip_damaged;
} WorkersConfig;

typedef struct WorkersPass {
    uint64_t *ids; /* from loader_workers_room: of the whole epoch, all ranks */
    uint64_t samples;
    PipelineDraws draws;
    uint64_t first_batch;
} WorkersPass;

Status loader_workers_create(const WorkersConfig *config, Workers **out);
void loader_workers_destroy(Workers *workers); /* joins the workers; NULL does nothing */

/* Room for the samples of a pass, owned by the workers. Stops the previous pass and reuses its room if it fits, since
 * allocating memory takes longer than drawing an order. */
Status loader_workers_room(Workers *workers, uint64_t samples, uint64_t **out);

/* Starts a pass, after stopping the current one; the first call starts the threads. */
Status loader_workers_begin(Workers *workers, WorkersPass pass);
Status loader_workers_next(Workers *workers, LoaderPoll poll, void *context, LoaderBatch **out);
void loader_workers_stop(Workers *workers);

/* One item of a loop, in one of the threads. */
typedef Status (*WorkersTask)(void *context, size_t item, DecoderScratch *scratch);

/* Runs task(context, item, scratch) for each item in [0, items) and waits for all; the current pass goes on afterwards.
 * After a failure no further items are started; the first failed item's error is returned. */
Status loader_workers_run(Workers *workers, size_t items, WorkersTask task, void *context);

/* Whether a failure is that of a damaged sample that is to be left out; if so, it is from now on. */
bool loader_workers_skip(Workers *workers, Status status, uint64_t sample);

LoaderPosition loader_workers_position(Workers *workers);

/* Whether a pass is under way: begun, and neither stopped nor failed. */
bool loader_workers_active(Workers *workers);

/* The workers' part of the statistics. */
void loader_workers_stats(Workers *workers, LoaderStats *stats);

#endif
