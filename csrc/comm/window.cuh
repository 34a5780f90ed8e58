/* The device side of windows: waiting for another rank's flag, raising one, reporting which rank did not answer. */
#ifndef CGXFFCV_COMM_WINDOW_CUH
#define CGXFFCV_COMM_WINDOW_CUH

#include "device/signal.cuh"

extern "C" {
#include "comm/window.h"
}

#define WINDOW_PAUSE_NS 32 /* between two polls of a flag; doubles up to the next */
#define WINDOW_MOST_PAUSE_NS 1024
#define WINDOW_STATUS_NS 200000 /* between two polls of the status words, which are in host memory */

/* Waits until the flag is `value`; false if the host has aborted, or the time is up. For few threads at the same time:
 * each poll reads memory that others write to. */
static __device__ __forceinline__ bool window_await(const uint32_t *flag, uint32_t value,
                                                    const CommWindowStatus *status_words, uint64_t timeout_ns) {
    if (signal_load(flag) == value) return true;
    const uint64_t begin = signal_clock_ns();
    uint64_t looked = begin;
    for (unsigned pause = WINDOW_PAUSE_NS; signal_load(flag) != value;) {
        __nanosleep(pause);
        if (pause < WINDOW_MOST_PAUSE_NS) pause *= 2;
        const uint64_t now = signal_clock_ns();
        if (now - looked < WINDOW_STATUS_NS) continue;
        looked = now;
        if (status_words->abort != 0 || now - begin > timeout_ns) return false;
    }
    return true;
}

/* Called by one thread once all have written what is for another rank: sets that rank's flag or, if the flag is in an
 * send buffer, hands over what has been written there. */
static __device__ __forceinline__ void window_raise(const CommWindowSendQueue &send_queue, uint32_t *flag,
                                                    uint32_t value, const void *data, uint32_t bytes) {
    const uint64_t flag_at = (uint64_t)((uintptr_t)flag - (uintptr_t)send_queue.send_buffers);
    if (flag_at >= send_queue.bytes) {
        signal_store(flag, value);
        return;
    }
    uint32_t number = atomicAdd(send_queue.next, 1u);
    CommWindowSend *send = send_queue.sends + (number & send_queue.mask);
    send->at = (uint32_t)((uintptr_t)data - (uintptr_t)send_queue.send_buffers);
    send->bytes = bytes;
    send->flag_at = (uint32_t)flag_at;
    send->value = value;
    signal_store(&send->number, number + 1);
}

/* Called by one of the threads that give up. */
static __device__ __forceinline__ void window_report(CommWindowStatus *status_words, CommWindowReport what, int rank,
                                                     uint32_t tile, uint32_t epoch) {
    status_words->what = what;
    status_words->rank = (uint32_t)rank;
    status_words->tile = tile;
    status_words->epoch = epoch;
    signal_store(&status_words->reported, 1);
}

#endif
