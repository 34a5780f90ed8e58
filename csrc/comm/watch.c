/* The registry of this process's live communicators, and the thread that updates their heartbeats five times per
 * second. Those of a stopped or dead process stop changing, so the others notice. The thread also guards what
 * GPUs do for a communicator, which nobody may be waiting for. It ends with the last communicator; a forked child
 * inherits neither registry nor thread. */
#include <time.h>

#include "base/clock.h"
#include "comm/internal.h"
#include "comm/start.h"

#define BEAT_EVERY_NS (CLOCK_NS_PER_SECOND / 5)

static struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    Comm *first;       /* borrowed: each removes itself before it is freed */
    CommGuard *guards; /* likewise */
    bool running;
} watch = {.lock = PTHREAD_MUTEX_INITIALIZER};

static pthread_once_t once = PTHREAD_ONCE_INIT;

static void before_fork(void) { pthread_mutex_lock(&watch.lock); }

static void after_fork_parent(void) { pthread_mutex_unlock(&watch.lock); }

static void make_condition(void) {
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&watch.changed, &attributes);
    pthread_condattr_destroy(&attributes);
}

static void after_fork_child(void) {
    watch.first = NULL;
    watch.guards = NULL;
    watch.running = false;
    make_condition();
    pthread_mutex_unlock(&watch.lock);
}

static void set_up(void) {
    make_condition();
    pthread_atfork(before_fork, after_fork_parent, after_fork_child);
}

static void *beat(void *unused) {
    (void)unused;
    pthread_mutex_lock(&watch.lock);
    while (watch.first != NULL) {
        for (Comm *comm = watch.first; comm != NULL; comm = comm->next) comm_segment_heartbeat(&comm->segment);
        for (CommGuard *g = watch.guards; g != NULL; g = g->next) g->beat(g->context, comm_wait_lost(g->comm));
        struct timespec until = clock_timespec(clock_now_ns() + BEAT_EVERY_NS);
        pthread_cond_timedwait(&watch.changed, &watch.lock, &until);
    }
    watch.running = false;
    pthread_mutex_unlock(&watch.lock);
    return NULL;
}

Status comm_watch_add(Comm *comm) {
    Status status = STATUS_OK;
    pthread_once(&once, set_up);
    pthread_mutex_lock(&watch.lock);
    if (!watch.running) {
        TRY_GOTO(comm_start_thread(beat, "the heartbeat thread"));
        watch.running = true;
    }
    comm->next = watch.first;
    watch.first = comm;
done:
    pthread_mutex_unlock(&watch.lock);
    return status;
}

void comm_watch_remove(Comm *comm) {
    pthread_mutex_lock(&watch.lock);
    Comm **link = &watch.first;
    while (*link != NULL && *link != comm) link = &(*link)->next;
    if (*link != NULL) *link = comm->next;
    if (watch.first == NULL) pthread_cond_signal(&watch.changed);
    pthread_mutex_unlock(&watch.lock);
}

void comm_watch_each(void (*visit)(Comm *comm, void *context), void *context) {
    pthread_mutex_lock(&watch.lock);
    for (Comm *comm = watch.first; comm != NULL; comm = comm->next) visit(comm, context);
    pthread_mutex_unlock(&watch.lock);
}

void comm_watch_guard(CommGuard *guard) {
    pthread_mutex_lock(&watch.lock);
    guard->next = watch.guards;
    watch.guards = guard;
    pthread_mutex_unlock(&watch.lock);
}

void comm_watch_unguard(CommGuard *guard) {
    pthread_mutex_lock(&watch.lock);
    CommGuard **link = &watch.guards;
    while (*link != NULL && *link != guard) link = &(*link)->next;
    if (*link != NULL) *link = guard->next;
    pthread_mutex_unlock(&watch.lock);
}
