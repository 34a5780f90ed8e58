/* 6 x 4 sums of 16 lanes each for X X', and 12 x 32 for B X: 24 accumulators in both. */
#include <immintrin.h>

#include "optim/gemm.h"

#define DOT_ROWS 6
#define DOT_COLUMNS 4
#define OUTER_ROWS 12
#define OUTER_COLUMNS 32

/* Adds 16 terms (fewer if masked) to every sum. */
static inline __attribute__((always_inline)) void dot_step(__m512 sum[DOT_ROWS][DOT_COLUMNS], const float *const *a,
                                                           const float *const *b, int64_t k, __mmask16 mask) {
    __m512 bj[DOT_COLUMNS];
#pragma GCC unroll 4
    for (int j = 0; j < DOT_COLUMNS; j++) bj[j] = _mm512_maskz_loadu_ps(mask, b[j] + k);
#pragma GCC unroll 6
    for (int i = 0; i < DOT_ROWS; i++) {
        __m512 ai = _mm512_maskz_loadu_ps(mask, a[i] + k);
#pragma GCC unroll 4
        for (int j = 0; j < DOT_COLUMNS; j++) sum[i][j] = _mm512_fmadd_ps(ai, bj[j], sum[i][j]);
    }
}

static void dot_avx512(int64_t depth, const float *const *a, const float *const *b, float *out) {
    __m512 sum[DOT_ROWS][DOT_COLUMNS];
    const float *const rows[DOT_ROWS] = {a[0], a[1], a[2], a[3], a[4], a[5]};
    const float *const columns[DOT_COLUMNS] = {b[0], b[1], b[2], b[3]};
#pragma GCC unroll 6
    for (int i = 0; i < DOT_ROWS; i++) {
#pragma GCC unroll 4
        for (int j = 0; j < DOT_COLUMNS; j++) sum[i][j] = _mm512_setzero_ps();
    }
    int64_t k = 0;
    for (; k + 16 <= depth; k += 16) dot_step(sum, rows, columns, k, 0xFFFF);
    if (k < depth) dot_step(sum, rows, columns, k, (__mmask16)((1u << (depth - k)) - 1));
#pragma GCC unroll 6
    for (int i = 0; i < DOT_ROWS; i++) {
#pragma GCC unroll 4
        for (int j = 0; j < DOT_COLUMNS; j++) out[i * DOT_COLUMNS + j] = _mm512_reduce_add_ps(sum[i][j]);
    }
}

static void outer_avx512(int64_t depth, const float *const *a, const float *b, float *out) {
    __m512 sum[OUTER_ROWS][2];
#pragma GCC unroll 12
    for (int i = 0; i < OUTER_ROWS; i++) sum[i][0] = sum[i][1] = _mm512_setzero_ps();
    for (int64_t k = 0; k < depth; k++, b += OUTER_COLUMNS) {
        __m512 b0 = _mm512_loadu_ps(b), b1 = _mm512_loadu_ps(b + 16);
#pragma GCC unroll 12
        for (int i = 0; i < OUTER_ROWS; i++) {
            __m512 ai = _mm512_set1_ps(a[i][k]);
            sum[i][0] = _mm512_fmadd_ps(ai, b0, sum[i][0]);
            sum[i][1] = _mm512_fmadd_ps(ai, b1, sum[i][1]);
        }
    }
#pragma GCC unroll 12
    for (int i = 0; i < OUTER_ROWS; i++) {
        _mm512_storeu_ps(out + i * OUTER_COLUMNS, sum[i][0]);
        _mm512_storeu_ps(out + i * OUTER_COLUMNS + 16, sum[i][1]);
    }
}

const GemmKernels optim_gemm_kernels_avx512 = {DOT_ROWS,   DOT_COLUMNS,   dot_avx512,
                                               OUTER_ROWS, OUTER_COLUMNS, outer_avx512};
