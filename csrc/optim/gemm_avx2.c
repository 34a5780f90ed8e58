/* 4 x 3 sums of 8 lanes each for X X', and 6 x 16 for B X: 12 accumulators in both. */
#include <immintrin.h>
#include <string.h>

#include "optim/gemm.h"

#define DOT_ROWS 4
#define DOT_COLUMNS 3
#define OUTER_ROWS 6
#define OUTER_COLUMNS 16

static inline __m256 load(const float *from, int64_t left) {
    if (left >= 8) return _mm256_loadu_ps(from);
    float rest[8] = {0};
    memcpy(rest, from, (size_t)left * sizeof *rest);
    return _mm256_loadu_ps(rest);
}

static float add_lanes(__m256 sum) {
    float lane[8];
    _mm256_storeu_ps(lane, sum);
    return ((lane[0] + lane[4]) + (lane[1] + lane[5])) + ((lane[2] + lane[6]) + (lane[3] + lane[7]));
}

static void dot_avx2(int64_t depth, const float *const *a, const float *const *b, float *out) {
    __m256 sum[DOT_ROWS][DOT_COLUMNS];
#pragma GCC unroll 4
    for (int i = 0; i < DOT_ROWS; i++) {
#pragma GCC unroll 3
        for (int j = 0; j < DOT_COLUMNS; j++) sum[i][j] = _mm256_setzero_ps();
    }
    for (int64_t k = 0; k < depth; k += 8) {
        __m256 bj[DOT_COLUMNS];
#pragma GCC unroll 3
        for (int j = 0; j < DOT_COLUMNS; j++) bj[j] = load(b[j] + k, depth - k);
#pragma GCC unroll 4
        for (int i = 0; i < DOT_ROWS; i++) {
            __m256 ai = load(a[i] + k, depth - k);
#pragma GCC unroll 3
            for (int j = 0; j < DOT_COLUMNS; j++) sum[i][j] = _mm256_fmadd_ps(ai, bj[j], sum[i][j]);
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < DOT_ROWS; i++) {
#pragma GCC unroll 3
        for (int j = 0; j < DOT_COLUMNS; j++) out[i * DOT_COLUMNS + j] = add_lanes(sum[i][j]);
    }
}

static void outer_avx2(int64_t depth, const float *const *a, const float *b, float *out) {
    __m256 sum[OUTER_ROWS][2];
#pragma GCC unroll 6
    for (int i = 0; i < OUTER_ROWS; i++) sum[i][0] = sum[i][1] = _mm256_setzero_ps();
    for (int64_t k = 0; k < depth; k++, b += OUTER_COLUMNS) {
        __m256 b0 = _mm256_loadu_ps(b), b1 = _mm256_loadu_ps(b + 8);
#pragma GCC unroll 6
        for (int i = 0; i < OUTER_ROWS; i++) {
            __m256 ai = _mm256_set1_ps(a[i][k]);
            sum[i][0] = _mm256_fmadd_ps(ai, b0, sum[i][0]);
            sum[i][1] = _mm256_fmadd_ps(ai, b1, sum[i][1]);
        }
    }
#pragma GCC unroll 6
    for (int i = 0; i < OUTER_ROWS; i++) {
        _mm256_storeu_ps(out + i * OUTER_COLUMNS, sum[i][0]);
        _mm256_storeu_ps(out + i * OUTER_COLUMNS + 8, sum[i][1]);
    }
}

const GemmKernels optim_gemm_kernels_avx2 = {DOT_ROWS, DOT_COLUMNS, dot_avx2, OUTER_ROWS, OUTER_COLUMNS, outer_avx2};
