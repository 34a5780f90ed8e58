/* Threads that sleep between loops and take items from one atomic counter. Owns its threads; keeps no reference to a
 * loop's context after the loop. */
#include "base/pool.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <unistd.h>

#include "base/memory.h"

struct Pool {
    int threads;
    pid_t owner;            /* the process whose threads these are: a forked child inherits none of them */
    int started;            /* threads that pool_create has started */
    pthread_t *handles;     /* owned, threads - 1 */
    struct Worker *workers; /* owned, threads - 1 */
    pthread_mutex_t mutex;
    pthread_cond_t wake, finished;
    unsigned long loop; /* the number of the current loop */
    int busy;           /* started threads still inside the current loop */
    bool running, stop;
    PoolTask task;
    void *context;
    size_t items;
    atomic_size_t next;
    ErrorRecord error; /* the first failure of the current loop */
    bool failed;
};

typedef struct Worker {
    Pool *pool; /* borrowed until pool_destroy */
    int thread;
} Worker;

static void drain(Pool *pool, int thread) {
    for (;;) {
        size_t item = atomic_fetch_add(&pool->next, 1);
        if (item >= pool->items) return;
        if (pool->task(pool->context, item, thread) == STATUS_OK) continue;
        pthread_mutex_lock(&pool->mutex);
        if (!pool->failed) pool->error = *error_record();
        pool->failed = true;
        pthread_mutex_unlock(&pool->mutex);
        atomic_store(&pool->next, pool->items);
    }
}

static void *work(void *argument) {
    Worker *self = argument;
    Pool *pool = self->pool;
    unsigned long seen = 0;
    pthread_mutex_lock(&pool->mutex);
    for (;;) {
        while (!pool->stop && pool->loop == seen) pthread_cond_wait(&pool->wake, &pool->mutex);
        if (pool->stop) break;
        seen = pool->loop;
        pthread_mutex_unlock(&pool->mutex);
        drain(pool, self->thread);
        pthread_mutex_lock(&pool->mutex);
        if (--pool->busy == 0) pthread_cond_signal(&pool->finished);
    }
    pthread_mutex_unlock(&pool->mutex);
    return NULL;
}

Status pool_create(int threads, Pool **out) {
    Status status = STATUS_OK;
    Pool *pool = NULL;
    if (threads < 1 || threads > POOL_MAX_THREADS) {
        FAIL(STATUS_ARGUMENT, "a pool has at least 1 thread and at most %d, not %d", POOL_MAX_THREADS, threads);
    }
    TRY(memory_calloc(1, sizeof *pool, &pool));
    pool->threads = threads;
    pool->owner = getpid();
    pthread_mutex_init(&pool->mutex, NULL);
    pthread_cond_init(&pool->wake, NULL);
    pthread_cond_init(&pool->finished, NULL);
    TRY_GOTO(memory_calloc((size_t)threads, sizeof *pool->handles, &pool->handles));
    TRY_GOTO(memory_calloc((size_t)threads, sizeof *pool->workers, &pool->workers));
    for (int i = 1; i < threads; i++) {
        Worker *worker = &pool->workers[i - 1];
        *worker = (Worker){pool, i};
        int failed = pthread_create(&pool->handles[i - 1], NULL, work, worker);
        if (failed != 0) {
            status = error_fail_errno(STATUS_IO, failed, "cannot start thread %d of %d: ask for fewer", i + 1, threads);
            goto done;
        }
        pool->started++;
    }
    *out = pool;
    pool = NULL;
done:
    pool_destroy(pool);
    return status;
}

void pool_destroy(Pool *pool) {
    if (pool == NULL || pool->owner != getpid()) return;
    pthread_mutex_lock(&pool->mutex);
    pool->stop = true;
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->mutex);
    for (int i = 0; i < pool->started; i++) pthread_join(pool->handles[i], NULL);
    pthread_cond_destroy(&pool->finished);
    pthread_cond_destroy(&pool->wake);
    pthread_mutex_destroy(&pool->mutex);
    memory_free(pool->workers);
    memory_free(pool->handles);
    memory_free(pool);
}

int pool_threads(const Pool *pool) { return pool->threads; }

Status pool_run(Pool *pool, size_t items, PoolTask task, void *context) {
    if (pool->owner != getpid()) {
        for (size_t item = 0; item < items; item++) TRY(task(context, item, 0));
        return STATUS_OK;
    }
    pthread_mutex_lock(&pool->mutex);
    if (pool->running) {
        pthread_mutex_unlock(&pool->mutex);
        FAIL(STATUS_ARGUMENT, "this pool is already running a loop");
    }
    pool->running = true;
    pool->task = task;
    pool->context = context;
    pool->items = items;
    pool->failed = false;
    atomic_store(&pool->next, 0);
    if (items > 1 && pool->started > 0) {
        pool->busy = pool->started;
        pool->loop++;
        pthread_cond_broadcast(&pool->wake);
    }
    pthread_mutex_unlock(&pool->mutex);
    drain(pool, 0);
    pthread_mutex_lock(&pool->mutex);
    while (pool->busy > 0) pthread_cond_wait(&pool->finished, &pool->mutex);
    pool->running = false;
    Status status = pool->failed ? error_adopt(&pool->error) : STATUS_OK;
    pthread_mutex_unlock(&pool->mutex);
    return status;
}
