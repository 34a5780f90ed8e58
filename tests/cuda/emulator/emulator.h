/* What a .cu file needs to be compiled as C++ and run on the host: read before its first line (-include).
 *
 * A block's threads are fibers that run one after the other until they wait; blocks run one after the other, in an
 * order that changes with CGXFFCV_EMULATED_SEED. The compiler's thread-sanitizer instrumentation reports each access of
 * a kernel to check.cc, which knows all device and shared memory. */
#ifndef CGXFFCV_EMULATOR_H
#define CGXFFCV_EMULATOR_H

#define CGXFFCV_EMULATED 1

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <type_traits>

#undef __shared__
#undef __constant__
#undef __launch_bounds__
#undef __grid_constant__
#define __shared__ static
#define __constant__ __attribute__((section("emulated_constant")))
#define __launch_bounds__(...)
#define __grid_constant__
#define UNCHECKED __attribute__((no_sanitize("thread"), noinline))

enum { EMULATED_WARP = 32, EMULATED_VALUE_BYTES = 16 };

uint3 emulator_thread_index(void) __attribute__((const));
uint3 emulator_block_index(void) __attribute__((const));
dim3 emulator_block_size(void) __attribute__((const));
dim3 emulator_grid_size(void) __attribute__((const));
#define threadIdx emulator_thread_index()
#define blockIdx emulator_block_index()
#define blockDim emulator_block_size()
#define gridDim emulator_grid_size()
enum { warpSize = EMULATED_WARP };

void *emulator_dynamic_shared(void);
#define DYNAMIC_SHARED(type, name) type *name = reinterpret_cast<type *>(emulator_dynamic_shared())

/* ---- launching ---------------------------------------------------------------------------------------------------*/

/* `run` calls the kernel with its arguments, of which a copy is kept. `early`: its threads may touch device memory only
 * after grid_begin. */
cudaError_t emulator_launch(const char *name, void (*run)(void *), bool early, const void *arguments, size_t bytes,
                            dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream);
void emulator_grid_begin(void);

template <typename T> struct EmulatedArgument { typedef T type; };

template <typename... Parameters>
static cudaError_t start_kernel(const char *name, void (*kernel)(Parameters...), bool early, dim3 grid, dim3 block,
                                size_t shared_bytes, cudaStream_t stream,
                                typename EmulatedArgument<Parameters>::type... arguments) {
    auto body = [=]() { kernel(arguments...); };
    typedef decltype(body) Body;
    static_assert(std::is_trivially_copyable<Body>::value, "a kernel's arguments are plain data");
    auto run = [](void *stored) { (*(Body *)stored)(); };
    return emulator_launch(name, run, early, &body, sizeof body, grid, block, shared_bytes, stream);
}

/* ---- barriers, warps ---------------------------------------------------------------------------------------------*/

void emulator_barrier(void);
void emulator_yield(void);                 /* the other threads first; not for ever */
int emulator_barrier_count(int predicate); /* how many threads of the block had a true one */
void emulator_fence(void);

/* All lanes of `mask` meet: each gives a value, gets that of lane `source`; the result is the mask of true
 * predicates. */
uint32_t emulator_warp(const char *what, unsigned mask, const void *value, size_t bytes, int source, int predicate,
                       void *result);

static inline void __syncthreads(void) { emulator_barrier(); }
static inline int __syncthreads_count(int predicate) { return emulator_barrier_count(predicate); }
static inline int __syncthreads_or(int predicate) { return emulator_barrier_count(predicate) > 0; }
static inline int __syncthreads_and(int predicate) {
    return emulator_barrier_count(predicate) == (int)(blockDim.x * blockDim.y * blockDim.z);
}
static inline void __threadfence(void) { emulator_fence(); }
static inline void __threadfence_block(void) {}
static inline void __threadfence_system(void) { emulator_fence(); }

int emulator_lane(void);
static inline void __syncwarp(unsigned mask = 0xffffffffu) {
    emulator_warp("__syncwarp", mask, nullptr, 0, emulator_lane(), 0, nullptr);
}
static inline unsigned __ballot_sync(unsigned mask, int predicate) {
    return emulator_warp("__ballot_sync", mask, nullptr, 0, emulator_lane(), predicate, nullptr);
}
static inline int __any_sync(unsigned mask, int predicate) {
    return emulator_warp("__any_sync", mask, nullptr, 0, emulator_lane(), predicate, nullptr) != 0;
}
unsigned emulator_live(unsigned mask);
static inline int __all_sync(unsigned mask, int predicate) {
    return emulator_warp("__all_sync", mask, nullptr, 0, emulator_lane(), predicate, nullptr) == emulator_live(mask);
}

template <typename T> UNCHECKED T emulator_shuffle(const char *what, unsigned mask, T value, int source) {
    static_assert(sizeof(T) <= EMULATED_VALUE_BYTES, "too large a value for a shuffle");
    T result;
    emulator_warp(what, mask, &value, sizeof value, source, 0, &result);
    return result;
}

/* Lanes are taken in groups of `width`; beyond the group a lane keeps its own value. */
template <typename T> T __shfl_sync(unsigned mask, T value, int source, int width = EMULATED_WARP) {
    int lane = emulator_lane();
    return emulator_shuffle("__shfl_sync", mask, value, (lane & ~(width - 1)) | (source & (width - 1)));
}
template <typename T> T __shfl_xor_sync(unsigned mask, T value, int distance, int width = EMULATED_WARP) {
    int lane = emulator_lane(), source = lane ^ distance;
    if ((source & ~(width - 1)) > (lane & ~(width - 1))) source = lane;
    return emulator_shuffle("__shfl_xor_sync", mask, value, source);
}
template <typename T> T __shfl_down_sync(unsigned mask, T value, unsigned distance, int width = EMULATED_WARP) {
    int lane = emulator_lane(), source = lane + (int)distance;
    if ((lane & (width - 1)) + (int)distance >= width) source = lane;
    return emulator_shuffle("__shfl_down_sync", mask, value, source);
}
template <typename T> T __shfl_up_sync(unsigned mask, T value, unsigned distance, int width = EMULATED_WARP) {
    int lane = emulator_lane(), source = lane - (int)distance;
    if ((lane & (width - 1)) < (int)distance) source = lane;
    return emulator_shuffle("__shfl_up_sync", mask, value, source);
}

template <typename T> unsigned __match_any_sync(unsigned mask, T value) {
    unsigned same = 0;
    for (int lane = 0; lane < EMULATED_WARP; lane++) {
        if (mask >> lane & 1u) same |= (unsigned)(__shfl_sync(mask, value, lane) == value) << lane;
    }
    return same;
}

/* ---- memory ------------------------------------------------------------------------------------------------------*/

/* The compiler reports no store of what a call gives: so these must not be calls. */
#define ALWAYS_INLINE inline __attribute__((always_inline))
template <typename T> ALWAYS_INLINE T __ldg(const T *from) { return *from; }
template <typename T> ALWAYS_INLINE T __ldcs(const T *from) { return *from; }
template <typename T> ALWAYS_INLINE T __ldcg(const T *from) { return *from; }
template <typename T> ALWAYS_INLINE T __ldca(const T *from) { return *from; }
template <typename T> void __stcs(T *to, T value) { *to = value; }
template <typename T> void __stcg(T *to, T value) { *to = value; }
template <typename T> void __stwt(T *to, T value) { *to = value; }

/* Checks the access; threads may meet there without a race. */
void emulator_atomic(const void *address, size_t bytes);

template <typename T, typename Change> UNCHECKED T emulator_update(T *address, Change change) {
    static_assert(std::is_integral<T>::value, "floating-point atomics depend on the order of threads");
    emulator_atomic(address, sizeof *address);
    T old = *address;
    *address = change(old);
    return old;
}
/* ---- other processes (device/signal.cuh) -------------------------------------------------------------------------*/

void emulator_sleep(void);
uint64_t emulator_clock_ns(void);
static inline void __nanosleep(unsigned) { emulator_sleep(); }
static inline uint64_t signal_clock_ns(void) { return emulator_clock_ns(); }

UNCHECKED static inline void signal_store(uint32_t *to, uint32_t value) {
    emulator_fence();
    emulator_atomic(to, sizeof *to);
    __atomic_store_n(to, value, __ATOMIC_RELEASE);
}
UNCHECKED static inline uint32_t signal_load(const uint32_t *from) {
    emulator_fence();
    emulator_atomic(from, sizeof *from);
    return __atomic_load_n(from, __ATOMIC_ACQUIRE);
}
static inline uint4 signal_read(const uint4 *from) { return *from; }

template <typename T> struct EmulatedSame { typedef T type; };
#define EMULATED_ATOMIC(name, expression)                                                                              \
    template <typename T> T name(T *address, typename EmulatedSame<T>::type value) {                                   \
        return emulator_update(address, [=](T old) UNCHECKED_LAMBDA { return (T)(expression); });                      \
    }
#define UNCHECKED_LAMBDA __attribute__((no_sanitize("thread")))
EMULATED_ATOMIC(atomicAdd, old + value)
EMULATED_ATOMIC(atomicSub, old - value)
EMULATED_ATOMIC(atomicExch, value)
EMULATED_ATOMIC(atomicMin, old < value ? old : value)
EMULATED_ATOMIC(atomicMax, old > value ? old : value)
EMULATED_ATOMIC(atomicAnd, old &value)
EMULATED_ATOMIC(atomicOr, old | value)
EMULATED_ATOMIC(atomicXor, old ^ value)
EMULATED_ATOMIC(atomicInc, old >= value ? 0 : old + 1)
template <typename T>
T atomicCAS(T *address, typename EmulatedSame<T>::type expected, typename EmulatedSame<T>::type value) {
    return emulator_update(address, [=](T old) UNCHECKED_LAMBDA { return old == expected ? value : old; });
}

/* ---- arithmetic --------------------------------------------------------------------------------------------------*/

template <typename To, typename From> static inline To emulator_bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "sizes differ");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}

static inline int __float_as_int(float x) { return emulator_bits<int>(x); }
static inline unsigned __float_as_uint(float x) { return emulator_bits<unsigned>(x); }
static inline float __int_as_float(int x) { return emulator_bits<float>(x); }
static inline float __uint_as_float(unsigned x) { return emulator_bits<float>(x); }
static inline long long __double_as_longlong(double x) { return emulator_bits<long long>(x); }
static inline double __longlong_as_double(long long x) { return emulator_bits<double>(x); }

static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static inline double rsqrt(double x) { return 1.0 / sqrt(x); }
static inline float __frsqrt_rn(float x) { return (float)(1.0 / sqrt((double)x)); }
static inline float __fsqrt_rn(float x) { return sqrtf(x); }
static inline float __frcp_rn(float x) { return 1.0f / x; }
static inline float __fdividef(float a, float b) { return a / b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fsub_rn(float a, float b) { return a - b; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
/* glibc has declared these names. */
#define __expf expf
#define __exp10f exp10f
#define __logf logf
#define __log2f log2f
#define __powf powf
#define __sinf sinf
#define __cosf cosf
#define __sincosf sincosf
#define __tanhf tanhf

static inline float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }
static inline float normcdff(float x) { return 0.5f * erfcf(-x * 0.70710678118654752f); }
static inline float sinpif(float x) { return (float)sin(M_PI * (double)x); }
static inline float cospif(float x) { return (float)cos(M_PI * (double)x); }

static inline int __float2int_rn(float x) { return (int)nearbyintf(x); }
static inline int __float2int_rz(float x) { return (int)x; }
static inline int __float2int_rd(float x) { return (int)floorf(x); }
static inline int __float2int_ru(float x) { return (int)ceilf(x); }
/* Of an exact sum, but for operands of very different size. */
static inline float emulator_round_to_zero(double sum) {
    float rounded = (float)sum;
    return std::fabs((double)rounded) > std::fabs(sum) ? nextafterf(rounded, 0.0f) : rounded;
}
static inline float emulator_round_up(double sum) {
    float rounded = (float)sum;
    return (double)rounded < sum ? nextafterf(rounded, HUGE_VALF) : rounded;
}
static inline float __fadd_rz(float a, float b) { return emulator_round_to_zero((double)a + (double)b); }
static inline float __fadd_ru(float a, float b) { return emulator_round_up((double)a + (double)b); }
static inline float __fmaf_rz(float a, float b, float c) {
    return emulator_round_to_zero((double)a * (double)b + (double)c);
}
static inline float __fmaf_ru(float a, float b, float c) {
    return emulator_round_up((double)a * (double)b + (double)c);
}
static inline unsigned __float2uint_rn(float x) { return x > 0.0f ? (unsigned)nearbyintf(x) : 0u; }
static inline unsigned __float2uint_rz(float x) { return x > 0.0f ? (unsigned)x : 0u; }
static inline float __int2float_rn(int x) { return (float)x; }
static inline float __uint2float_rn(unsigned x) { return (float)x; }

static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz((unsigned)x); }
static inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)(((uint64_t)a * b) >> 32); }
static inline int __mulhi(int a, int b) { return (int)(((int64_t)a * b) >> 32); }
static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)(((unsigned __int128)a * b) >> 64);
}
static inline unsigned __brev(unsigned x) {
    unsigned result = 0;
    for (int bit = 0; bit < 32; bit++) result |= (x >> bit & 1u) << (31 - bit);
    return result;
}
static inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
    uint64_t bytes = (uint64_t)high << 32 | low;
    unsigned result = 0;
    for (int i = 0; i < 4; i++) result |= (unsigned)(bytes >> 8 * (selector >> 4 * i & 7) & 0xff) << 8 * i;
    return result;
}
static inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
    return (unsigned)(((uint64_t)high << 32 | low) << (shift & 31) >> 32);
}
static inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
    return (unsigned)(((uint64_t)high << 32 | low) >> (shift & 31));
}

template <typename A, typename B> static inline typename std::common_type<A, B>::type min(A a, B b) {
    typedef typename std::common_type<A, B>::type T;
    return (T)b < (T)a ? (T)b : (T)a;
}
template <typename A, typename B> static inline typename std::common_type<A, B>::type max(A a, B b) {
    typedef typename std::common_type<A, B>::type T;
    return (T)a < (T)b ? (T)b : (T)a;
}

static inline long long clock64(void) { return 0; }
void emulator_trap(void);
static inline void __trap(void) { emulator_trap(); }

#include "matrix.h"
#include "wgmma.h"

#endif
