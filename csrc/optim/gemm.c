/* Tiling of the optimizers' matrix products, and the scalar kernels. Rows past the edge of a matrix repeat its last
 * row; their results are not stored. */
#include "optim/gemm.h"

#include <string.h>

#include "base/cpu.h"

#define SCALAR_ROWS 4
#define SCALAR_COLUMNS 4
#define LANES 4

static void dot_scalar(int64_t depth, const float *const *a, const float *const *b, float *out) {
    float sum[SCALAR_ROWS][SCALAR_COLUMNS][LANES] = {{{0}}};
    int64_t k = 0;
    for (; k + LANES <= depth; k += LANES) {
        for (int i = 0; i < SCALAR_ROWS; i++) {
            for (int j = 0; j < SCALAR_COLUMNS; j++) {
                for (int lane = 0; lane < LANES; lane++) sum[i][j][lane] += a[i][k + lane] * b[j][k + lane];
            }
        }
    }
    for (int i = 0; i < SCALAR_ROWS; i++) {
        for (int j = 0; j < SCALAR_COLUMNS; j++) {
            for (int64_t rest = k; rest < depth; rest++) sum[i][j][rest - k] += a[i][rest] * b[j][rest];
            const float *lanes = sum[i][j];
            out[i * SCALAR_COLUMNS + j] = (lanes[0] + lanes[2]) + (lanes[1] + lanes[3]);
        }
    }
}

static void outer_scalar(int64_t depth, const float *const *a, const float *b, float *out) {
    float sum[SCALAR_ROWS][SCALAR_COLUMNS] = {{0}};
    for (int64_t k = 0; k < depth; k++, b += SCALAR_COLUMNS) {
        for (int i = 0; i < SCALAR_ROWS; i++) {
            for (int j = 0; j < SCALAR_COLUMNS; j++) sum[i][j] += a[i][k] * b[j];
        }
    }
    memcpy(out, sum, sizeof sum);
}

const GemmKernels optim_gemm_kernels_scalar = {SCALAR_ROWS, SCALAR_COLUMNS, dot_scalar,
                                               SCALAR_ROWS, SCALAR_COLUMNS, outer_scalar};

const GemmKernels *optim_gemm_kernels(void) {
    const CpuFeatures *cpu = cpu_features();
    return cpu->avx512 ? &optim_gemm_kernels_avx512 : cpu->avx2 ? &optim_gemm_kernels_avx2 : &optim_gemm_kernels_scalar;
}

static int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t panels(int64_t lines, int width) { return (lines + width - 1) / width; }

/* The addresses of `count` rows starting at `first`. */
static void take_rows(const float *matrix, int64_t rows, int64_t stride, int64_t first, int count, const float **to) {
    for (int i = 0; i < count; i++) to[i] = matrix + at_most(first + i, rows - 1) * stride;
}

int64_t optim_gemm_square_items(const GemmKernels *kernels, const GemmSquare *job) {
    return panels(job->m, kernels->dot_rows);
}

void optim_gemm_square(const GemmKernels *kernels, const GemmSquare *job, int64_t item) {
    const float *a[GEMM_MAX_ROWS], *b[GEMM_MAX_COLUMNS];
    float tile[GEMM_MAX_ROWS * GEMM_MAX_COLUMNS];
    int64_t first = item * kernels->dot_rows, end = at_most(first + kernels->dot_rows, job->m);
    take_rows(job->x, job->m, job->depth, first, kernels->dot_rows, a);
    for (int64_t column = 0; column < end; column += kernels->dot_columns) {
        take_rows(job->x, job->m, job->depth, column, kernels->dot_columns, b);
        kernels->dot(job->depth, a, b, tile);
        for (int64_t i = first; i < end; i++) {
            const float *sums = tile + (i - first) * kernels->dot_columns - column;
            for (int64_t j = column; j < at_most(column + kernels->dot_columns, i + 1); j++) {
                float value = job->alpha * sums[j];
                if (job->beta != 0) value += job->beta * job->d[i * job->m + j];
                job->c[i * job->m + j] = job->c[j * job->m + i] = value;
            }
        }
    }
}

size_t optim_gemm_update_scratch(int64_t m) { return (size_t)m * GEMM_MAX_COLUMNS; }

int64_t optim_gemm_update_items(const GemmKernels *kernels, const GemmUpdate *job) {
    return panels(job->n, kernels->outer_columns);
}

void optim_gemm_update(const GemmKernels *kernels, const GemmUpdate *job, int64_t item, float *scratch) {
    const float *a[GEMM_MAX_ROWS];
    float tile[GEMM_MAX_ROWS * GEMM_MAX_COLUMNS];
    int wide = kernels->outer_columns;
    int64_t column = item * wide, columns = at_most(wide, job->n - column);
    for (int64_t k = 0; k < job->m; k++) {
        memcpy(scratch + k * wide, job->x + k * job->n + column, (size_t)columns * sizeof *scratch);
        for (int64_t j = columns; j < wide; j++) scratch[k * wide + j] = 0;
    }
    for (int64_t row = 0; row < job->m; row += kernels->outer_rows) {
        take_rows(job->b, job->m, job->m, row, kernels->outer_rows, a);
        kernels->outer(job->m, a, scratch, tile);
        for (int64_t i = row; i < at_most(row + kernels->outer_rows, job->m); i++) {
            float *x = job->x + i * job->n + column;
            const float *sums = tile + (i - row) * wide;
            for (int64_t j = 0; j < columns; j++) x[j] = job->alpha * sums[j] + job->beta * x[j];
        }
    }
}
