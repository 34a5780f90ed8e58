/* The 12 x 32 kernel: 24 accumulators of 16 floats, two loads and twelve broadcasts for every index. */
#include <immintrin.h>

#include "nn/optim_gemm.h"

#define MR 12
#define NR 32

static void run_avx512(int64_t depth, const float *a, const float *b, float *acc) {
    __m512 sum[MR][2];
    for (int i = 0; i < MR; i++) sum[i][0] = sum[i][1] = _mm512_setzero_ps();
    for (int64_t k = 0; k < depth; k++, a += MR, b += NR) {
        __m512 b0 = _mm512_loadu_ps(b), b1 = _mm512_loadu_ps(b + 16);
#pragma GCC unroll 12
        for (int i = 0; i < MR; i++) {
            __m512 ai = _mm512_set1_ps(a[i]);
            sum[i][0] = _mm512_fmadd_ps(ai, b0, sum[i][0]);
            sum[i][1] = _mm512_fmadd_ps(ai, b1, sum[i][1]);
        }
    }
    for (int i = 0; i < MR; i++) {
        _mm512_storeu_ps(acc + i * NR, sum[i][0]);
        _mm512_storeu_ps(acc + i * NR + 16, sum[i][1]);
    }
}

const GemmKernel gemm_kernel_avx512 = {MR, NR, run_avx512, "avx512"};
