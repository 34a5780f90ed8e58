/* Muon (K. Jordan et al., 2024): momentum, orthogonalised by Newton-Schulz iterations. All matrices go through each
 * stage together, as the items of one parallel loop, and every sum is taken in an order that does not depend on
 * the number of threads. Owns its scratch memory. */
#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "nn/optim_gemm.h"
#include "nn/optim_private.h"

/* Tiles of the matrix product that one item computes. */
#define TILES_PER_ITEM 4

/* A matrix and its scratch: m x n is its size after the transposition of a tall one, so m <= n. */
typedef struct Matrix {
    MuonMatrix given;
    int64_t m, n, elems;
    float *x;             /* m x n: u, then the iterate */
    float *square, *poly; /* m x m: A = X X', and b A + c A A */
    float *rows_packed;   /* panels of mr rows of X, of A, of the polynomial in turn */
    float *lines_packed;  /* panels of nr lines: of X's rows for X X', of A's for A A */
    float *columns_packed;
    double *sums; /* owned by Muon: for each chunk the sums of squares of u and of the weights */
    float weight_scale, update_scale;
    OptimRate rate;
} Matrix;

/* A stage runs items [0, count(matrix)) of every active matrix. */
typedef struct Stage {
    int64_t (*count)(const Muon *muon, const Matrix *matrix);
    void (*run)(const Muon *muon, Matrix *matrix, int64_t item);
} Stage;

struct Muon {
    Pool *pool; /* borrowed */
    const GemmKernel *kernel;
    Matrix *matrices; /* owned */
    int count;
    float *scratch; /* owned */
    double *sums;   /* owned */
    const Stage *stage;
    int64_t *first_item; /* owned: where each matrix's items of the current stage start; count + 1 */
};

static int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t chunk_count(const Muon *muon, const Matrix *x) {
    (void)muon;
    return (x->elems + OPTIM_CHUNK - 1) / OPTIM_CHUNK;
}

/* The index in X of element i of the parameter. */
static int64_t place(const Matrix *x, int64_t i) {
    if (x->m == x->given.rows) return i;
    return i % x->given.columns * x->n + i / x->given.columns;
}

static void momentum_chunk(const Muon *muon, Matrix *x, int64_t item) {
    (void)muon;
    int64_t begin = item * OPTIM_CHUNK, end = at_most(begin + OPTIM_CHUNK, x->elems);
    const float *g = x->given.gradient, *w = x->given.value;
    float *v = x->given.momentum, mu = x->given.group.momentum;
    bool plain = x->m == x->given.rows;
    double update = 0, weight = 0;
    for (int64_t i = begin; i < end; i++) {
        v[i] = mu * v[i] + g[i];
        float u = g[i] + mu * v[i];
        x->x[plain ? i : place(x, i)] = u;
        update += (double)u * (double)u;
        weight += (double)w[i] * (double)w[i];
    }
    x->sums[2 * item] = update;
    x->sums[2 * item + 1] = weight;
}

static void find_scales(const Muon *muon, Matrix *x) {
    double update = 0, weight = 0;
    for (int64_t i = 0; i < chunk_count(muon, x); i++) {
        update += x->sums[2 * i];
        weight += x->sums[2 * i + 1];
    }
    x->update_scale = (float)(1.0 / (sqrt(update) + (double)x->given.group.epsilon));
    bool project = x->rate.project && weight > 0;
    x->weight_scale = project ? (float)(sqrt((double)x->given.rows) / sqrt(weight)) : 1.0f;
}

static void scale_chunk(const Muon *muon, Matrix *x, int64_t item) {
    (void)muon;
    int64_t begin = item * OPTIM_CHUNK, end = at_most(begin + OPTIM_CHUNK, x->elems);
    for (int64_t i = begin; i < end; i++) x->x[i] *= x->update_scale;
}

static int64_t pack_x_count(const Muon *muon, const Matrix *x) {
    return gemm_panels(x->m, muon->kernel->mr) + gemm_panels(x->m, muon->kernel->nr) +
           gemm_panels(x->n, muon->kernel->nr);
}

/* X's rows as left operand and as right operand of X X', its columns as right operand of (b A + c A A) X. */
static void pack_x(const Muon *muon, Matrix *x, int64_t item) {
    int mr = muon->kernel->mr, nr = muon->kernel->nr;
    int64_t left = gemm_panels(x->m, mr), right = gemm_panels(x->m, nr);
    if (item < left) {
        gemm_pack(x->x, x->n, 1, x->m, x->n, mr, item, x->rows_packed);
    } else if (item < left + right) {
        gemm_pack(x->x, x->n, 1, x->m, x->n, nr, item - left, x->lines_packed);
    } else {
        gemm_pack(x->x, 1, x->n, x->n, x->m, nr, item - left - right, x->columns_packed);
    }
}

static GemmJob square_job(const Matrix *x) {
    return (GemmJob){.m = x->m,
                     .n = x->m,
                     .depth = x->n,
                     .a = x->rows_packed,
                     .b = x->lines_packed,
                     .c = x->square,
                     .alpha = 1,
                     .lower = true};
}

static GemmJob poly_job(const Matrix *x) {
    return (GemmJob){.m = x->m,
                     .n = x->m,
                     .depth = x->m,
                     .a = x->rows_packed,
                     .b = x->lines_packed,
                     .c = x->poly,
                     .d = x->square,
                     .alpha = x->given.group.c,
                     .beta = x->given.group.b,
                     .lower = true};
}

static GemmJob next_job(const Matrix *x) {
    return (GemmJob){.m = x->m,
                     .n = x->n,
                     .depth = x->m,
                     .a = x->rows_packed,
                     .b = x->columns_packed,
                     .c = x->x,
                     .d = x->x,
                     .alpha = 1,
                     .beta = x->given.group.a};
}

static int64_t job_items(const Muon *muon, GemmJob job) {
    return (gemm_tiles(muon->kernel, &job) + TILES_PER_ITEM - 1) / TILES_PER_ITEM;
}

static void job_run(const Muon *muon, GemmJob job, int64_t item) {
    int64_t end = at_most((item + 1) * TILES_PER_ITEM, gemm_tiles(muon->kernel, &job));
    for (int64_t tile = item * TILES_PER_ITEM; tile < end; tile++) gemm_tile(muon->kernel, &job, tile);
}

static int64_t square_count(const Muon *muon, const Matrix *x) { return job_items(muon, square_job(x)); }
static void square(const Muon *muon, Matrix *x, int64_t item) { job_run(muon, square_job(x), item); }
static int64_t poly_count(const Muon *muon, const Matrix *x) { return job_items(muon, poly_job(x)); }
static void poly(const Muon *muon, Matrix *x, int64_t item) { job_run(muon, poly_job(x), item); }
static int64_t next_count(const Muon *muon, const Matrix *x) { return job_items(muon, next_job(x)); }
static void next(const Muon *muon, Matrix *x, int64_t item) { job_run(muon, next_job(x), item); }

static int64_t row_count(const Muon *muon, const Matrix *x) {
    (void)muon;
    return x->m;
}

static void mirror_row(float *matrix, int64_t m, int64_t row) {
    for (int64_t j = row + 1; j < m; j++) matrix[row * m + j] = matrix[j * m + row];
}

static void mirror_square(const Muon *muon, Matrix *x, int64_t row) {
    (void)muon;
    mirror_row(x->square, x->m, row);
}

static void mirror_poly(const Muon *muon, Matrix *x, int64_t row) {
    (void)muon;
    mirror_row(x->poly, x->m, row);
}

static int64_t pack_square_count(const Muon *muon, const Matrix *x) {
    return gemm_panels(x->m, muon->kernel->mr) + gemm_panels(x->m, muon->kernel->nr);
}

static void pack_square(const Muon *muon, Matrix *x, int64_t item) {
    int64_t left = gemm_panels(x->m, muon->kernel->mr);
    if (item < left) {
        gemm_pack(x->square, x->m, 1, x->m, x->m, muon->kernel->mr, item, x->rows_packed);
    } else {
        gemm_pack(x->square, 1, x->m, x->m, x->m, muon->kernel->nr, item - left, x->lines_packed);
    }
}

static int64_t pack_poly_count(const Muon *muon, const Matrix *x) { return gemm_panels(x->m, muon->kernel->mr); }

static void pack_poly(const Muon *muon, Matrix *x, int64_t item) {
    gemm_pack(x->poly, x->m, 1, x->m, x->m, muon->kernel->mr, item, x->rows_packed);
}

static void update_chunk(const Muon *muon, Matrix *x, int64_t item) {
    (void)muon;
    int64_t begin = item * OPTIM_CHUNK, end = at_most(begin + OPTIM_CHUNK, x->elems);
    float *w = x->given.value, rate = x->rate.rate, keep = 1.0f - rate * x->given.group.decay;
    bool plain = x->m == x->given.rows;
    for (int64_t i = begin; i < end; i++) {
        w[i] = keep * (x->weight_scale * w[i] - rate * x->x[plain ? i : place(x, i)]);
    }
}

static const Stage momentum_stage = {chunk_count, momentum_chunk}, scale_stage = {chunk_count, scale_chunk},
                   update_stage = {chunk_count, update_chunk};
static const Stage iteration_stages[] = {
    {pack_x_count, pack_x}, {square_count, square},   {row_count, mirror_square},   {pack_square_count, pack_square},
    {poly_count, poly},     {row_count, mirror_poly}, {pack_poly_count, pack_poly}, {next_count, next},
};

static Status run_item(void *context, size_t item, int thread) {
    (void)thread;
    const Muon *muon = context;
    int matrix = 0;
    while ((int64_t)item >= muon->first_item[matrix + 1]) matrix++;
    muon->stage->run(muon, &muon->matrices[matrix], (int64_t)item - muon->first_item[matrix]);
    return STATUS_OK;
}

/* `iteration` leaves out the matrices that need fewer; 0 is for the stages outside the iterations. */
static Status run_stage(Muon *muon, const Stage *stage, int iteration) {
    muon->stage = stage;
    for (int i = 0; i < muon->count; i++) {
        const Matrix *x = &muon->matrices[i];
        bool takes_part = x->rate.active && iteration < x->given.group.iterations;
        muon->first_item[i + 1] = muon->first_item[i] + (takes_part ? stage->count(muon, x) : 0);
    }
    return pool_run(muon->pool, (size_t)muon->first_item[muon->count], run_item, muon);
}

Status muon_step(Muon *muon, const OptimRate *rates) {
    int iterations = 0;
    for (int i = 0; i < muon->count; i++) {
        Matrix *x = &muon->matrices[i];
        x->rate = rates[i];
        if (x->rate.active && x->given.group.iterations > iterations) iterations = x->given.group.iterations;
    }
    TRY(run_stage(muon, &momentum_stage, 0));
    for (int i = 0; i < muon->count; i++) {
        if (rates[i].active) find_scales(muon, &muon->matrices[i]);
    }
    TRY(run_stage(muon, &scale_stage, 0));
    for (int iteration = 0; iteration < iterations; iteration++) {
        for (size_t s = 0; s < sizeof iteration_stages / sizeof *iteration_stages; s++) {
            TRY(run_stage(muon, &iteration_stages[s], iteration));
        }
    }
    return run_stage(muon, &update_stage, 0);
}

/* Cuts one matrix's scratch memory; with `base` NULL only counts. The row panels hold X's rows or an m x m matrix's. */
static size_t cut_scratch(const GemmKernel *kernel, Matrix *x, float *base) {
    size_t at = 0, m = (size_t)x->m, n = (size_t)x->n;
    float **const parts[] = {&x->x, &x->square, &x->poly, &x->rows_packed, &x->lines_packed, &x->columns_packed};
    const size_t sizes[] = {m * n,
                            m * m,
                            m * m,
                            gemm_panel_elems(x->m, x->n, kernel->mr),
                            gemm_panel_elems(x->m, x->n, kernel->nr),
                            gemm_panel_elems(x->n, x->m, kernel->nr)};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        if (base != NULL) *parts[i] = base + at;
        at += (sizes[i] + 15) / 16 * 16;
    }
    return at;
}

static Status allocate(Muon *muon) {
    size_t floats = 0, sums = 0;
    for (int i = 0; i < muon->count; i++) {
        floats += cut_scratch(muon->kernel, &muon->matrices[i], NULL);
        sums += 2 * (size_t)chunk_count(muon, &muon->matrices[i]);
    }
    TRY(memory_calloc(floats, sizeof(float), &muon->scratch));
    TRY(memory_calloc(sums, sizeof(double), &muon->sums));
    TRY(memory_calloc((size_t)muon->count + 1, sizeof *muon->first_item, &muon->first_item));
    floats = sums = 0;
    for (int i = 0; i < muon->count; i++) {
        muon->matrices[i].sums = muon->sums + sums;
        floats += cut_scratch(muon->kernel, &muon->matrices[i], muon->scratch + floats);
        sums += 2 * (size_t)chunk_count(muon, &muon->matrices[i]);
    }
    return STATUS_OK;
}

Status muon_create(const MuonMatrix *matrices, int count, Pool *pool, Muon **out) {
    Status status = STATUS_OK;
    Muon *muon = NULL;
    TRY(memory_calloc(1, sizeof *muon, &muon));
    muon->pool = pool;
    muon->kernel = gemm_kernel();
    muon->count = count;
    TRY_GOTO(memory_calloc((size_t)count, sizeof *muon->matrices, &muon->matrices));
    for (int i = 0; i < count; i++) {
        int64_t rows = matrices[i].rows, columns = matrices[i].columns;
        muon->matrices[i] = (Matrix){.given = matrices[i],
                                     .m = at_most(rows, columns),
                                     .n = rows < columns ? columns : rows,
                                     .elems = rows * columns};
    }
    TRY_GOTO(allocate(muon));
    *out = muon;
    muon = NULL;
done:
    muon_destroy(muon);
    return status;
}

void muon_destroy(Muon *muon) {
    if (muon == NULL) return;
    memory_free(muon->first_item);
    memory_free(muon->sums);
    memory_free(muon->scratch);
    memory_free(muon->matrices);
    memory_free(muon);
}

double muon_step_flops(const Muon *muon) {
    double flops = 0;
    for (int i = 0; i < muon->count; i++) {
        const Matrix *x = &muon->matrices[i];
        double m = (double)x->m, n = (double)x->n;
        flops += x->given.group.iterations * (m * (m + 1) * n + m * m * (m + 1) + 2 * m * m * n);
    }
    return flops;
}
