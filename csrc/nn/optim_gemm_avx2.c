/* The 6 x 16 kernel: 12 accumulators of 8 floats, two loads and six broadcasts for every index. */
#include <immintrin.h>

#include "nn/optim_gemm.h"

#define MR 6
#define NR 16

static void run_avx2(int64_t depth, const float *a, const float *b, float *acc) {
    __m256 sum[MR][2];
    for (int i = 0; i < MR; i++) sum[i][0] = sum[i][1] = _mm256_setzero_ps();
    for (int64_t k = 0; k < depth; k++, a += MR, b += NR) {
        __m256 b0 = _mm256_loadu_ps(b), b1 = _mm256_loadu_ps(b + 8);
#pragma GCC unroll 6
        for (int i = 0; i < MR; i++) {
            __m256 ai = _mm256_set1_ps(a[i]);
            sum[i][0] = _mm256_fmadd_ps(ai, b0, sum[i][0]);
            sum[i][1] = _mm256_fmadd_ps(ai, b1, sum[i][1]);
        }
    }
    for (int i = 0; i < MR; i++) {
        _mm256_storeu_ps(acc + i * NR, sum[i][0]);
        _mm256_storeu_ps(acc + i * NR + 8, sum[i][1]);
    }
}

const GemmKernel gemm_kernel_avx2 = {MR, NR, run_avx2, "avx2"};
