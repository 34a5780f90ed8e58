/* Matrix products for the optimizers: X X' without packing, and B X one column panel at a time. Each element is summed
 * over the whole depth in one pass and in a fixed order, so that results do not depend on the number of threads.
 * Private to this folder. */
#ifndef CGXFFCV_OPTIM_GEMM_H
#define CGXFFCV_OPTIM_GEMM_H

#include <stddef.h>
#include <stdint.h>

#define GEMM_MAX_ROWS 12
#define GEMM_MAX_COLUMNS 32

/* Two kernels over tiles of fixed size; `out` is row-major and contiguous. */
typedef struct GemmKernels {
    /* out[i][j] = sum over k of a[i][k] b[j][k]; the rows of a tile are given one by one. */
    int dot_rows, dot_columns;
    void (*dot)(int64_t depth, const float *const *a, const float *const *b, float *out);
    /* out[i][j] = sum over k of a[i][k] b[k][j]; b has outer_columns columns and is contiguous. */
    int outer_rows, outer_columns;
    void (*outer)(int64_t depth, const float *const *a, const float *b, float *out);
} GemmKernels;

extern const GemmKernels optim_gemm_kernels_scalar, optim_gemm_kernels_avx2, optim_gemm_kernels_avx512;

/* The widest kernels that this processor supports. */
const GemmKernels *optim_gemm_kernels(void);

/* C = alpha X X' + beta D for m x depth X and symmetric D (not read when beta is 0); all row-major and contiguous. Item
 * i of optim_gemm_square_items computes one band of rows up to the diagonal, and mirrors it. */
typedef struct GemmSquare {
    int64_t m, depth;
    const float *x; /* borrowed */
    const float *d; /* borrowed */
    float *c;       /* borrowed; not x, not d */
    float alpha, beta;
} GemmSquare;

int64_t optim_gemm_square_items(const GemmKernels *kernels, const GemmSquare *job);
void optim_gemm_square(const GemmKernels *kernels, const GemmSquare *job, int64_t item);

/* X = alpha B X + beta X in place, for m x m B and m x n X; item j works on one panel of columns. */
typedef struct GemmUpdate {
    int64_t m, n;
    const float *b; /* borrowed */
    float *x;       /* borrowed */
    float alpha, beta;
} GemmUpdate;

/* Floats of scratch memory that optim_gemm_update needs in each thread. */
size_t optim_gemm_update_scratch(int64_t m);
int64_t optim_gemm_update_items(const GemmKernels *kernels, const GemmUpdate *job);
void optim_gemm_update(const GemmKernels *kernels, const GemmUpdate *job, int64_t item, float *scratch);

#endif
