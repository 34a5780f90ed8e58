/* The loader's public functions: tie together file, order, pipeline, buffers and worker threads. Owns all of these. */
#include "loader/loader.h"

#include <string.h>

#include "base/checked.h"
#include "base/cpu.h"
#include "base/memory.h"
#include "base/names.h"
#include "loader/pipeline.h"
#include "loader/slots.h"
#include "loader/traversal.h"
#include "loader/uploads.h"
#include "loader/values.h"
#include "loader/workers.h"

#define MAX_WORKERS 1024
#define MAX_AHEAD 4096
#define AHEAD 3                         /* batches by default, ... */
#define AHEAD_BYTES ((size_t)256 << 20) /* ... or fewer, so that all buffers fit into this */
#define CALLERS 2                       /* batches that a caller may hold: one, and the next that it asks for */

struct Loader {
    LoaderSource source;
    Traversal order;
    Pipeline pipeline;
    LoaderSplit split;
    Slots *slots;     /* owned; batches held by callers keep its memory alive */
    Uploads *uploads; /* owned; likewise; NULL if no output moves */
    Workers *workers; /* owned */
    int threads;
    size_t ahead; /* batches */
};

NAMES_DEFINE(loader_order_name, "sequential", "random", "quasi_random")

LoaderConfig loader_config_default(void) {
    return (LoaderConfig){.world_size = 1, .window_pages = 8, .drop_last = true};
}

/* ---- creation ---- */

static Status check_config(const LoaderConfig *c) {
    uint64_t global;
    if (c->reader == NULL && c->path == NULL) FAIL(STATUS_ARGUMENT, "a loader needs a path or a reader");
    if (c->batch_size < 1) FAIL(STATUS_ARGUMENT, "batch_size must be at least 1, not %zu", c->batch_size);
    if (c->world_size < 1) FAIL(STATUS_ARGUMENT, "world_size must be at least 1, not %zu", c->world_size);
    if (c->rank >= c->world_size) {
        FAIL(STATUS_ARGUMENT, "rank must be in 0..%zu, not %zu", c->world_size - 1, c->rank);
    }
    if (!checked_mul(c->batch_size, c->world_size, &global) || global > INT64_MAX) {
        FAIL(STATUS_ARGUMENT, "batch_size %zu times world_size %zu is too large", c->batch_size, c->world_size);
    }
    if (c->workers > MAX_WORKERS)
        FAIL(STATUS_ARGUMENT, "num_workers must be at most %d, not %d", MAX_WORKERS, c->workers);
    if (c->batches_ahead > MAX_AHEAD) {
        FAIL(STATUS_ARGUMENT, "batches_ahead must be in 1..%d, not %zu", MAX_AHEAD, c->batches_ahead);
    }
    if ((unsigned)c->order > LOADER_QUASI_RANDOM) FAIL(STATUS_ARGUMENT, "unknown order %d", (int)c->order);
    if (c->window_pages < 1) FAIL(STATUS_ARGUMENT, "window_pages must be at least 1, not %zu", c->window_pages);
    return STATUS_OK;
}

/* The number of samples in an epoch's largest batch. */
static size_t largest_batch(const Loader *loader, const LoaderConfig *config) {
    uint64_t most = loader->order.count < 1 ? 1 : loader->order.count;
    return config->batch_size < most ? config->batch_size : (size_t)most;
}

static size_t choose_ahead(const Loader *loader, const LoaderConfig *config) {
    size_t bytes = 1, ahead = AHEAD;
    if (config->batches_ahead > 0) return config->batches_ahead;
    for (size_t i = 0; i < loader->pipeline.count; i++) bytes += loader->pipeline.outputs[i].result.sample_bytes;
    while (ahead > 1 && bytes > AHEAD_BYTES / (ahead + CALLERS) / largest_batch(loader, config)) ahead--;
    return ahead;
}

static bool any_moves(const Loader *loader) {
    bool any = false;
    for (size_t i = 0; i < loader->pipeline.count; i++) any = any || loader->pipeline.outputs[i].moved != LOADER_STAYS;
    return any;
}

static Status create_slots(Loader *loader, const LoaderConfig *config) {
    size_t *bytes = NULL;
    TRY(memory_alloc(loader->pipeline.count, sizeof *bytes, &bytes));
    for (size_t i = 0; i < loader->pipeline.count; i++) bytes[i] = loader->pipeline.outputs[i].result.sample_bytes;
    /* Spare buffers: as many as can be in flight, and the two that the caller may hold. */
    SlotsConfig slots = {.batch_size = largest_batch(loader, config),
                         .arrays = loader->pipeline.count,
                         .sample_bytes = bytes,
                         .spare = loader->ahead + CALLERS,
                         .moves = any_moves(loader),
                         .page_locked = config->page_locked,
                         .device = config->page_locker};
    Status status = loader_slots_create(&slots, &loader->slots);
    memory_free(bytes);
    return status;
}

/* Which outputs move, and the size of what they become. */
static void describe_uploads(const Loader *loader, UploadsArray *arrays) {
    for (size_t i = 0; i < loader->pipeline.count; i++) {
        const DecoderOutput *output = &loader->pipeline.outputs[i];
        arrays[i] = (UploadsArray){.moves = output->moved != LOADER_STAYS,
                                   .host_bytes = output->result.sample_bytes,
                                   .bytes = loader_array(loader, i)->sample_bytes,
                                   .device_spec = output->moved == LOADER_PROCESSED ? output->device_spec : NULL};
    }
}

static Status create_uploads(Loader *loader, const LoaderConfig *config) {
    UploadsArray *arrays = NULL;
    TRY(memory_calloc(loader->pipeline.count, sizeof *arrays, &arrays));
    UploadsConfig uploads = {.device = config->device,
                             .batch_size = largest_batch(loader, config),
                             .arrays = loader->pipeline.count,
                             .array = arrays,
                             .spare = loader->ahead + CALLERS};
    describe_uploads(loader, arrays);
    Status status = loader_uploads_create(&uploads, &loader->uploads);
    memory_free(arrays);
    return status;
}

static Status create_workers(Loader *loader, const LoaderConfig *config) {
    WorkersConfig workers = {
        .pipeline = &loader->pipeline,
        .slots = loader->slots,
        .uploads = loader->uploads,
        .split = loader->split,
        .count = loader->threads,
        .ahead = loader->ahead,
        .chunk = loader_pipeline_chunk(&loader->pipeline, largest_batch(loader, config), loader->threads),
        .read_ahead = config->read_ahead,
        .skip_damaged = config->skip_damaged};
    return loader_workers_create(&workers, &loader->workers);
}

static Status keep_one(void *context, size_t item, DecoderScratch *scratch) {
    Loader *loader = context;
    uint64_t sample = loader->order.samples == NULL ? item : loader->order.samples[item];
    Status status = loader_pipeline_keep(&loader->pipeline, scratch, sample);
    return loader_workers_skip(loader->workers, status, sample) ? STATUS_OK : status;
}

static Status make_resident(Loader *loader) {
    TRY(loader_pipeline_reserve(&loader->pipeline, &loader->order));
    if (loader->pipeline.kept_bytes == 0) return STATUS_OK;
    TRY(loader_workers_run(loader->workers, (size_t)loader->order.count, keep_one, loader));
    return loader_source_check(&loader->source);
}

static Status make_order_and_pipeline(Loader *loader, const LoaderConfig *config) {
    TRY(loader_traversal_init(&loader->order, loader->source.reader, config));
    return loader_pipeline_init(&loader->pipeline, &loader->source, config, &loader->order);
}

static Status look_into_file(Loader *loader, const LoaderConfig *config) {
    Guard guard;
    loader_source_enter(&loader->source, &guard);
    TRY(loader_source_leave(&loader->source, &guard, make_order_and_pipeline(loader, config)));
    return loader_source_check(&loader->source);
}

Status loader_create(const LoaderConfig *config, Loader **out) {
    Status status = STATUS_OK;
    Loader *loader = NULL;
    TRY(check_config(config));
    TRY(memory_calloc(1, sizeof *loader, &loader));
    loader->threads = config->workers < 1 ? cpu_count() : config->workers;
    loader->split = (LoaderSplit){config->batch_size, config->world_size, config->rank, config->drop_last};
    TRY_GOTO(loader_source_open(&loader->source, config->path, config->reader));
    loader->source.reads = config->read_ahead;
    loader->source.whole_pages = config->order == LOADER_QUASI_RANDOM;
    TRY_GOTO(look_into_file(loader, config));
    loader->ahead = choose_ahead(loader, config);
    TRY_GOTO(create_slots(loader, config));
    if (any_moves(loader)) TRY_GOTO(create_uploads(loader, config));
    TRY_GOTO(create_workers(loader, config));
    if (config->resident) TRY_GOTO(make_resident(loader));
    *out = loader;
    loader = NULL;
done:
    loader_destroy(loader);
    return status;
}

void loader_destroy(Loader *loader) {
    if (loader == NULL) return;
    loader_workers_destroy(loader->workers);
    loader_slots_close(loader->slots);
    loader_uploads_close(loader->uploads);
    loader_pipeline_fini(&loader->pipeline);
    loader_traversal_fini(&loader->order);
    loader_source_close(&loader->source);
    memory_free(loader);
}

void loader_reseed(Loader *loader, uint64_t seed) {
    loader_workers_stop(loader->workers);
    loader->pipeline.seed = seed;
    loader->order.seed = seed;
}

/* ---- properties ---- */

size_t loader_outputs(const Loader *loader) { return loader->pipeline.count; }

const LoaderArray *loader_array(const Loader *loader, size_t output) {
    const DecoderOutput *it = &loader->pipeline.outputs[output];
    return it->moved == LOADER_PROCESSED ? &it->processed : &it->result;
}

LoaderMoved loader_moved(const Loader *loader, size_t output, const char **why) {
    const DecoderOutput *it = &loader->pipeline.outputs[output];
    *why = it->why[0] == '\0' ? NULL : it->why;
    return it->moved;
}

uint64_t loader_samples(const Loader *loader) { return loader->order.count; }

uint64_t loader_batches_of(const Loader *loader, uint64_t samples) {
    return loader_split_batches(&loader->split, samples);
}

Status loader_order(const Loader *loader, uint32_t epoch, uint64_t *out) {
    return loader_traversal_make(&loader->order, epoch, false, out);
}

void loader_stats(const Loader *loader, LoaderStats *out) {
    LoaderStats stats;
    SlotsStats slots = loader_slots_stats(loader->slots);
    loader_workers_stats(loader->workers, &stats);
    stats.blanked = loader->pipeline.blanked == NULL ? 0 : atomic_load(loader->pipeline.blanked);
    stats.batches_ahead = loader->ahead;
    stats.slots = slots.live;
    stats.slots_held = slots.held;
    stats.slot_bytes = loader_slots_batch_bytes(loader->slots);
    size_t rest = stats.memory_bytes + loader_traversal_bytes(&loader->order) + loader->pipeline.kept_bytes;
    stats.memory_bytes = rest + slots.bytes;
    stats.memory_peak_bytes = rest + slots.peak_bytes;
    if (loader->uploads != NULL) {
        UploadsStats uploads = loader_uploads_stats(loader->uploads);
        stats.uploads = uploads.live;
        stats.uploads_held = uploads.held;
        stats.device_bytes = uploads.bytes;
    }
    *out = stats;
}

/* ---- passes ---- */

static Status check_ids(const Loader *loader, const uint64_t *ids, uint64_t count, const char *what) {
    uint64_t in_file = beton_reader_num_samples(loader->source.reader);
    for (uint64_t i = 0; i < count; i++) {
        if (ids[i] < in_file) continue;
        FAIL(STATUS_INDEX, "%s[%llu] is %llu, but the file has %llu samples", what, (unsigned long long)i,
             (unsigned long long)ids[i], (unsigned long long)in_file);
    }
    return STATUS_OK;
}

Status loader_begin(Loader *loader, const LoaderPass *pass) {
    WorkersPass begun = {.samples = pass->order == NULL ? loader->order.count : pass->order_count,
                         .draws = {pass->epoch, pass->evaluate},
                         .first_batch = pass->first_batch};
    if (pass->first_batch > loader_batches_of(loader, begun.samples)) {
        FAIL(STATUS_ARGUMENT, "batch %llu is beyond the epoch's %llu batches", (unsigned long long)pass->first_batch,
             (unsigned long long)loader_batches_of(loader, begun.samples));
    }
    if (pass->order != NULL) TRY(check_ids(loader, pass->order, pass->order_count, "order"));
    TRY(loader_workers_room(loader->workers, begun.samples, &begun.ids));
    if (pass->order == NULL) {
        TRY(loader_traversal_make(&loader->order, pass->epoch, pass->sequential, begun.ids));
    } else {
        memcpy(begun.ids, pass->order, (size_t)pass->order_count * sizeof *begun.ids);
        TRY(check_ids(loader, begun.ids, begun.samples, "order")); /* in Python, others write */
    }
    return loader_workers_begin(loader->workers, begun);
}

Status loader_next(Loader *loader, LoaderPoll poll, void *context, LoaderBatch **out) {
    return loader_workers_next(loader->workers, poll, context, out);
}

void loader_stop(Loader *loader) { loader_workers_stop(loader->workers); }

LoaderPosition loader_position(const Loader *loader) { return loader_workers_position(loader->workers); }

bool loader_active(const Loader *loader) { return loader_workers_active(loader->workers); }

/* ---- single batches ---- */

typedef struct Gather {
    Loader *loader;
    LoaderBatch *batch;
    PipelineDraws draws;
    size_t chunk;
} Gather;

static Status gather_chunk(void *context, size_t item, DecoderScratch *scratch) {
    Gather *gather = context;
    size_t first = item * gather->chunk, left = gather->batch->count - first;
    return loader_pipeline_run(&gather->loader->pipeline, scratch, gather->draws, gather->batch, first,
                               left < gather->chunk ? left : gather->chunk);
}

static Status upload_gathered(void *context, size_t item, DecoderScratch *scratch) {
    Gather *gather = context;
    (void)item, (void)scratch;
    const UploadsDraws draws = {gather->loader->pipeline.seed, gather->draws.epoch, gather->draws.evaluate};
    return loader_uploads_begin(gather->loader->uploads, draws, gather->batch);
}

Status loader_gather(Loader *loader, const uint64_t *ids, size_t count, uint32_t epoch, bool evaluate,
                     LoaderBatch **out) {
    Status status = STATUS_OK;
    LoaderBatch *batch = NULL;
    TRY(check_ids(loader, ids, count, "ids"));
    TRY(loader_slots_take(loader->slots, count, &batch));
    batch->epoch = epoch;
    batch->index = LOADER_NO_BATCH;
    if (count > 0) memcpy(loader_slots_ids(batch), ids, count * sizeof *ids);
    TRY_GOTO(check_ids(loader, loader_slots_ids(batch), count, "ids")); /* in Python, others write */
    size_t chunk = loader_pipeline_chunk(&loader->pipeline, count, loader->threads);
    Gather gather = {loader, batch, {epoch, evaluate}, chunk};
    TRY_GOTO(loader_workers_run(loader->workers, (count + chunk - 1) / chunk, gather_chunk, &gather));
    TRY_GOTO(loader_source_check(&loader->source));
    if (loader->uploads != NULL && count > 0)
        TRY_GOTO(loader_workers_run(loader->workers, 1, upload_gathered, &gather));
    loader_slots_hand_over(batch);
    *out = batch;
    batch = NULL;
done:
    loader_batch_release(batch);
    return status;
}

/* ---- values of any length ---- */

Status loader_place(const Loader *loader, const char *field, const uint64_t *ids, size_t count, int64_t *offsets) {
    TRY(check_ids(loader, ids, count, "ids"));
    return loader_values_place(&loader->source, field, ids, count, offsets);
}

Status loader_read(const Loader *loader, const char *field, const uint64_t *ids, size_t count, const int64_t *offsets,
                   unsigned char *out) {
    TRY(check_ids(loader, ids, count, "ids"));
    return loader_values_read(&loader->source, field, ids, count, offsets, out);
}
