/* Runs an initialisation, which may block, on a thread of its own, and waits for it with a deadline. */
#include "comm/start.h"

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include "base/clock.h"

#define CHECK_EVERY_NS 100000000LL

static struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    void (*work)(void);
    pid_t pid; /* of the process that began it; a forked child has not */
    bool ended;
} start = {.lock = PTHREAD_MUTEX_INITIALIZER};

static void *start_run(void *unused) {
    (void)unused;
    start.work();
    pthread_mutex_lock(&start.lock);
    start.ended = true;
    pthread_cond_broadcast(&start.changed);
    pthread_mutex_unlock(&start.lock);
    return NULL;
}

Status comm_start_thread(void *(*body)(void *unused), const char *what) {
    pthread_t thread;
    sigset_t all, before;
    sigfillset(&all);
    TRY_PTHREAD(pthread_sigmask(SIG_SETMASK, &all, &before));
    int error = pthread_create(&thread, NULL, body, NULL);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error != 0) return error_fail_errno(STATUS_IO, error, "starting %s", what);
    pthread_detach(thread);
    return STATUS_OK;
}

static Status begin_once(void (*work)(void)) {
    if (start.pid == getpid()) return STATUS_OK;
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&start.changed, &attributes);
    pthread_condattr_destroy(&attributes);
    start.work = work;
    start.ended = false;
    TRY(comm_start_thread(start_run, "a thread"));
    start.pid = getpid();
    return STATUS_OK;
}

/* Waits at most until the next check of deadline and hook; true once the work has ended. */
static bool wait_a_moment(void) {
    struct timespec until = clock_timespec(clock_now_ns() + CHECK_EVERY_NS);
    pthread_mutex_lock(&start.lock);
    if (!start.ended) pthread_cond_timedwait(&start.changed, &start.lock, &until);
    bool ended = start.ended;
    pthread_mutex_unlock(&start.lock);
    return ended;
}

Status comm_start_once(void (*work)(void), const char *what, int64_t deadline_ns, const CommHooks *hooks) {
    pthread_mutex_lock(&start.lock);
    Status status = begin_once(work);
    pthread_mutex_unlock(&start.lock);
    TRY(status);
    while (!wait_a_moment()) {
        if (hooks->check != NULL) TRY(hooks->check(hooks->context));
        if (clock_expired(deadline_ns)) {
            FAIL(STATUS_TIMEOUT, "%s was still waiting for other ranks at the deadline", what);
        }
    }
    return STATUS_OK;
}
