/* How kernels of different GPUs (or of two that share one) tell each other that data is there: the writer fences for
 * the system and stores a flag, the reader loads it until it has the value that it waits for, and then reads past the
 * first cache, which may hold what was there before. The emulator of the tests has stand-ins. */
#ifndef CGXFFCV_DEVICE_SIGNAL_CUH
#define CGXFFCV_DEVICE_SIGNAL_CUH

#include "device/kernel.cuh"

#ifndef CGXFFCV_EMULATED
/* Behind everything that this thread has written, or has seen of others' at the block's last barrier. */
static __device__ __forceinline__ void signal_store(uint32_t *to, uint32_t value) {
    __threadfence_system();
    asm volatile("st.relaxed.sys.global.u32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
}

static __device__ __forceinline__ uint32_t signal_load(const uint32_t *from) {
    uint32_t value;
    asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
    return value;
}

/* 16 bytes as they are now, wherever they lie. */
static __device__ __forceinline__ uint4 signal_read(const uint4 *from) {
    uint4 value;
    asm volatile("ld.volatile.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                 : "l"(from)
                 : "memory");
    return value;
}

/* The same for all GPUs of a host, about; it moves in steps of up to a few microseconds. */
static __device__ __forceinline__ uint64_t signal_clock_ns(void) {
    uint64_t now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    return now;
}
#endif

#endif
