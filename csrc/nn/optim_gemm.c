/* Packing, tiling and the plain kernel of the small matrix product. Each tile sums over the whole depth in one
 * go, in index order: the panels stream from the second-level cache. */
#include "nn/optim_gemm.h"

#include "base/cpu.h"

#define SCALAR_MR 4
#define SCALAR_NR 8

static void run_scalar(int64_t depth, const float *a, const float *b, float *acc) {
    float sum[SCALAR_MR][SCALAR_NR] = {{0}};
    for (int64_t k = 0; k < depth; k++, a += SCALAR_MR, b += SCALAR_NR) {
        for (int i = 0; i < SCALAR_MR; i++) {
            for (int j = 0; j < SCALAR_NR; j++) sum[i][j] += a[i] * b[j];
        }
    }
    for (int i = 0; i < SCALAR_MR; i++) {
        for (int j = 0; j < SCALAR_NR; j++) acc[i * SCALAR_NR + j] = sum[i][j];
    }
}

const GemmKernel gemm_kernel_scalar = {SCALAR_MR, SCALAR_NR, run_scalar, "scalar"};

const GemmKernel *gemm_kernel(void) {
    const CpuFeatures *cpu = cpu_features();
    return cpu->avx512 ? &gemm_kernel_avx512 : cpu->avx2 ? &gemm_kernel_avx2 : &gemm_kernel_scalar;
}

int64_t gemm_panels(int64_t lines, int width) { return (lines + width - 1) / width; }

size_t gemm_panel_elems(int64_t lines, int64_t depth, int width) {
    return (size_t)gemm_panels(lines, width) * (size_t)width * (size_t)depth;
}

void gemm_pack(const float *from, int64_t line_stride, int64_t depth_stride, int64_t lines, int64_t depth, int width,
               int64_t panel, float *to) {
    int64_t first = panel * width, here = lines - first < width ? lines - first : width;
    from += first * line_stride;
    to += panel * width * depth;
    for (int64_t k = 0; k < depth; k++, from += depth_stride, to += width) {
        for (int64_t line = 0; line < here; line++) to[line] = from[line * line_stride];
        for (int64_t line = here; line < width; line++) to[line] = 0;
    }
}

int64_t gemm_tiles(const GemmKernel *kernel, const GemmJob *job) {
    return gemm_panels(job->m, kernel->mr) * gemm_panels(job->n, kernel->nr);
}

void gemm_tile(const GemmKernel *kernel, const GemmJob *job, int64_t tile) {
    float acc[GEMM_MAX_MR * GEMM_MAX_NR];
    int64_t row_panels = gemm_panels(job->m, kernel->mr);
    int64_t column_panel = tile / row_panels, row_panel = tile % row_panels;
    int64_t row = row_panel * kernel->mr, column = column_panel * kernel->nr;
    int64_t rows = job->m - row < kernel->mr ? job->m - row : kernel->mr;
    int64_t columns = job->n - column < kernel->nr ? job->n - column : kernel->nr;
    if (job->lower && column > row + rows - 1) return;
    kernel->run(job->depth, job->a + row * job->depth, job->b + column * job->depth, acc);
    for (int64_t i = 0; i < rows; i++) {
        float *c = job->c + (row + i) * job->n + column;
        const float *sum = acc + i * kernel->nr;
        if (job->beta == 0) {
            for (int64_t j = 0; j < columns; j++) c[j] = job->alpha * sum[j];
        } else {
            const float *d = job->d + (row + i) * job->n + column;
            for (int64_t j = 0; j < columns; j++) c[j] = job->alpha * sum[j] + job->beta * d[j];
        }
    }
}
