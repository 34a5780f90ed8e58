/* Monotonic time in nanoseconds, and deadlines built on it. */
#ifndef CGXFFCV_BASE_CLOCK_H
#define CGXFFCV_BASE_CLOCK_H

#include <stdbool.h>
#include <stdint.h>
#include <time.h>

#define CLOCK_NS_PER_SECOND 1000000000LL

static inline int64_t clock_now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * CLOCK_NS_PER_SECOND + now.tv_nsec;
}

static inline double clock_now_seconds(void) { return (double)clock_now_ns() * 1e-9; }

/* Clamped to the clock's range. */
static inline int64_t clock_duration_ns(double seconds) {
    const double longest = 1e9;
    double bounded = seconds < 0 ? 0 : seconds > longest ? longest : seconds;
    return (int64_t)(bounded * 1e9);
}

/* `seconds` from now. */
static inline int64_t clock_deadline_ns(double seconds) { return clock_now_ns() + clock_duration_ns(seconds); }

static inline bool clock_expired(int64_t deadline_ns) { return clock_now_ns() >= deadline_ns; }

/* The same instant as a timespec of CLOCK_MONOTONIC (for pthread_cond_timedwait). */
static inline struct timespec clock_timespec(int64_t instant_ns) {
    return (struct timespec){.tv_sec = instant_ns / CLOCK_NS_PER_SECOND, .tv_nsec = instant_ns % CLOCK_NS_PER_SECOND};
}

#endif
