/* What kernels do with windows: wait for another rank's flag, and say whom they waited for in vain. */
#ifndef CGXFFCV_COMM_WINDOW_CUH
#define CGXFFCV_COMM_WINDOW_CUH

#include "device/signal.cuh"

extern "C" {
#include "comm/window.h"
}

#define WINDOW_LOOK_SPINS 64    /* between two looks at the signs, with a pause */
#define WINDOW_CLOCK_SPINS 1024 /* between two at the clock */
#define WINDOW_PAUSE_NS 100

/* Whether the flag has come to be `value`; false once the host has said so, or the time is over. */
static __device__ __forceinline__ bool window_await(const uint32_t *flag, uint32_t value, const CommWindowSigns *signs,
                                                    uint64_t timeout_ns) {
    uint64_t begin = 0;
    for (uint32_t spins = 1; signal_load(flag) != value; spins++) {
        if (spins % WINDOW_LOOK_SPINS != 0) continue;
        if (signs->abort != 0) return false;
        __nanosleep(WINDOW_PAUSE_NS);
        if (spins % WINDOW_CLOCK_SPINS != 0) continue;
        uint64_t now = signal_clock_ns();
        if (begin == 0) begin = now;
        if (now - begin > timeout_ns) return false;
    }
    return true;
}

/* By the thread that would store the flag, when all have written what is for that rank. */
static __device__ __forceinline__ void window_post(const CommWindowPost &post, int to, uint64_t at, uint32_t bytes,
                                                   uint64_t flag_at, uint32_t value) {
    uint32_t number = atomicAdd(post.next, 1u);
    CommWindowParcel *parcel = post.parcels + (number & post.mask);
    parcel->to = (uint32_t)to;
    parcel->at = (uint32_t)at;
    parcel->bytes = bytes;
    parcel->flag_at = (uint32_t)flag_at;
    parcel->value = value;
    signal_store(&parcel->number, number + 1);
}

/* By one thread of all that give up. */
static __device__ __forceinline__ void window_report(CommWindowSigns *signs, CommWindowReport what, int rank,
                                                     uint32_t tile, uint32_t epoch) {
    signs->what = what;
    signs->rank = (uint32_t)rank;
    signs->tile = tile;
    signs->epoch = epoch;
    signal_store(&signs->reported, 1);
}

#endif
