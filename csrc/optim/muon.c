/* Muon (K. Jordan et al., 2024): momentum, orthogonalised by Newton-Schulz iterations. All matrices go through each
 * stage together, as the items of one parallel loop, and every sum is taken in an order that does not depend on the
 * number of threads. Owns its scratch memory. */
#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "optim/gemm.h"
#include "optim/private.h"

/* A matrix and its scratch: m x n is its size after the transposition of a tall one, so m <= n. */
typedef struct Matrix {
    MuonMatrix given;
    int64_t m, n, elems;
    float *x;             /* m x n: u, then the iterate */
    float *square, *poly; /* m x m: A = X X', and b A + c A A */
    double *sums;         /* per chunk: the sums of squares of u and of the weights */
    float weight_scale;
    float update_scale; /* of u; folded into the first iteration */
    int iteration;      /* the current one */
    OptimRate rate;
} Matrix;

/* A stage runs items [0, count(matrix)) of every active matrix. */
typedef struct Stage {
    int64_t (*count)(const Muon *muon, const Matrix *matrix);
    void (*run)(const Muon *muon, Matrix *matrix, int64_t item, int thread);
    GemmSquare (*square)(const Matrix *matrix); /* what those of square_count and square compute */
} Stage;

struct Muon {
    Pool *pool; /* borrowed */
    const GemmKernels *kernels;
    Matrix *matrices; /* owned */
    int count;
    float *scratch;        /* owned: the matrices' */
    float *thread_scratch; /* owned: thread_elems per thread */
    size_t thread_elems;
    double *sums; /* owned */
    const Stage *stage;
    int64_t *first_item; /* owned: where each matrix's items of the current stage start; count + 1 */
};

static int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t chunk_count(const Muon *muon, const Matrix *x) {
    (void)muon;
    return (x->elems + OPTIM_CHUNK - 1) / OPTIM_CHUNK;
}

/* The index in X of element i of the parameter. */
static int64_t matrix_place(const Matrix *x, int64_t i) {
    if (x->m == x->given.rows) return i;
    return i % x->given.columns * x->n + i / x->given.columns;
}

/* Updates the momentum and stores u; accumulates sums of squares in eight lanes, each in index order. */
static void momentum_chunk(const Muon *muon, Matrix *x, int64_t item, int thread) {
    (void)muon;
    (void)thread;
    int64_t begin = item * OPTIM_CHUNK, end = at_most(begin + OPTIM_CHUNK, x->elems);
    const float *g = x->given.gradient, *w = x->given.value;
    float *v = x->given.momentum, mu = x->given.group.momentum, *to = x->x;
    bool plain = x->m == x->given.rows;
    double update[8] = {0}, weight[8] = {0};
    for (int64_t i = begin; i < end; i += 8) {
        float u[8];
        int64_t here = at_most(8, end - i);
        for (int64_t lane = 0; lane < here; lane++) {
            v[i + lane] = mu * v[i + lane] + g[i + lane];
            u[lane] = g[i + lane] + mu * v[i + lane];
            update[lane] += (double)u[lane] * (double)u[lane];
            weight[lane] += (double)w[i + lane] * (double)w[i + lane];
        }
        for (int64_t lane = 0; lane < here; lane++) to[plain ? i + lane : matrix_place(x, i + lane)] = u[lane];
    }
    x->sums[2 * item] = x->sums[2 * item + 1] = 0;
    for (int lane = 0; lane < 8; lane++) {
        x->sums[2 * item] += update[lane];
        x->sums[2 * item + 1] += weight[lane];
    }
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

/* In the first iteration X is still u, without its scale: A = s^2 u u', and the next X = s (a u + (b A + c A A) u). */
static GemmSquare square_job(const Matrix *x) {
    float s = x->iteration == 0 ? x->update_scale : 1;
    return (GemmSquare){.m = x->m, .depth = x->n, .x = x->x, .c = x->square, .alpha = s * s};
}

static GemmSquare poly_job(const Matrix *x) {
    return (GemmSquare){.m = x->m,
                        .depth = x->m,
                        .x = x->square,
                        .d = x->square,
                        .c = x->poly,
                        .alpha = x->given.group.c,
                        .beta = x->given.group.b};
}

static GemmUpdate next_job(const Matrix *x) {
    float s = x->iteration == 0 ? x->update_scale : 1;
    return (GemmUpdate){.m = x->m, .n = x->n, .b = x->poly, .x = x->x, .alpha = s, .beta = s * x->given.group.a};
}

static int64_t square_count(const Muon *muon, const Matrix *x) {
    GemmSquare job = muon->stage->square(x);
    return optim_gemm_square_items(muon->kernels, &job);
}

static void square(const Muon *muon, Matrix *x, int64_t item, int thread) {
    (void)thread;
    GemmSquare job = muon->stage->square(x);
    optim_gemm_square(muon->kernels, &job, item);
}

static int64_t next_count(const Muon *muon, const Matrix *x) {
    GemmUpdate job = next_job(x);
    return optim_gemm_update_items(muon->kernels, &job);
}

static void next(const Muon *muon, Matrix *x, int64_t item, int thread) {
    GemmUpdate job = next_job(x);
    optim_gemm_update(muon->kernels, &job, item, muon->thread_scratch + (size_t)thread * muon->thread_elems);
}

static void update_chunk(const Muon *muon, Matrix *x, int64_t item, int thread) {
    (void)muon;
    (void)thread;
    int64_t begin = item * OPTIM_CHUNK, end = at_most(begin + OPTIM_CHUNK, x->elems);
    float *w = x->given.value, rate = x->rate.rate, keep = 1.0f - rate * x->given.group.decay;
    bool plain = x->m == x->given.rows;
    for (int64_t i = begin; i < end; i++) {
        w[i] = keep * (x->weight_scale * w[i] - rate * x->x[plain ? i : matrix_place(x, i)]);
    }
}

static const Stage momentum_stage = {chunk_count, momentum_chunk, NULL};
static const Stage update_stage = {chunk_count, update_chunk, NULL};
static const Stage iteration_stages[] = {
    {square_count, square, square_job}, {square_count, square, poly_job}, {next_count, next, NULL}};

static Status run_item(void *context, size_t item, int thread) {
    const Muon *muon = context;
    int matrix = 0;
    while ((int64_t)item >= muon->first_item[matrix + 1]) matrix++;
    muon->stage->run(muon, &muon->matrices[matrix], (int64_t)item - muon->first_item[matrix], thread);
    return STATUS_OK;
}

/* Matrices that need no more than `iteration` iterations are left out; 0 is for the stages outside the iterations. */
static Status run_stage(Muon *muon, const Stage *stage, int iteration) {
    muon->stage = stage;
    for (int i = 0; i < muon->count; i++) {
        Matrix *x = &muon->matrices[i];
        x->iteration = iteration;
        bool takes_part = x->rate.active && iteration < x->given.group.iterations;
        muon->first_item[i + 1] = muon->first_item[i] + (takes_part ? stage->count(muon, x) : 0);
    }
    return pool_run(muon->pool, (size_t)muon->first_item[muon->count], run_item, muon);
}

Status optim_muon_step(Muon *muon, const OptimRate *rates) {
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
    for (int iteration = 0; iteration < iterations; iteration++) {
        for (size_t s = 0; s < sizeof iteration_stages / sizeof *iteration_stages; s++) {
            TRY(run_stage(muon, &iteration_stages[s], iteration));
        }
    }
    return run_stage(muon, &update_stage, 0);
}

/* Carves one matrix's scratch memory out of `base`; only counts if it is NULL. */
static size_t cut_scratch(Matrix *x, float *base) {
    size_t at = 0, m = (size_t)x->m, n = (size_t)x->n;
    float **const parts[] = {&x->x, &x->square, &x->poly};
    const size_t sizes[] = {m * n, m * m, m * m};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        if (base != NULL) *parts[i] = base + at;
        at += (sizes[i] + 15) / 16 * 16;
    }
    return at;
}

static Status muon_allocate(Muon *muon) {
    size_t floats = 0, sums = 0;
    for (int i = 0; i < muon->count; i++) {
        floats += cut_scratch(&muon->matrices[i], NULL);
        sums += 2 * (size_t)chunk_count(muon, &muon->matrices[i]);
        size_t own = optim_gemm_update_scratch(muon->matrices[i].m);
        if (own > muon->thread_elems) muon->thread_elems = own;
    }
    TRY(memory_calloc((size_t)pool_threads(muon->pool) * muon->thread_elems, sizeof(float), &muon->thread_scratch));
    TRY(memory_calloc(floats, sizeof(float), &muon->scratch));
    TRY(memory_calloc(sums, sizeof(double), &muon->sums));
    TRY(memory_calloc((size_t)muon->count + 1, sizeof *muon->first_item, &muon->first_item));
    floats = sums = 0;
    for (int i = 0; i < muon->count; i++) {
        muon->matrices[i].sums = muon->sums + sums;
        floats += cut_scratch(&muon->matrices[i], muon->scratch + floats);
        sums += 2 * (size_t)chunk_count(muon, &muon->matrices[i]);
    }
    return STATUS_OK;
}

Status optim_muon_create(const MuonMatrix *matrices, int count, Pool *pool, Muon **out) {
    Status status = STATUS_OK;
    Muon *muon = NULL;
    TRY(memory_calloc(1, sizeof *muon, &muon));
    muon->pool = pool;
    muon->kernels = optim_gemm_kernels();
    muon->count = count;
    TRY_GOTO(memory_calloc((size_t)count, sizeof *muon->matrices, &muon->matrices));
    for (int i = 0; i < count; i++) {
        int64_t rows = matrices[i].rows, columns = matrices[i].columns;
        muon->matrices[i] = (Matrix){.given = matrices[i],
                                     .m = at_most(rows, columns),
                                     .n = rows < columns ? columns : rows,
                                     .elems = rows * columns};
    }
    TRY_GOTO(muon_allocate(muon));
    *out = muon;
    muon = NULL;
done:
    optim_muon_destroy(muon);
    return status;
}

void optim_muon_destroy(Muon *muon) {
    if (muon == NULL) return;
    memory_free(muon->first_item);
    memory_free(muon->sums);
    memory_free(muon->thread_scratch);
    memory_free(muon->scratch);
    memory_free(muon->matrices);
    memory_free(muon);
}
