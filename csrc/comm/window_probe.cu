/* The kernels of the probe: one block of THREADS threads each, in which a thread writes or compares 16-byte vectors of
 * each group, one at a time. Windows: uint4 [parts], uint32 [flags]. */
extern "C" {
#include "comm/window_probe.h"
}

#include "comm/window.cuh"

enum { THREADS = 256 };

static __device__ __forceinline__ uint32_t *flag_of(void *base, const ProbePlan &plan, uint32_t source) {
    return (uint32_t *)((char *)base + plan.flags_at) + source;
}

static __global__ void comm_probe_push_kernel(void *base, ProbePlan plan, uint32_t source, uint32_t target) {
    uint4 *to = (uint4 *)base;
    for (uint32_t group = 0; group < plan.groups; group++) {
        for (uint32_t i = threadIdx.x; i < plan.vectors; i += THREADS) {
            size_t at = probe_group_at(&plan, source, group) + i;
            uint32_t word = probe_word(source, target, at);
            to[at] = make_uint4(word, word + 1, word + 2, word + 3);
        }
    }
    __syncthreads();
    if (threadIdx.x == 0) signal_store(flag_of(base, plan, source), 1);
}

static __device__ bool same(const uint4 *from, const ProbePlan &plan, uint32_t source, uint32_t target) {
    int wrong = 0;
    for (uint32_t group = 0; group < plan.groups; group++) {
        for (uint32_t i = threadIdx.x; i < plan.vectors; i += THREADS) {
            size_t at = probe_group_at(&plan, source, group) + i;
            uint32_t word = probe_word(source, target, at);
            uint4 got = signal_read(from + at);
            wrong |= got.x != word || got.y != word + 1 || got.z != word + 2 || got.w != word + 3;
        }
    }
    return __syncthreads_or(wrong) == 0;
}

static __global__ void comm_probe_check_kernel(const void *own, const void *theirs, ProbePlan plan, uint32_t source,
                                               uint32_t me, CommWindowStatus *status_words, uint64_t timeout_ns) {
    const uint32_t *flag = flag_of(const_cast<void *>(own), plan, source);
    bool late = threadIdx.x == 0 && (*(volatile uint32_t *)&status_words->reported != 0 ||
                                     !window_await(flag, 1, status_words, timeout_ns));
    late = __syncthreads_or(late) != 0;
    bool pushed = late || same((const uint4 *)own, plan, source, me);
    bool pulled = late || same((const uint4 *)theirs, plan, source, source);
    ProbeFault fault = late ? PROBE_LATE : pushed ? PROBE_PULLED : PROBE_PUSHED;
    bool wrong = late || !pushed || !pulled;
    if (threadIdx.x != 0 || !wrong || *(volatile uint32_t *)&status_words->reported != 0) return;
    window_report(status_words, COMM_WINDOW_PROBE, (int)source, fault, 0);
}

extern "C" Status comm_probe_push(void *base, const ProbePlan *plan, int source, int target, DeviceStream *stream) {
    return LAUNCH(comm_probe_push_kernel, 1, THREADS, 0, stream, base, *plan, (uint32_t)source, (uint32_t)target);
}

extern "C" Status comm_probe_check(const void *own, const void *theirs, const ProbePlan *plan, int source, int me,
                                   CommWindowStatus *status_words, double timeout_s, DeviceStream *stream) {
    return LAUNCH(comm_probe_check_kernel, 1, THREADS, 0, stream, own, theirs, *plan, (uint32_t)source, (uint32_t)me,
                  status_words, (uint64_t)(timeout_s * 1e9));
}
