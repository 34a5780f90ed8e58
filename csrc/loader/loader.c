/* The loader as its users see it: joins file, order, plan, buffers and worker threads, and owns them. */
#include "loader/loader.h"

#include <string.h>

#include "base/checked.h"
#include "base/cpu.h"
#include "base/memory.h"
#include "base/pool.h"
#include "loader/plan.h"
#include "loader/ring.h"
#include "loader/slots.h"
#include "loader/traversal.h"

#define MAX_WORKERS 1024
#define MAX_AHEAD 4096

struct Loader {
    const BetonReader *reader;
    BetonReader *own_reader; /* owned, or NULL */
    Traversal order;
    Plan plan;
    LoaderSplit split;
    Slots *slots; /* owned; batches in callers' hands keep its memory */
    Ring *ring;   /* owned */
    int threads;
    Pool *pool;           /* owned: for loader_gather, made by its first call */
    PlanScratch *scratch; /* owned, one a thread of the pool */
};

LoaderConfig loader_config_default(void) {
    return (LoaderConfig){.world_size = 1, .batches_ahead = 3, .window_pages = 8, .drop_last = true};
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
    if (c->batches_ahead < 1 || c->batches_ahead > MAX_AHEAD) {
        FAIL(STATUS_ARGUMENT, "batches_ahead must be in 1..%d, not %zu", MAX_AHEAD, c->batches_ahead);
    }
    if ((unsigned)c->order > LOADER_QUASI_RANDOM) FAIL(STATUS_ARGUMENT, "unknown order %d", (int)c->order);
    if (c->window_pages < 1) FAIL(STATUS_ARGUMENT, "window_pages must be at least 1, not %zu", c->window_pages);
    return STATUS_OK;
}

/* The samples of the largest batch that an epoch has. */
static size_t largest_batch(const Loader *loader, const LoaderConfig *config) {
    uint64_t most = loader->order.count < 1 ? 1 : loader->order.count;
    return config->batch_size < most ? config->batch_size : (size_t)most;
}

static Status create_slots(Loader *loader, const LoaderConfig *config) {
    size_t *bytes = NULL;
    TRY(memory_alloc(loader->plan.count, sizeof *bytes, &bytes));
    for (size_t i = 0; i < loader->plan.count; i++) bytes[i] = loader->plan.outputs[i].array.sample_bytes;
    /* Spare buffers: as many as can be in flight, and the one that the caller looks at (or uploads). */
    SlotsConfig slots = {.batch_size = largest_batch(loader, config),
                         .arrays = loader->plan.count,
                         .sample_bytes = bytes,
                         .spare = config->batches_ahead + 1,
                         .page_locked = config->page_locked,
                         .device = config->device};
    Status status = slots_create(&slots, &loader->slots);
    memory_free(bytes);
    return status;
}

static Status create_ring(Loader *loader, const LoaderConfig *config) {
    RingConfig ring = {.plan = &loader->plan,
                       .slots = loader->slots,
                       .split = loader->split,
                       .workers = loader->threads,
                       .ahead = config->batches_ahead,
                       .chunk = plan_chunk(&loader->plan, largest_batch(loader, config), loader->threads),
                       .read_ahead = config->read_ahead};
    return ring_create(&ring, &loader->ring);
}

static Status create_pool(Loader *loader) {
    if (loader->pool != NULL) return STATUS_OK;
    if (loader->scratch == NULL) {
        PlanScratch *scratch = NULL;
        TRY(memory_calloc((size_t)loader->threads, sizeof *scratch, &scratch));
        loader->scratch = scratch;
    }
    for (int i = 0; i < loader->threads; i++) {
        if (loader->scratch[i].augment == NULL) TRY(plan_scratch_init(&loader->plan, &loader->scratch[i]));
    }
    return pool_create(loader->threads, &loader->pool);
}

static void destroy_pool(Loader *loader) {
    pool_destroy(loader->pool);
    for (int i = 0; loader->scratch != NULL && i < loader->threads; i++) plan_scratch_fini(&loader->scratch[i]);
    memory_free(loader->scratch);
    loader->pool = NULL;
    loader->scratch = NULL;
}

static Status fill_one(void *context, size_t item, int thread) {
    Loader *loader = context;
    uint64_t sample = loader->order.samples == NULL ? item : loader->order.samples[item];
    return plan_fill_resident(&loader->plan, &loader->scratch[thread], sample);
}

static Status make_resident(Loader *loader) {
    TRY(plan_make_resident(&loader->plan, &loader->order));
    TRY(create_pool(loader));
    TRY(pool_run(loader->pool, (size_t)loader->order.count, fill_one, loader));
    return beton_reader_check_length(loader->reader);
}

static Status make_order_and_plan(Loader *loader, const LoaderConfig *config) {
    TRY(traversal_init(&loader->order, loader->reader, config));
    return plan_init(&loader->plan, loader->reader, config, &loader->order);
}

static Status look_into_file(Loader *loader, const LoaderConfig *config) {
    Guard guard;
    beton_reader_enter(loader->reader, &guard);
    TRY(beton_reader_leave(loader->reader, &guard, make_order_and_plan(loader, config)));
    return beton_reader_check_length(loader->reader);
}

Status loader_create(const LoaderConfig *config, Loader **out) {
    Status status = STATUS_OK;
    Loader *loader = NULL;
    TRY(check_config(config));
    TRY(memory_calloc(1, sizeof *loader, &loader));
    loader->reader = config->reader;
    loader->threads = config->workers < 1 ? cpu_count() : config->workers;
    loader->split = (LoaderSplit){config->batch_size, config->world_size, config->rank, config->drop_last};
    if (config->reader == NULL) {
        TRY_GOTO(beton_reader_open(config->path, NULL, 0, &loader->own_reader));
        loader->reader = loader->own_reader;
    }
    TRY_GOTO(look_into_file(loader, config));
    TRY_GOTO(create_slots(loader, config));
    TRY_GOTO(create_ring(loader, config));
    if (config->resident) TRY_GOTO(make_resident(loader));
    *out = loader;
    loader = NULL;
done:
    loader_destroy(loader);
    return status;
}

void loader_destroy(Loader *loader) {
    if (loader == NULL) return;
    ring_destroy(loader->ring);
    destroy_pool(loader);
    slots_close(loader->slots);
    plan_fini(&loader->plan);
    traversal_fini(&loader->order);
    beton_reader_close(loader->own_reader);
    memory_free(loader);
}

void loader_reseed(Loader *loader, uint64_t seed) {
    ring_stop(loader->ring);
    loader->plan.seed = seed;
    loader->order.seed = seed;
}

/* ---- what it is ---- */

size_t loader_outputs(const Loader *loader) { return loader->plan.count; }

const LoaderArray *loader_array(const Loader *loader, size_t output) { return &loader->plan.outputs[output].array; }

const BetonReader *loader_reader(const Loader *loader) { return loader->reader; }

uint64_t loader_samples(const Loader *loader) { return loader->order.count; }

uint64_t loader_batches_of(const Loader *loader, uint64_t samples) {
    return loader_split_batches(&loader->split, samples);
}

uint64_t loader_batches(const Loader *loader) { return loader_batches_of(loader, loader->order.count); }

Status loader_order(const Loader *loader, uint32_t epoch, uint64_t *out) {
    return traversal_make(&loader->order, epoch, false, out);
}

const uint8_t *loader_resident(const Loader *loader, size_t output, uint32_t *height, uint32_t *width) {
    *height = loader->plan.outputs[output].height;
    *width = loader->plan.outputs[output].width;
    return loader->plan.outputs[output].resident;
}

void loader_stats(const Loader *loader, LoaderStats *out) {
    LoaderStats stats;
    SlotsStats slots = slots_stats(loader->slots);
    ring_stats(loader->ring, &stats);
    stats.slots = slots.live;
    stats.slots_held = slots.held;
    stats.slot_bytes = slots_batch_bytes(loader->slots);
    size_t rest = stats.memory_bytes + traversal_bytes(&loader->order) + loader->plan.resident_bytes;
    if (loader->scratch != NULL) rest += (size_t)loader->threads * plan_scratch_bytes(&loader->plan);
    stats.memory_bytes = rest + slots.bytes;
    stats.memory_peak_bytes = rest + slots.peak_bytes;
    *out = stats;
}

/* ---- passes ---- */

static Status check_ids(const Loader *loader, const uint64_t *ids, uint64_t count, const char *what) {
    uint64_t in_file = beton_reader_num_samples(loader->reader);
    for (uint64_t i = 0; i < count; i++) {
        if (ids[i] < in_file) continue;
        FAIL(STATUS_INDEX, "%s[%llu] is %llu, but the file has %llu samples", what, (unsigned long long)i,
             (unsigned long long)ids[i], (unsigned long long)in_file);
    }
    return STATUS_OK;
}

Status loader_begin(Loader *loader, const LoaderPass *pass) {
    Status status = STATUS_OK;
    RingPass begun = {.samples = pass->order == NULL ? loader->order.count : pass->order_count,
                      .draws = {pass->epoch, pass->evaluate},
                      .first_batch = pass->first_batch};
    if (pass->first_batch > loader_batches_of(loader, begun.samples)) {
        FAIL(STATUS_ARGUMENT, "batch %llu is beyond the epoch's %llu batches", (unsigned long long)pass->first_batch,
             (unsigned long long)loader_batches_of(loader, begun.samples));
    }
    TRY_GOTO(memory_alloc((size_t)begun.samples, sizeof *begun.ids, &begun.ids));
    if (pass->order == NULL) {
        TRY_GOTO(traversal_make(&loader->order, pass->epoch, pass->sequential, begun.ids));
    } else {
        TRY_GOTO(check_ids(loader, pass->order, pass->order_count, "order"));
        memcpy(begun.ids, pass->order, (size_t)pass->order_count * sizeof *begun.ids);
    }
    RingPass handed = begun;
    begun.ids = NULL;
    TRY_GOTO(ring_begin(loader->ring, handed));
done:
    memory_free(begun.ids);
    return status;
}

Status loader_next(Loader *loader, LoaderPoll poll, void *context, LoaderBatch **out) {
    return ring_next(loader->ring, poll, context, out);
}

void loader_stop(Loader *loader) { ring_stop(loader->ring); }

LoaderPosition loader_position(const Loader *loader) { return ring_position(loader->ring); }

/* ---- single batches ---- */

typedef struct Gather {
    Loader *loader;
    LoaderBatch *batch;
    PlanDraws draws;
    size_t chunk;
} Gather;

static Status gather_chunk(void *context, size_t item, int thread) {
    Gather *gather = context;
    size_t first = item * gather->chunk, left = gather->batch->count - first;
    return plan_run(&gather->loader->plan, &gather->loader->scratch[thread], gather->draws, gather->batch, first,
                    left < gather->chunk ? left : gather->chunk);
}

Status loader_gather(Loader *loader, const uint64_t *ids, size_t count, uint32_t epoch, bool evaluate,
                     LoaderBatch **out) {
    Status status = STATUS_OK;
    LoaderBatch *batch = NULL;
    TRY(check_ids(loader, ids, count, "ids"));
    TRY(create_pool(loader));
    TRY(slots_take(loader->slots, count, &batch));
    batch->epoch = epoch;
    batch->index = LOADER_NO_BATCH;
    if (count > 0) memcpy(slots_ids(batch), ids, count * sizeof *ids);
    size_t chunk = plan_chunk(&loader->plan, count, loader->threads);
    Gather gather = {loader, batch, {epoch, evaluate}, chunk};
    TRY_GOTO(pool_run(loader->pool, (count + chunk - 1) / chunk, gather_chunk, &gather));
    TRY_GOTO(beton_reader_check_length(loader->reader));
    slots_hand_over(batch);
    *out = batch;
    batch = NULL;
done:
    loader_batch_release(batch);
    return status;
}
