/* How kernels on different GPUs (or two on one) signal each other that data is ready: the writer issues a system-wide
 * fence and stores a flag; the reader polls the flag until it has the awaited value, then reads the data bypassing the
 * L1 cache, which may hold stale values. The tests' emulator has its own versions. */
#ifndef CGXFFCV_DEVICE_SIGNAL_CUH
#define CGXFFCV_DEVICE_SIGNAL_CUH

#include "device/kernel.cuh"

#ifndef CGXFFCV_EMULATED
/* Ordered after everything that this thread has written, or has seen of others at the block's last barrier. */
static __device__ __forceinline__ void signal_store(uint32_t *to, uint32_t value) {
    __threadfence_system();
    asm volatile("st.relaxed.sys.global.u32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
}

static __device__ __forceinline__ uint32_t signal_load(const uint32_t *from) {
    uint32_t value;
    asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
    return value;
}

/* Reads the current 16 bytes, in whatever memory they are. */
static __device__ __forceinline__ uint4 signal_read(const uint4 *from) {
    uint4 value;
    asm volatile("ld.volatile.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                 : "l"(from)
                 : "memory");
    return value;
}

/* About the same on all GPUs of a host; advances in steps of up to a few microseconds. */
static __device__ __forceinline__ uint64_t signal_clock_ns(void) {
    uint64_t now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    return now;
}
#endif

#endif
