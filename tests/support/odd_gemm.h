/* For C tests of what multiplies matrices: kernels of odd shapes in place of the vectorised ones, which need compiler
 * flags of their own. */
#ifndef CGXFFCV_TESTS_ODD_GEMM_H
#define CGXFFCV_TESTS_ODD_GEMM_H

#include "optim/gemm.h"

static void dot_odd(int64_t depth, const float *const *a, const float *const *b, float *out) {
    for (int i = 0; i < 3 * 5; i++) {
        out[i] = 0;
        for (int64_t k = 0; k < depth; k++) out[i] += a[i / 5][k] * b[i % 5][k];
    }
}

static void outer_odd(int64_t depth, const float *const *a, const float *b, float *out) {
    for (int i = 0; i < 2 * 7; i++) {
        out[i] = 0;
        for (int64_t k = 0; k < depth; k++) out[i] += a[i / 7][k] * b[k * 7 + i % 7];
    }
}

const GemmKernels optim_gemm_kernels_avx2 = {3, 5, dot_odd, 2, 7, outer_odd};
const GemmKernels optim_gemm_kernels_avx512 = {3, 5, dot_odd, 2, 7, outer_odd};

#endif
