/* Workers take chunks of the oldest open batch and open the next one while there is room; a finished batch waits for
 * its turn. A batch found to have damaged samples that are to be left out is made again without them when its turn
 * comes. A loop takes precedence. One mutex guards everything here; it is not held while samples are made. Owns the
 * threads and the pass's list of samples. */
#include "loader/workers.h"

#include <pthread.h>
#include <stdatomic.h>

#include "base/clock.h"
#include "base/memory.h"

#define POLL_NS 50000000LL

/* A batch in flight: flights[index % ahead]. */
typedef struct Flight {
    LoaderBatch *batch; /* owned; NULL if opening it failed */
    size_t chunks, taken, done;
    size_t planned; /* samples that it would have if none were damaged */
    bool again;     /* damaged samples have been found, to be left out */
    bool failed;
    int64_t failed_at; /* position in the batch of the first bad sample */
    ErrorRecord error;
} Flight;

/* On its own cache lines: its thread writes here for every image. */
typedef struct Worker {
    _Alignas(MEMORY_ALIGNMENT) Workers *workers; /* borrowed until loader_workers_destroy */
    DecoderScratch scratch;
    size_t held; /* bytes of `scratch` after its last job */
    int64_t work_ns, idle_ns;
    DecoderTimes times; /* of all its jobs */
    pthread_t handle;
} Worker;

/* A loop over items, alongside any pass. */
typedef struct Loop {
    WorkersTask task;
    void *context;
    size_t items, taken, busy; /* busy: workers inside an item */
    bool failed;
    size_t failed_item; /* the first: all before it have been taken, too */
    ErrorRecord error;
} Loop;

struct Workers {
    WorkersConfig config;
    Worker *list; /* owned, config.count */
    int started;
    pthread_mutex_t mutex;
    pthread_cond_t work;  /* there may be something to do */
    pthread_cond_t ready; /* a batch is finished, or a worker has left a pass that is stopping */
    bool quit;
    int busy; /* workers inside a chunk */
    int sleeping;
    bool any_pass, active;
    WorkersPass pass;
    uint64_t batches;       /* of the pass */
    uint64_t opened;        /* batches below it have been opened */
    uint64_t delivered;     /* batches below it have been delivered */
    Flight *flights;        /* owned, config.ahead */
    Flight *remade;         /* the oldest one, while it is made again; or NULL */
    atomic_uchar *left_out; /* owned, a flag for each sample of the file, never cleared; NULL without skip_damaged */
    Loop *loop;             /* borrowed from loader_workers_run, which waits for it; or NULL */
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

static Flight *flight_of(Workers *workers, uint64_t index) { return &workers->flights[index % workers->config.ahead]; }

static bool finished(const Flight *flight) { return flight->done == flight->chunks; }

static void fail_flight(Flight *flight, int64_t at) {
    if (flight->failed && flight->failed_at <= at) return;
    flight->failed = true;
    flight->failed_at = at;
    flight->error = *error_record();
}

static bool is_left_out(const Workers *workers, uint64_t sample) {
    return workers->left_out != NULL && atomic_load_explicit(&workers->left_out[sample], memory_order_relaxed) != 0;
}

/* Removes the samples that are left out from the batch, and starts it from the beginning. */
static void begin_flight(Workers *workers, Flight *flight) {
    const size_t chunk = workers->config.chunk;
    LoaderBatch *batch = flight->batch;
    uint64_t *ids = loader_slots_ids(batch);
    size_t kept = 0;
    for (size_t i = 0; i < batch->count; i++) {
        if (!is_left_out(workers, ids[i])) ids[kept++] = ids[i];
    }
    batch->count = kept;
    flight->chunks = (kept + chunk - 1) / chunk;
    flight->taken = flight->done = 0;
    flight->again = false;
}

static void open_batch(Workers *workers) {
    Flight *flight = flight_of(workers, workers->opened);
    LoaderPart part = loader_split_part(&workers->config.split, workers->pass.samples, workers->opened);
    *flight = (Flight){.planned = part.count};
    if (loader_slots_take(workers->config.slots, part.count, &flight->batch) != STATUS_OK) {
        fail_flight(flight, 0);
    } else {
        flight->batch->index = workers->opened;
        flight->batch->epoch = workers->pass.draws.epoch;
        uint64_t *ids = loader_slots_ids(flight->batch);
        for (size_t i = 0; i < part.count; i++) ids[i] = workers->pass.ids[part.first + i];
        begin_flight(workers, flight);
    }
    workers->opened++;
    if (flight->chunks == 0) pthread_cond_broadcast(&workers->ready);
}

static void take_chunk(Workers *workers, Flight *flight, Job *job) {
    const size_t chunk = workers->config.chunk, first = flight->taken * chunk;
    const size_t left = flight->batch->count - first;
    *job = (Job){flight, flight->batch, workers->pass.draws, first, left < chunk ? left : chunk, NULL, 0};
    flight->taken++;
    workers->busy++;
    uint64_t next = flight->batch->index + 1;
    if (first == 0 && workers->config.read_ahead && next < workers->batches) {
        LoaderPart part = loader_split_part(&workers->config.split, workers->pass.samples, next);
        job->ahead_ids = workers->pass.ids + part.first;
        job->ahead_count = part.count;
    }
}

/* Finds a chunk in the batch that is being made again, or in the newest open one (all chunks of older ones are taken),
 * or opens another. */
static bool find_job(Workers *workers, Job *job) {
    if (workers->active && workers->remade != NULL && workers->remade->taken < workers->remade->chunks) {
        take_chunk(workers, workers->remade, job);
        return true;
    }
    while (workers->active) {
        if (workers->opened > workers->delivered) {
            Flight *flight = flight_of(workers, workers->opened - 1);
            if (flight->taken < flight->chunks) {
                take_chunk(workers, flight, job);
                return true;
            }
        }
        if (workers->opened == workers->batches || workers->opened - workers->delivered == workers->config.ahead)
            return false;
        open_batch(workers);
    }
    return false;
}

/* ---- workers ---- */

/* After a batch's last chunk: looks whether the file is still whole, and uploads the batch if it is sound. Called with
 * the mutex held, which it releases meanwhile. The chunk does not count as done until then, so nobody else touches the
 * batch. */
static void complete_batch(Workers *workers, const Job *job) {
    Flight *flight = job->flight;
    const Pipeline *pipeline = workers->config.pipeline;
    const UploadsDraws draws = {pipeline->seed, job->draws.epoch, job->draws.evaluate};
    const bool uploads = workers->config.uploads != NULL && workers->active && !flight->failed && !flight->again;
    pthread_mutex_unlock(&workers->mutex);
    Status status = loader_source_check(pipeline->source);
    /* a file that is cut short overrides errors of its samples */
    const int64_t at = status != STATUS_OK ? -1 : (int64_t)job->batch->count;
    if (status == STATUS_OK && uploads) status = loader_uploads_begin(workers->config.uploads, draws, job->batch);
    pthread_mutex_lock(&workers->mutex);
    if (status != STATUS_OK) fail_flight(flight, at);
}

/* Wakes those that wait for a batch; called with the mutex held, which it releases meanwhile: they need it. */
static void announce_ready(Workers *workers) {
    pthread_mutex_unlock(&workers->mutex);
    pthread_cond_broadcast(&workers->ready);
    pthread_mutex_lock(&workers->mutex);
}

static void worker_run_job(Worker *worker, const Job *job) {
    Workers *workers = worker->workers;
    if (job->ahead_ids != NULL)
        loader_source_read_ahead(workers->config.pipeline->source, job->ahead_ids, job->ahead_count);
    worker->scratch.times = (DecoderTimes){0};
    int64_t start = clock_now_ns();
    Status status =
        loader_pipeline_run(workers->config.pipeline, &worker->scratch, job->draws, job->batch, job->first, job->count);
    int64_t spent = clock_now_ns() - start;
    pthread_mutex_lock(&workers->mutex);
    worker->work_ns += spent;
    worker->times.decode_ns += worker->scratch.times.decode_ns;
    worker->times.resample_ns += worker->scratch.times.resample_ns;
    worker->times.augment_ns += worker->scratch.times.augment_ns;
    worker->held = loader_pipeline_scratch_bytes(&worker->scratch);
    const int64_t at = worker->scratch.failed_at;
    if (status != STATUS_OK && at >= 0 && loader_workers_skip(workers, status, job->batch->ids[at])) {
        job->flight->again = true;
    } else if (status != STATUS_OK) {
        fail_flight(job->flight, at);
    }
    if (job->flight->done + 1 == job->flight->chunks) complete_batch(workers, job);
    workers->busy--;
    job->flight->done++;
    if (finished(job->flight) || !workers->active) announce_ready(workers);
}

/* Runs one item of the loop, if there is one left; called with the mutex held, which it releases meanwhile. */
static bool run_item(Worker *worker) {
    Workers *workers = worker->workers;
    Loop *loop = workers->loop;
    if (loop == NULL || loop->taken == loop->items) return false;
    size_t item = loop->taken++;
    loop->busy++;
    pthread_mutex_unlock(&workers->mutex);
    Status status = loop->task(loop->context, item, &worker->scratch);
    pthread_mutex_lock(&workers->mutex);
    loop->busy--;
    worker->held = loader_pipeline_scratch_bytes(&worker->scratch);
    if (status != STATUS_OK) {
        if (!loop->failed || item < loop->failed_item) {
            loop->failed_item = item;
            loop->error = *error_record();
        }
        loop->failed = true;
        loop->taken = loop->items;
    }
    if (loop->busy == 0 && loop->taken == loop->items) pthread_cond_broadcast(&workers->ready);
    return true;
}

static void *work(void *argument) {
    Worker *worker = argument;
    Workers *workers = worker->workers;
    Job job;
    if (workers->config.uploads != NULL) loader_uploads_enter(workers->config.uploads);
    pthread_mutex_lock(&workers->mutex);
    while (!workers->quit) {
        if (run_item(worker)) continue;
        if (find_job(workers, &job)) {
            pthread_mutex_unlock(&workers->mutex);
            worker_run_job(worker, &job);
            continue;
        }
        bool in_pass = workers->active;
        int64_t start = in_pass ? clock_now_ns() : 0;
        workers->sleeping++;
        pthread_cond_wait(&workers->work, &workers->mutex);
        workers->sleeping--;
        if (in_pass) worker->idle_ns += clock_now_ns() - start;
    }
    pthread_mutex_unlock(&workers->mutex);
    return NULL;
}

static Status start_workers(Workers *workers) {
    while (workers->started < workers->config.count) {
        Worker *worker = &workers->list[workers->started];
        worker->workers = workers;
        TRY(loader_pipeline_scratch_init(workers->config.pipeline, &worker->scratch));
        int failed = pthread_create(&worker->handle, NULL, work, worker);
        if (failed != 0) {
            loader_pipeline_scratch_fini(&worker->scratch);
            return error_fail_errno(STATUS_IO, failed,
                                    "cannot start worker thread %d of %d (num_workers asks for fewer; a higher "
                                    "ulimit -u, or limit of a container's processes, allows more)",
                                    workers->started + 1, workers->config.count);
        }
        workers->started++;
    }
    return STATUS_OK;
}

/* ---- the workers ---- */

/* It is held for less time than it takes to put a thread to sleep: where the C library offers it, a thread that finds
 * it locked tries again a few times before it sleeps. */
static void init_mutex(pthread_mutex_t *mutex) {
    pthread_mutexattr_t kind;
    pthread_mutexattr_init(&kind);
#ifdef PTHREAD_ADAPTIVE_MUTEX_INITIALIZER_NP
    pthread_mutexattr_settype(&kind, PTHREAD_MUTEX_ADAPTIVE_NP);
#endif
    pthread_mutex_init(mutex, &kind);
    pthread_mutexattr_destroy(&kind);
}

Status loader_workers_create(const WorkersConfig *config, Workers **out) {
    Status status = STATUS_OK;
    Workers *workers = NULL;
    pthread_condattr_t monotonic;
    TRY(memory_calloc(1, sizeof *workers, &workers));
    workers->config = *config;
    init_mutex(&workers->mutex);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&workers->work, NULL);
    pthread_cond_init(&workers->ready, &monotonic);
    pthread_condattr_destroy(&monotonic);
    TRY_GOTO(memory_calloc((size_t)config->count, sizeof *workers->list, &workers->list));
    TRY_GOTO(memory_calloc(config->ahead, sizeof *workers->flights, &workers->flights));
    if (config->skip_damaged) {
        const size_t samples = (size_t)beton_reader_num_samples(config->pipeline->source->reader);
        TRY_GOTO(memory_calloc(samples, sizeof *workers->left_out, &workers->left_out));
    }
    *out = workers;
    workers = NULL;
done:
    loader_workers_destroy(workers);
    return status;
}

void loader_workers_destroy(Workers *workers) {
    if (workers == NULL) return;
    loader_workers_stop(workers);
    pthread_mutex_lock(&workers->mutex);
    workers->quit = true;
    pthread_cond_broadcast(&workers->work);
    pthread_mutex_unlock(&workers->mutex);
    for (int i = 0; i < workers->started; i++) {
        pthread_join(workers->list[i].handle, NULL);
        loader_pipeline_scratch_fini(&workers->list[i].scratch);
    }
    memory_free(workers->pass.ids);
    memory_free(workers->left_out);
    memory_free(workers->flights);
    memory_free(workers->list);
    pthread_cond_destroy(&workers->ready);
    pthread_cond_destroy(&workers->work);
    pthread_mutex_destroy(&workers->mutex);
    memory_free(workers);
}

/* Called with the mutex held: starts no new chunks, waits for those in progress, drops what was not delivered. A chunk
 * is short, and so is the wait. */
static void end_pass(Workers *workers) {
    workers->active = false;
    workers->remade = NULL;
    while (workers->busy > 0) pthread_cond_wait(&workers->ready, &workers->mutex);
    for (; workers->delivered < workers->opened; workers->delivered++) {
        Flight *flight = flight_of(workers, workers->delivered);
        loader_batch_release(flight->batch);
        flight->batch = NULL;
    }
}

void loader_workers_stop(Workers *workers) {
    pthread_mutex_lock(&workers->mutex);
    uint64_t delivered = workers->delivered;
    if (workers->active) end_pass(workers);
    workers->delivered = workers->opened = delivered; /* what loader_workers_position reports */
    pthread_mutex_unlock(&workers->mutex);
}

Status loader_workers_room(Workers *workers, uint64_t samples, uint64_t **out) {
    loader_workers_stop(workers);
    if (workers->pass.ids == NULL || workers->pass.samples != samples) {
        memory_free(workers->pass.ids);
        workers->pass.ids = NULL;
        TRY(memory_alloc((size_t)samples, sizeof **out, &workers->pass.ids));
        workers->pass.samples = samples;
    }
    *out = workers->pass.ids;
    return STATUS_OK;
}

Status loader_workers_begin(Workers *workers, WorkersPass pass) {
    loader_workers_stop(workers);
    TRY(start_workers(workers));
    pthread_mutex_lock(&workers->mutex);
    workers->pass = pass;
    workers->batches = loader_split_batches(&workers->config.split, pass.samples);
    workers->opened = workers->delivered = pass.first_batch < workers->batches ? pass.first_batch : workers->batches;
    workers->active = workers->any_pass = true;
    pthread_mutex_unlock(&workers->mutex);
    pthread_cond_broadcast(&workers->work);
    return STATUS_OK;
}

/* Called with the mutex held, which it releases for `poll`. */
static Status wait_for(Workers *workers, const Flight *flight, LoaderPoll poll, void *context) {
    int64_t start = clock_now_ns(), next_poll = start + POLL_NS;
    Status status = STATUS_OK;
    while (status == STATUS_OK && (workers->opened == workers->delivered || !finished(flight))) {
        struct timespec until = clock_timespec(next_poll);
        pthread_cond_timedwait(&workers->ready, &workers->mutex, &until);
        if (!clock_expired(next_poll)) continue;
        next_poll = clock_now_ns() + POLL_NS;
        if (poll == NULL) continue;
        pthread_mutex_unlock(&workers->mutex);
        status = poll(context);
        pthread_mutex_lock(&workers->mutex);
    }
    workers->totals.wait_ns += clock_now_ns() - start;
    return status;
}

static LoaderBatch *deliver(Workers *workers, Flight *flight) {
    LoaderBatch *batch = flight->batch;
    flight->batch = NULL;
    workers->delivered++;
    workers->totals.batches++;
    workers->totals.samples += batch->count;
    workers->totals.skipped += flight->planned - batch->count;
    loader_slots_hand_over(batch);
    return batch;
}

Status loader_workers_next(Workers *workers, LoaderPoll poll, void *context, LoaderBatch **out) {
    Status status = STATUS_OK;
    LoaderBatch *batch = NULL;
    bool wakes = false;
    pthread_mutex_lock(&workers->mutex);
    if (!workers->active) goto done;
    if (workers->delivered == workers->batches) {
        end_pass(workers);
        goto done;
    }
    Flight *flight = flight_of(workers, workers->delivered);
    TRY_GOTO(wait_for(workers, flight, poll, context));
    while (flight->again && !flight->failed) {
        begin_flight(workers, flight);
        workers->remade = flight;
        pthread_cond_broadcast(&workers->work);
        TRY_GOTO(wait_for(workers, flight, poll, context));
        workers->remade = NULL;
    }
    if (flight->failed) {
        uint64_t delivered = workers->delivered;
        ErrorRecord error = flight->error;
        end_pass(workers);
        workers->delivered = workers->opened = delivered;
        status = error_adopt(&error);
        goto done;
    }
    batch = deliver(workers, flight);
    wakes = workers->sleeping > 0;
done:
    pthread_mutex_unlock(&workers->mutex);
    if (wakes) pthread_cond_broadcast(&workers->work); /* they need the mutex */
    if (status == STATUS_OK) *out = batch;
    return status;
}

Status loader_workers_run(Workers *workers, size_t items, WorkersTask task, void *context) {
    Loop loop = {.task = task, .context = context, .items = items};
    TRY(start_workers(workers));
    pthread_mutex_lock(&workers->mutex);
    workers->loop = &loop;
    pthread_cond_broadcast(&workers->work);
    while (loop.taken < loop.items || loop.busy > 0) pthread_cond_wait(&workers->ready, &workers->mutex);
    workers->loop = NULL;
    pthread_mutex_unlock(&workers->mutex);
    return loop.failed ? error_adopt(&loop.error) : STATUS_OK;
}

bool loader_workers_skip(Workers *workers, Status status, uint64_t sample) {
    if (status != STATUS_FORMAT || workers->left_out == NULL) return false;
    atomic_store_explicit(&workers->left_out[sample], 1, memory_order_relaxed);
    return true;
}

LoaderPosition loader_workers_position(Workers *workers) {
    pthread_mutex_lock(&workers->mutex);
    LoaderPosition position = {workers->pass.draws.epoch, workers->delivered};
    if (!workers->any_pass) {
        position = (LoaderPosition){0, LOADER_NO_BATCH};
    } else if (workers->delivered == workers->batches) {
        position = (LoaderPosition){workers->pass.draws.epoch + 1, 0};
    }
    pthread_mutex_unlock(&workers->mutex);
    return position;
}

bool loader_workers_active(Workers *workers) {
    pthread_mutex_lock(&workers->mutex);
    bool active = workers->active;
    pthread_mutex_unlock(&workers->mutex);
    return active;
}

void loader_workers_stats(Workers *workers, LoaderStats *stats) {
    pthread_mutex_lock(&workers->mutex);
    *stats = workers->totals;
    stats->workers = workers->started;
    stats->memory_bytes = workers->pass.ids == NULL ? 0 : (size_t)workers->pass.samples * sizeof(uint64_t);
    for (int i = 0; i < workers->started; i++) {
        const Worker *worker = &workers->list[i];
        stats->memory_bytes += worker->held;
        stats->work_ns += worker->work_ns;
        stats->idle_ns += worker->idle_ns;
        stats->decode_ns += worker->times.decode_ns;
        stats->resample_ns += worker->times.resample_ns;
        stats->augment_ns += worker->times.augment_ns;
    }
    if (workers->left_out != NULL) {
        stats->memory_bytes += (size_t)beton_reader_num_samples(workers->config.pipeline->source->reader);
    }
    pthread_mutex_unlock(&workers->mutex);
}
