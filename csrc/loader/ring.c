/* Workers take chunks of the oldest open batch and open the next one while there is room; a finished batch waits until
 * it is its turn. One mutex guards everything here; it is not held while samples are made. Owns threads and the pass's
 * list of samples. */
#include "loader/ring.h"

#include <pthread.h>

#include "base/clock.h"
#include "base/memory.h"

#define POLL_NS 50000000LL

/* A batch in flight, at position index % ahead of the ring. */
typedef struct Flight {
    LoaderBatch *batch; /* owned reference; NULL if opening it failed */
    size_t chunks, taken, done;
    bool failed;
    int64_t failed_at; /* position in the batch of the first bad sample */
    ErrorRecord error;
} Flight;

typedef struct Worker {
    Ring *ring; /* borrowed until loader_ring_destroy */
    DecoderScratch scratch;
    pthread_t handle;
} Worker;

struct Ring {
    RingConfig config;
    Worker *workers; /* owned, config.workers */
    int started;
    pthread_mutex_t mutex;
    pthread_cond_t work;  /* there may be something to do */
    pthread_cond_t ready; /* a batch is finished, or a worker has let go of a pass that stops */
    bool quit;
    int busy; /* workers inside a chunk */
    int sleeping;
    bool any_pass, active;
    RingPass pass;
    uint64_t batches;   /* of the pass */
    uint64_t opened;    /* batches below it have been opened */
    uint64_t delivered; /* batches below it have been given out */
    Flight *flights;    /* owned, config.ahead */
    LoaderStats totals;
};

typedef struct Job {
    Flight *flight;
    LoaderBatch *batch;
    PipelineDraws draws;
    size_t first, count;
    const uint64_t *ahead_ids; /* the next batch's samples, to be read ahead, or NULL */
    size_t ahead_count;
} Job;

/* ---- handing out work; the mutex is held ---- */

static Flight *flight_of(Ring *ring, uint64_t index) { return &ring->flights[index % ring->config.ahead]; }

static bool finished(const Flight *flight) { return flight->done == flight->chunks; }

static void fail_flight(Flight *flight, int64_t at) {
    if (flight->failed && flight->failed_at <= at) return;
    flight->failed = true;
    flight->failed_at = at;
    flight->error = *error_record();
}

static void open_batch(Ring *ring) {
    const size_t chunk = ring->config.chunk;
    Flight *flight = flight_of(ring, ring->opened);
    LoaderPart part = loader_split_part(&ring->config.split, ring->pass.samples, ring->opened);
    *flight = (Flight){.chunks = (part.count + chunk - 1) / chunk};
    if (loader_slots_take(ring->config.slots, part.count, &flight->batch) != STATUS_OK) {
        flight->chunks = 0;
        fail_flight(flight, 0);
    } else {
        flight->batch->index = ring->opened;
        flight->batch->epoch = ring->pass.draws.epoch;
        uint64_t *ids = loader_slots_ids(flight->batch);
        for (size_t i = 0; i < part.count; i++) ids[i] = ring->pass.ids[part.first + i];
    }
    ring->opened++;
    if (flight->chunks == 0) pthread_cond_broadcast(&ring->ready);
}

static void take_chunk(Ring *ring, Flight *flight, Job *job) {
    const size_t chunk = ring->config.chunk, first = flight->taken * chunk;
    const size_t left = flight->batch->count - first;
    *job = (Job){flight, flight->batch, ring->pass.draws, first, left < chunk ? left : chunk, NULL, 0};
    flight->taken++;
    ring->busy++;
    uint64_t next = flight->batch->index + 1;
    if (first == 0 && ring->config.read_ahead && next < ring->batches) {
        LoaderPart part = loader_split_part(&ring->config.split, ring->pass.samples, next);
        job->ahead_ids = ring->pass.ids + part.first;
        job->ahead_count = part.count;
    }
}

/* Finds a chunk in the newest open batch (older ones are handed out completely), or opens another. */
static bool find_job(Ring *ring, Job *job) {
    while (ring->active) {
        if (ring->opened > ring->delivered) {
            Flight *flight = flight_of(ring, ring->opened - 1);
            if (flight->taken < flight->chunks) {
                take_chunk(ring, flight, job);
                return true;
            }
        }
        if (ring->opened == ring->batches || ring->opened - ring->delivered == ring->config.ahead) return false;
        open_batch(ring);
    }
    return false;
}

/* ---- workers ---- */

static void run_job(Worker *worker, const Job *job) {
    Ring *ring = worker->ring;
    if (job->ahead_ids != NULL)
        loader_source_read_ahead(ring->config.pipeline->source, job->ahead_ids, job->ahead_count);
    worker->scratch.decode_ns = 0;
    int64_t start = clock_now_ns();
    Status status =
        loader_pipeline_run(ring->config.pipeline, &worker->scratch, job->draws, job->batch, job->first, job->count);
    int64_t spent = clock_now_ns() - start;
    pthread_mutex_lock(&ring->mutex);
    ring->busy--;
    ring->totals.work_ns += spent;
    ring->totals.decode_ns += worker->scratch.decode_ns;
    if (status != STATUS_OK) fail_flight(job->flight, worker->scratch.failed_at);
    job->flight->done++;
    bool cut = finished(job->flight) && loader_source_check(ring->config.pipeline->source) != STATUS_OK;
    if (cut) fail_flight(job->flight, -1); /* whatever else its samples say */
    if (finished(job->flight) || !ring->active) pthread_cond_broadcast(&ring->ready);
}

static void *work(void *argument) {
    Worker *worker = argument;
    Ring *ring = worker->ring;
    pthread_mutex_lock(&ring->mutex);
    while (!ring->quit) {
        Job job;
        if (find_job(ring, &job)) {
            pthread_mutex_unlock(&ring->mutex);
            run_job(worker, &job);
            continue;
        }
        bool in_pass = ring->active;
        int64_t start = in_pass ? clock_now_ns() : 0;
        ring->sleeping++;
        pthread_cond_wait(&ring->work, &ring->mutex);
        ring->sleeping--;
        if (in_pass) ring->totals.idle_ns += clock_now_ns() - start;
    }
    pthread_mutex_unlock(&ring->mutex);
    return NULL;
}

static Status start_workers(Ring *ring) {
    while (ring->started < ring->config.workers) {
        Worker *worker = &ring->workers[ring->started];
        worker->ring = ring;
        TRY(loader_pipeline_scratch_init(ring->config.pipeline, &worker->scratch));
        int failed = pthread_create(&worker->handle, NULL, work, worker);
        if (failed != 0) {
            loader_pipeline_scratch_fini(&worker->scratch);
            return error_fail_errno(STATUS_IO, failed, "cannot start worker thread %d of %d", ring->started + 1,
                                    ring->config.workers);
        }
        ring->started++;
    }
    return STATUS_OK;
}

/* ---- the ring ---- */

Status loader_ring_create(const RingConfig *config, Ring **out) {
    Status status = STATUS_OK;
    Ring *ring = NULL;
    pthread_condattr_t monotonic;
    TRY(memory_calloc(1, sizeof *ring, &ring));
    ring->config = *config;
    pthread_mutex_init(&ring->mutex, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&ring->work, NULL);
    pthread_cond_init(&ring->ready, &monotonic);
    pthread_condattr_destroy(&monotonic);
    TRY_GOTO(memory_calloc((size_t)config->workers, sizeof *ring->workers, &ring->workers));
    TRY_GOTO(memory_calloc(config->ahead, sizeof *ring->flights, &ring->flights));
    *out = ring;
    ring = NULL;
done:
    loader_ring_destroy(ring);
    return status;
}

void loader_ring_destroy(Ring *ring) {
    if (ring == NULL) return;
    loader_ring_stop(ring);
    pthread_mutex_lock(&ring->mutex);
    ring->quit = true;
    pthread_cond_broadcast(&ring->work);
    pthread_mutex_unlock(&ring->mutex);
    for (int i = 0; i < ring->started; i++) {
        pthread_join(ring->workers[i].handle, NULL);
        loader_pipeline_scratch_fini(&ring->workers[i].scratch);
    }
    memory_free(ring->pass.ids);
    memory_free(ring->flights);
    memory_free(ring->workers);
    pthread_cond_destroy(&ring->ready);
    pthread_cond_destroy(&ring->work);
    pthread_mutex_destroy(&ring->mutex);
    memory_free(ring);
}

/* Called with the mutex held: no new chunks, wait for those under way, drop what was not delivered. A chunk is short,
 * so the wait is. */
static void end_pass(Ring *ring) {
    ring->active = false;
    while (ring->busy > 0) pthread_cond_wait(&ring->ready, &ring->mutex);
    for (; ring->delivered < ring->opened; ring->delivered++) {
        Flight *flight = flight_of(ring, ring->delivered);
        loader_batch_release(flight->batch);
        flight->batch = NULL;
    }
    memory_free(ring->pass.ids);
    ring->pass.ids = NULL;
}

void loader_ring_stop(Ring *ring) {
    pthread_mutex_lock(&ring->mutex);
    uint64_t delivered = ring->delivered;
    if (ring->active) end_pass(ring);
    ring->delivered = ring->opened = delivered; /* what loader_ring_position speaks of */
    pthread_mutex_unlock(&ring->mutex);
}

Status loader_ring_begin(Ring *ring, RingPass pass) {
    loader_ring_stop(ring);
    Status status = start_workers(ring);
    if (status != STATUS_OK) {
        memory_free(pass.ids);
        return status;
    }
    pthread_mutex_lock(&ring->mutex);
    ring->pass = pass;
    ring->batches = loader_split_batches(&ring->config.split, pass.samples);
    ring->opened = ring->delivered = pass.first_batch < ring->batches ? pass.first_batch : ring->batches;
    ring->active = ring->any_pass = true;
    pthread_cond_broadcast(&ring->work);
    pthread_mutex_unlock(&ring->mutex);
    return STATUS_OK;
}

/* Called with the mutex held, which it gives up for `poll`. */
static Status wait_for(Ring *ring, const Flight *flight, LoaderPoll poll, void *context) {
    int64_t start = clock_now_ns(), next_poll = start + POLL_NS;
    Status status = STATUS_OK;
    while (status == STATUS_OK && (ring->opened == ring->delivered || !finished(flight))) {
        struct timespec until = clock_timespec(next_poll);
        pthread_cond_timedwait(&ring->ready, &ring->mutex, &until);
        if (!clock_expired(next_poll)) continue;
        next_poll = clock_now_ns() + POLL_NS;
        if (poll == NULL) continue;
        pthread_mutex_unlock(&ring->mutex);
        status = poll(context);
        pthread_mutex_lock(&ring->mutex);
    }
    ring->totals.wait_ns += clock_now_ns() - start;
    return status;
}

static LoaderBatch *deliver(Ring *ring, Flight *flight) {
    LoaderBatch *batch = flight->batch;
    flight->batch = NULL;
    ring->delivered++;
    ring->totals.batches++;
    ring->totals.samples += batch->count;
    loader_slots_hand_over(batch);
    if (ring->sleeping > 0) pthread_cond_broadcast(&ring->work);
    return batch;
}

Status loader_ring_next(Ring *ring, LoaderPoll poll, void *context, LoaderBatch **out) {
    Status status = STATUS_OK;
    LoaderBatch *batch = NULL;
    pthread_mutex_lock(&ring->mutex);
    if (!ring->active) goto done;
    if (ring->delivered == ring->batches) {
        end_pass(ring);
        goto done;
    }
    Flight *flight = flight_of(ring, ring->delivered);
    TRY_GOTO(wait_for(ring, flight, poll, context));
    if (flight->failed) {
        uint64_t delivered = ring->delivered;
        ErrorRecord error = flight->error;
        end_pass(ring);
        ring->delivered = ring->opened = delivered;
        status = error_adopt(&error);
        goto done;
    }
    batch = deliver(ring, flight);
done:
    pthread_mutex_unlock(&ring->mutex);
    if (status == STATUS_OK) *out = batch;
    return status;
}

LoaderPosition loader_ring_position(Ring *ring) {
    pthread_mutex_lock(&ring->mutex);
    LoaderPosition position = {ring->pass.draws.epoch, ring->delivered};
    if (!ring->any_pass) {
        position = (LoaderPosition){0, LOADER_NO_BATCH};
    } else if (ring->delivered == ring->batches) {
        position = (LoaderPosition){ring->pass.draws.epoch + 1, 0};
    }
    pthread_mutex_unlock(&ring->mutex);
    return position;
}

void loader_ring_stats(Ring *ring, LoaderStats *stats) {
    pthread_mutex_lock(&ring->mutex);
    *stats = ring->totals;
    stats->workers = ring->started;
    stats->memory_bytes = ring->pass.ids == NULL ? 0 : (size_t)ring->pass.samples * sizeof(uint64_t);
    stats->memory_bytes += (size_t)ring->started * loader_pipeline_scratch_bytes(ring->config.pipeline);
    pthread_mutex_unlock(&ring->mutex);
}
