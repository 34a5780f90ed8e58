/* Matrix products of a warp on the tensor cores, and asynchronous copies into shared memory, for .cu files.
 *
 * All lanes of a warp call these together. Elements are __half or __nv_bfloat16, two to a register; sums are float32.
 * With g = lane / 4 and t = lane % 4 a lane holds
 *   of A (16 rows): a[0] row g, a[1] row g + 8, each columns 2 t and 2 t + 1; a[2], a[3] the same 8 columns later;
 *   of B (8 columns): b0 rows 2 t and 2 t + 1 of column g; b1 the same 8 rows later;
 *   of C: c[0], c[1] row g, columns 2 t and 2 t + 1; c[2], c[3] the same of row g + 8.
 * Kernels that use them must not be launched on GPUs below compute capability 8.0. */
#ifndef CGXFFCV_DEVICE_MMA_CUH
#define CGXFFCV_DEVICE_MMA_CUH

#include "device/kernel.cuh"

#define MMA_LEAST_CAPABILITY 80 /* 10 major + minor */

#ifndef CGXFFCV_EMULATED /* the emulator's are in emulator/matrix.h */

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
#define MMA_ASM(...) asm(__VA_ARGS__)
#define MMA_ASM_MEMORY(...) asm volatile(__VA_ARGS__)
#else
#define MMA_ASM(...) __trap()
#define MMA_ASM_MEMORY(...) __trap()
#endif

__device__ static __forceinline__ uint32_t shared_address(const void *shared) {
    return (uint32_t)__cvta_generic_to_shared(shared);
}

/* Four 8 x 8 matrices of 16-bit elements from shared memory: lanes 8 i to 8 i + 7 give the addresses of the 8 rows of
 * the i-th, 16 bytes each at a multiple of 16; r[i] gets row g, columns 2 t and 2 t + 1 of the i-th. */
__device__ static __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void *row) {
    MMA_ASM_MEMORY("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                   : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                   : "r"(shared_address(row))
                   : "memory");
}

/* The same of the transposed matrices: r[i] gets rows 2 t and 2 t + 1 of column g. */
__device__ static __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], const void *row) {
    MMA_ASM_MEMORY("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                   : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                   : "r"(shared_address(row))
                   : "memory");
}

/* Two matrices: lanes 0 to 15 give the addresses; those of the others are ignored, but must be valid. */
__device__ static __forceinline__ void ldmatrix_x2(uint32_t (&r)[2], const void *row) {
    MMA_ASM_MEMORY("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                   : "=r"(r[0]), "=r"(r[1])
                   : "r"(shared_address(row))
                   : "memory");
}

__device__ static __forceinline__ void ldmatrix_x2_trans(uint32_t (&r)[2], const void *row) {
    MMA_ASM_MEMORY("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                   : "=r"(r[0]), "=r"(r[1])
                   : "r"(shared_address(row))
                   : "memory");
}

template <typename T>
__device__ __forceinline__ void mma_16816(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);

/* C += A B over 16 columns of A. */
template <>
__device__ __forceinline__ void mma_16816<__half>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    MMA_ASM("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
            "{%0, %1, %2, %3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
__device__ __forceinline__ void mma_16816<__nv_bfloat16>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                                         uint32_t b1) {
    MMA_ASM("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
            "{%0, %1, %2, %3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <typename T> __device__ __forceinline__ void mma_1688(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t b0);

/* The same over 8 columns: a[0], a[1] and b0 alone. */
template <> __device__ __forceinline__ void mma_1688<__half>(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t b0) {
    MMA_ASM("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a0), "r"(a1), "r"(b0));
}
template <>
__device__ __forceinline__ void mma_1688<__nv_bfloat16>(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t b0) {
    MMA_ASM("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a0), "r"(a1), "r"(b0));
}

/* Transposes an 8 x 8 matrix of 16-bit elements: lanes give and get columns 2 t and 2 t + 1 of row g. */
__device__ static __forceinline__ uint32_t movmatrix_trans(uint32_t pair) {
    uint32_t transposed = 0;
    MMA_ASM("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(transposed) : "r"(pair));
    return transposed;
}

/* Starts to copy 16 bytes from device to shared memory, both at multiples of 16, or to clear them (`from` must be a
 * valid address even then). The thread sees them after cp_async_wait, other threads after a barrier that follows it. */
__device__ static __forceinline__ void cp_async_16(void *shared, const void *from, bool clear) {
    MMA_ASM_MEMORY("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
                   "l"(__cvta_generic_to_global(from)), "r"(clear ? 0 : 16)
                   : "memory");
}

/* Closes a group of the thread's copies, which may be empty. */
__device__ static __forceinline__ void cp_async_commit(void) { MMA_ASM_MEMORY("cp.async.commit_group;" ::: "memory"); }

/* Waits until all of the thread's groups but the last `PENDING` have arrived. */
template <int PENDING> __device__ __forceinline__ void cp_async_wait(void) {
    MMA_ASM_MEMORY("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

#endif
#endif
