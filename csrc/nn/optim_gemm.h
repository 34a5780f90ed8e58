/* A small blocked matrix product for the optimizers: operands packed into panels, tiles as items of a parallel
 * loop, so that the result does not depend on the number of threads. Private to this folder. */
#ifndef CGXFFCV_NN_OPTIM_GEMM_H
#define CGXFFCV_NN_OPTIM_GEMM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define GEMM_MAX_MR 16
#define GEMM_MAX_NR 32

/* acc[mr][nr] (row-major) = sum over k of a[k][i] * b[k][j]; panels as gemm_pack writes them. */
typedef void (*GemmMicro)(int64_t depth, const float *a, const float *b, float *acc);

typedef struct GemmKernel {
    int mr, nr;
    GemmMicro run;
    const char *name;
} GemmKernel;

extern const GemmKernel gemm_kernel_scalar, gemm_kernel_avx2, gemm_kernel_avx512;

/* The widest kernel that this processor runs. */
const GemmKernel *gemm_kernel(void);

/* The floats that `lines` lines of `depth` elements take as panels of `width` lines. */
size_t gemm_panel_elems(int64_t lines, int64_t depth, int width);
int64_t gemm_panels(int64_t lines, int width);

/* Packs panel `panel`: element (line, k) stands at from[line * line_stride + k * depth_stride] and goes to
 * to[panel][k][line within the panel]; lines past the end are zero. */
void gemm_pack(const float *from, int64_t line_stride, int64_t depth_stride, int64_t lines, int64_t depth, int width,
               int64_t panel, float *to);

/* C = alpha A B + beta D over packed operands; D has C's shape and row stride and may be C itself. */
typedef struct GemmJob {
    int64_t m, n, depth;
    const float *a; /* borrowed: panels of mr rows of A */
    const float *b; /* borrowed: panels of nr columns of B */
    float *c;       /* borrowed: row-major, row stride n */
    const float *d; /* borrowed; not read when beta is 0 */
    float alpha, beta;
    bool lower; /* only tiles that touch the lower triangle (the diagonal included) need be computed */
} GemmJob;

int64_t gemm_tiles(const GemmKernel *kernel, const GemmJob *job);
void gemm_tile(const GemmKernel *kernel, const GemmJob *job, int64_t tile);

#endif
