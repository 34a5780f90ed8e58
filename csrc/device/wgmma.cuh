/* Matrix products of a warp group (128 threads, the first a multiple of 128) whose factors are in shared memory, and
 * barriers that copies into it arrive at, for .cu files and compute capability 9.0. Code for other capabilities must
 * not be launched: HAS_WGMMA is 1 in the code that has them.
 *
 * A factor is stored in rows of 64 elements of 16 bits (128 bytes), at a multiple of 1,024 bytes. The i-th 16 bytes of
 * row r are stored in place (i ^ r % 8) of the row, so that the i-th of 8 consecutive rows are in different banks. */
#ifndef CGXFFCV_DEVICE_WGMMA_CUH
#define CGXFFCV_DEVICE_WGMMA_CUH

#include "device/mma.cuh"

#define WARP_GROUP 128
#define WGMMA_CAPABILITY 90 /* 10 major + minor */
#define FACTOR_ROW 128      /* bytes */
#define FACTOR_ALIGNMENT 1024

/* The offset in the row, in bytes, of its `sixteen`-th 16 bytes. */
__device__ static __forceinline__ int factor_offset(int row, int sixteen) { return (sixteen ^ row % 8) * 16; }

#ifndef CGXFFCV_EMULATED /* the emulator's are in emulator/wgmma.h */

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define HAS_WGMMA 1
#define WGMMA_ASM(...) asm volatile(__VA_ARGS__)
#else
#define HAS_WGMMA 0
#define WGMMA_ASM(...) __trap()
#endif

/* ---- barriers ---- */

/* In shared memory; a __syncthreads must separate its initialisation from its first use. A phase ends with the
 * `count`-th arrival. */
typedef uint64_t CopyBarrier;

__device__ static __forceinline__ void copy_barrier_init(CopyBarrier *barrier, int count) {
    WGMMA_ASM("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count) : "memory");
}

__device__ static __forceinline__ void copy_barrier_arrive(CopyBarrier *barrier) {
    WGMMA_ASM("{ .reg .b64 state; mbarrier.arrive.shared.b64 state, [%0]; }" ::"r"(shared_address(barrier)) : "memory");
}

/* Waits until the phase of that parity has ended; the phase before the first counts as one of parity 1. */
__device__ static __forceinline__ void copy_barrier_wait(CopyBarrier *barrier, int parity) {
    uint32_t done = 0;
    while (done == 0) {
        WGMMA_ASM("{ .reg .pred p; mbarrier.try_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                  : "=r"(done)
                  : "r"(shared_address(barrier)), "r"(parity)
                  : "memory");
        if (!HAS_WGMMA) break;
    }
}

/* ---- products ---- */

/* Begin: before a group's products, after the barrier that signals their factors. Commit: after the products. */
__device__ static __forceinline__ void wgmma_begin(void) {
    WGMMA_ASM("fence.proxy.async.shared::cta; wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ static __forceinline__ void wgmma_commit(void) {
    WGMMA_ASM("wgmma.commit_group.sync.aligned;" ::: "memory");
}

/* Waits until all of this warp's groups but the last `PENDING` are complete. */
template <int PENDING> __device__ __forceinline__ void wgmma_wait(void) {
    WGMMA_ASM("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

/* The descriptor of a factor that begins at the start of a row, or a multiple of 16 bytes into one. */
__device__ static __forceinline__ uint64_t factor_descriptor(const void *begin) {
    const uint64_t unused = 1, eight_rows = 8 * FACTOR_ROW, swizzled = 1;
    return shared_address(begin) >> 4 | unused << 16 | eight_rows >> 4 << 32 | swizzled << 62;
}

#define WGMMA_8(s, i)                                                                                                  \
    "+f"(s[i]), "+f"(s[i + 1]), "+f"(s[i + 2]), "+f"(s[i + 3]), "+f"(s[i + 4]), "+f"(s[i + 5]), "+f"(s[i + 6]),        \
        "+f"(s[i + 7])
#define WGMMA_24(s, i) WGMMA_8(s, i), WGMMA_8(s, i + 8), WGMMA_8(s, i + 16)
#define WGMMA_72(s, i) WGMMA_24(s, i), WGMMA_24(s, i + 24), WGMMA_24(s, i + 48)
#define WGMMA_SUMS_240                                                                                                 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                                           \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "                                 \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "                                 \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "                                 \
    "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "                                 \
    "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "                                 \
    "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "                     \
    "%112, %113, %114, %115, %116, %117, %118, %119"
#define WGMMA_SUMS_144                                                                                                 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                                           \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "                                 \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "                                 \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "                                 \
    "%64, %65, %66, %67, %68, %69, %70, %71"

/* Adds A B to the sums, or sets them to it: A is 64 x 16, B is 16 x N. A row of shared memory holds elements of one row
 * of A or, if `TRANSPOSED`, of one column of A; and elements of one column of B.
 * With g = lane / 4 and t = lane % 4 in warp w of the group, a thread's sums[4 i] to sums[4 i + 3] are row 16 w + g,
 * columns 8 i + 2 t and 8 i + 2 t + 1, then the same columns of row 16 w + g + 8. */
template <int N, typename T, bool TRANSPOSED> struct WarpGroupProduct;

#define WGMMA_PRODUCT(N, T, NAME, SUMS, A, B, ADD, TURN, ...)                                                          \
    template <bool TRANSPOSED> struct WarpGroupProduct<N, T, TRANSPOSED> {                                             \
        __device__ static __forceinline__ void run(float (&s)[N / 2], uint64_t a, uint64_t b, bool add) {              \
            WGMMA_ASM("{ .reg .pred p; setp.ne.b32 p, " ADD ", 0; "                                                    \
                      "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." NAME "." NAME " {" SUMS "}, " A ", " B         \
                      ", p, 1, 1, " TURN ", 0; }"                                                                      \
                      : __VA_ARGS__                                                                                    \
                      : "l"(a), "l"(b), "r"((int)add), "n"((int)TRANSPOSED)                                            \
                      : "memory");                                                                                     \
        }                                                                                                              \
    };
#define WGMMA_PRODUCTS(T, NAME)                                                                                        \
    WGMMA_PRODUCT(240, T, NAME, WGMMA_SUMS_240, "%120", "%121", "%122", "%123", WGMMA_72(s, 0), WGMMA_24(s, 72),       \
                  WGMMA_24(s, 96))                                                                                     \
    WGMMA_PRODUCT(144, T, NAME, WGMMA_SUMS_144, "%72", "%73", "%74", "%75", WGMMA_72(s, 0))
WGMMA_PRODUCTS(__half, "f16")
WGMMA_PRODUCTS(__nv_bfloat16, "bf16")

#endif
#endif
