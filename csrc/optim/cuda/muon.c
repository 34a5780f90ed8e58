/* Muon on the GPU. Matrices of one group and one size form a batch, whose Newton-Schulz iterations are three strided
 * batched products each: A = X X', P = c A A + b A, next X = P X + a X, where the additions use the products' C
 * operand, so that nothing but products runs between the kernels that make the first X and consume the last. A tall
 * matrix is not transposed in memory: A = X' X, next X = X P + a X. Each batch runs in one of a few lanes, each of
 * which is a stream with its own library handle. Owns all scratch memory. */
#include <string.h>

#include "base/checked.h"
#include "base/memory.h"
#include "optim/cuda/optim.h"

#define MAX_LANES 4
#define STORAGE_BYTES 2 /* of CUDA_MUON_TYPE */
#define BUFFER_ALIGNMENT 256

/* The matrices of one group and size. The buffers hold all of them, one after another. */
typedef struct Batch {
    OptimGroup group;
    int group_index, count, lane;
    int64_t rows, columns;               /* as given */
    int64_t padded_rows, padded_columns; /* of X, as stored */
    void *x[2];                          /* borrowed from the arena, like the next two */
    void *square, *poly;
    CudaGemmShape square_shape, poly_shape, next_shape;
    double work;
} Batch;

typedef struct Lane {
    DeviceStream *stream; /* owned; lane 0: the optimizer's, borrowed */
    DeviceEvent *done;    /* owned; lane 0: none */
    CudaGemm *gemm;       /* owned */
} Lane;

struct CudaMuon {
    const OptimGroup *groups; /* borrowed, on the device */
    Batch *batches;           /* owned; the most work first */
    int batch_count, matrix_count, lane_count;
    Lane lanes[MAX_LANES];
    DeviceEvent *begun;       /* owned */
    void *arena;              /* owned, on the device: the batches' buffers and these tables */
    CudaMuonMatrix *matrices; /* batch by batch */
    CudaMuonTile *tiles;
    float *scales; /* of the matrices' weights */
    int64_t tile_count;
};

static int64_t padded(int64_t elems) { return (elems + CUDA_MUON_PAD - 1) / CUDA_MUON_PAD * CUDA_MUON_PAD; }
static int64_t matrix_elems(const Batch *b) { return b->padded_rows * b->padded_columns; }
static int64_t small_side(const Batch *b) { return b->rows > b->columns ? b->padded_columns : b->padded_rows; }
static int64_t tiles_of(const Batch *b) { return (matrix_elems(b) + CUDA_OPTIM_CHUNK - 1) / CUDA_OPTIM_CHUNK; }

static void shape_products(Batch *b) {
    bool tall = b->rows > b->columns;
    int64_t small = small_side(b), row = b->padded_columns, elems = matrix_elems(b);
    b->square_shape = (CudaGemmShape){.m = small,
                                      .n = small,
                                      .k = tall ? b->padded_rows : b->padded_columns,
                                      .row_a = row,
                                      .row_b = row,
                                      .row_d = small,
                                      .stride_a = elems,
                                      .stride_b = elems,
                                      .stride_d = small * small,
                                      .batch = b->count,
                                      .transpose_a = tall,
                                      .transpose_b = !tall,
                                      .in = CUDA_MUON_TYPE,
                                      .out = CUDA_MUON_TYPE};
    b->poly_shape = (CudaGemmShape){.m = small,
                                    .n = small,
                                    .k = small,
                                    .row_a = small,
                                    .row_b = small,
                                    .row_d = small,
                                    .stride_a = small * small,
                                    .stride_b = small * small,
                                    .stride_d = small * small,
                                    .batch = b->count,
                                    .in = CUDA_MUON_TYPE,
                                    .out = CUDA_MUON_TYPE};
    b->next_shape = (CudaGemmShape){.m = b->padded_rows,
                                    .n = b->padded_columns,
                                    .k = small,
                                    .row_a = tall ? row : small,
                                    .row_b = tall ? small : row,
                                    .row_d = row,
                                    .stride_a = tall ? elems : small * small,
                                    .stride_b = tall ? small * small : elems,
                                    .stride_d = elems,
                                    .batch = b->count,
                                    .in = CUDA_MUON_TYPE,
                                    .out = CUDA_MUON_TYPE};
    double m = (double)small;
    b->work = b->group.iterations * b->count * (4 * m * (double)elems + 2 * m * m * m);
}

/* The batch's products, from x[0] to x[iterations % 2]. */
static Status iterate(const Batch *b, CudaGemm *gemm) {
    bool tall = b->rows > b->columns;
    for (int i = 0; i < b->group.iterations; i++) {
        void *x = b->x[i % 2], *next = b->x[1 - i % 2];
        TRY(optim_cuda_gemm_batched(gemm, &b->square_shape, 1, x, x, 0, NULL, b->square));
        TRY(optim_cuda_gemm_batched(gemm, &b->poly_shape, b->group.c, b->square, b->square, b->group.b, b->square,
                                    b->poly));
        TRY(optim_cuda_gemm_batched(gemm, &b->next_shape, 1, tall ? x : b->poly, tall ? b->poly : x, b->group.a, x,
                                    next));
    }
    return STATUS_OK;
}

static bool is_enabled(const Batch *b, uint64_t enabled) { return (enabled >> b->group_index & 1) != 0; }

static bool lane_in_use(const CudaMuon *muon, int lane, uint64_t enabled) {
    for (int i = 0; i < muon->batch_count; i++) {
        if (muon->batches[i].lane == lane && is_enabled(&muon->batches[i], enabled)) return true;
    }
    return false;
}

Status optim_cuda_muon_step(CudaMuon *muon, CudaOptimSchedule schedule) {
    DeviceStream *stream = muon->lanes[0].stream;
    bool any = false;
    for (int i = 0; i < muon->batch_count; i++) any = any || is_enabled(&muon->batches[i], schedule.enabled);
    if (!any) return STATUS_OK;
    TRY(optim_cuda_muon_launch_begin(muon->matrices, muon->tiles, muon->tile_count, muon->groups, schedule, stream));
    TRY(device_event_record(muon->begun, stream));
    for (int lane = 0; lane < muon->lane_count; lane++) {
        const Lane *l = &muon->lanes[lane];
        if (!lane_in_use(muon, lane, schedule.enabled)) continue;
        if (lane > 0) TRY(device_stream_wait(l->stream, muon->begun));
        for (int i = 0; i < muon->batch_count; i++) {
            const Batch *b = &muon->batches[i];
            if (b->lane == lane && is_enabled(b, schedule.enabled)) TRY(iterate(b, l->gemm));
        }
        if (lane > 0) {
            TRY(device_event_record(l->done, l->stream));
            TRY(device_stream_wait(stream, l->done));
        }
    }
    return optim_cuda_muon_launch_end(muon->matrices, muon->tiles, muon->tile_count, muon->groups, schedule, stream);
}

/* ---- creation ---- */

static bool belongs(const OptimTensor *t, const Batch *b) {
    return b->group_index == t->group && b->rows == t->rows && b->columns == t->columns;
}

static Batch *find_batch(CudaMuon *muon, const OptimSpec *spec, const OptimTensor *tensor) {
    for (int i = 0; i < muon->batch_count; i++) {
        if (belongs(tensor, &muon->batches[i])) return &muon->batches[i];
    }
    Batch *b = &muon->batches[muon->batch_count++];
    *b = (Batch){.group = spec->groups[tensor->group],
                 .group_index = tensor->group,
                 .rows = tensor->rows,
                 .columns = tensor->columns,
                 .padded_rows = padded(tensor->rows),
                 .padded_columns = padded(tensor->columns)};
    return b;
}

/* Sorts the batches by decreasing work; those of equal work stay in the tensors' order. */
static void sort_batches(CudaMuon *muon) {
    for (int i = 1; i < muon->batch_count; i++) {
        Batch b = muon->batches[i];
        int to = i;
        for (; to > 0 && muon->batches[to - 1].work < b.work; to--) muon->batches[to] = muon->batches[to - 1];
        muon->batches[to] = b;
    }
}

static Status make_batches(CudaMuon *muon, const OptimSpec *spec) {
    TRY(memory_calloc((size_t)spec->tensor_count, sizeof *muon->batches, &muon->batches));
    for (int i = 0; i < spec->tensor_count; i++) {
        const OptimTensor *t = &spec->tensors[i];
        if (spec->groups[t->group].rule != OPTIM_MUON) continue;
        find_batch(muon, spec, t)->count++;
        muon->matrix_count++;
    }
    for (int i = 0; i < muon->batch_count; i++) shape_products(&muon->batches[i]);
    sort_batches(muon);
    muon->lane_count = muon->batch_count < MAX_LANES ? muon->batch_count : MAX_LANES;
    for (int i = 0; i < muon->batch_count; i++) {
        muon->batches[i].lane = i % MAX_LANES;
        muon->tile_count += muon->batches[i].count * tiles_of(&muon->batches[i]);
    }
    return STATUS_OK;
}

static Status make_lanes(CudaMuon *muon, DeviceStream *stream) {
    TRY(device_event_create(&muon->begun));
    for (int i = 0; i < muon->lane_count; i++) {
        Lane *lane = &muon->lanes[i];
        if (i == 0) {
            lane->stream = stream;
        } else {
            TRY(device_stream_create(&lane->stream));
            TRY(device_event_create(&lane->done));
        }
        TRY(optim_cuda_gemm_create(lane->stream, &lane->gemm));
    }
    return STATUS_OK;
}

/* Takes `bytes` of the arena; only counts if `base` is NULL. */
static void *muon_cut(uint8_t *base, size_t *at, size_t bytes) {
    void *part = base == NULL ? NULL : base + *at;
    *at += round_up(bytes, BUFFER_ALIGNMENT);
    return part;
}

static size_t cut_arena(CudaMuon *muon, uint8_t *base) {
    size_t at = 0, matrices = (size_t)muon->matrix_count;
    for (int i = 0; i < muon->batch_count; i++) {
        Batch *b = &muon->batches[i];
        size_t x_bytes = (size_t)(b->count * matrix_elems(b)) * STORAGE_BYTES;
        size_t square_bytes = (size_t)(b->count * small_side(b) * small_side(b)) * STORAGE_BYTES;
        b->x[0] = muon_cut(base, &at, x_bytes);
        b->x[1] = muon_cut(base, &at, x_bytes);
        b->square = muon_cut(base, &at, square_bytes);
        b->poly = muon_cut(base, &at, square_bytes);
    }
    muon->scales = muon_cut(base, &at, matrices * sizeof *muon->scales);
    muon->matrices = muon_cut(base, &at, matrices * sizeof *muon->matrices);
    muon->tiles = muon_cut(base, &at, (size_t)muon->tile_count * sizeof *muon->tiles);
    return at;
}

static CudaMuonMatrix describe_matrix(const Batch *b, int in_batch, const OptimTensor *t) {
    size_t before = (size_t)(in_batch * matrix_elems(b)) * STORAGE_BYTES;
    return (CudaMuonMatrix){.value = t->value,
                            .gradient = t->gradient,
                            .x = (uint8_t *)b->x[0] + before,
                            .last = (uint8_t *)b->x[b->group.iterations % 2] + before,
                            .rows = t->rows,
                            .columns = t->columns,
                            .row_elems = b->padded_columns,
                            .elems = matrix_elems(b),
                            .chunk_count = (int32_t)optim_cuda_chunks_of(t),
                            .group = b->group_index};
}

/* Fills the tables, batch by batch. */
static void fill_tables(const CudaMuon *muon, const OptimSpec *spec, const float *momentum, const float *sums,
                        const int64_t *first_chunk, CudaMuonMatrix *matrices, CudaMuonTile *tiles) {
    int matrix = 0;
    int64_t tile = 0;
    for (int i = 0; i < muon->batch_count; i++) {
        const Batch *b = &muon->batches[i];
        int in_batch = 0;
        for (int t = 0; t < spec->tensor_count; t++) {
            if (!belongs(&spec->tensors[t], b)) continue;
            matrices[matrix] = describe_matrix(b, in_batch++, &spec->tensors[t]);
            matrices[matrix].momentum = momentum + spec->offsets[t];
            matrices[matrix].sums = sums + 2 * first_chunk[t];
            matrices[matrix].scale = muon->scales + matrix;
            for (int64_t begin = 0; begin < matrix_elems(b); begin += CUDA_OPTIM_CHUNK) {
                tiles[tile++] = (CudaMuonTile){.begin = begin, .matrix = matrix};
            }
            matrix++;
        }
    }
}

static Status upload_tables(CudaMuon *muon, const OptimSpec *spec, const float *momentum, const float *sums,
                            const int64_t *first_chunk) {
    Status status = STATUS_OK;
    DeviceStream *stream = muon->lanes[0].stream;
    CudaMuonMatrix *matrices = NULL;
    CudaMuonTile *tiles = NULL;
    size_t matrix_bytes = (size_t)muon->matrix_count * sizeof *matrices;
    size_t tile_bytes = (size_t)muon->tile_count * sizeof *tiles;
    TRY_GOTO(memory_calloc(1, matrix_bytes, &matrices));
    TRY_GOTO(memory_calloc(1, tile_bytes, &tiles));
    fill_tables(muon, spec, momentum, sums, first_chunk, matrices, tiles);
    TRY_GOTO(device_copy(muon->matrices, matrices, matrix_bytes, stream));
    TRY_GOTO(device_copy(muon->tiles, tiles, tile_bytes, stream));
    TRY_GOTO(device_stream_synchronize(stream));
done:
    memory_free(tiles);
    memory_free(matrices);
    return status;
}

/* Runs every product once on zeros, so that no algorithm is chosen and no kernel loaded while a step is recorded. */
static Status warm_up(CudaMuon *muon) {
    for (int i = 0; i < muon->batch_count; i++) {
        const Batch *b = &muon->batches[i];
        const Lane *lane = &muon->lanes[b->lane];
        TRY(iterate(b, lane->gemm));
        TRY(device_stream_synchronize(lane->stream));
    }
    return STATUS_OK;
}

Status optim_cuda_muon_create(const OptimSpec *spec, const OptimGroup *groups, float *momentum, float *sums,
                              const int64_t *first_chunk, DeviceStream *stream, CudaMuon **out) {
    Status status = STATUS_OK;
    CudaMuon *muon = NULL;
    TRY(memory_calloc(1, sizeof *muon, &muon));
    muon->groups = groups;
    TRY_GOTO(make_batches(muon, spec));
    if (muon->matrix_count == 0) goto done;
    TRY_GOTO(make_lanes(muon, stream));
    size_t bytes = cut_arena(muon, NULL);
    TRY_GOTO(device_alloc(bytes, &muon->arena));
    cut_arena(muon, muon->arena);
    TRY_GOTO(device_fill(muon->arena, 0, bytes, stream));
    TRY_GOTO(upload_tables(muon, spec, momentum, sums, first_chunk));
    TRY_GOTO(warm_up(muon));
    *out = muon;
    muon = NULL;
done:
    optim_cuda_muon_destroy(muon);
    return status;
}

void optim_cuda_muon_destroy(CudaMuon *muon) {
    if (muon == NULL) return;
    device_free(muon->arena);
    for (int i = muon->lane_count - 1; i >= 0; i--) {
        optim_cuda_gemm_destroy(muon->lanes[i].gemm);
        device_event_destroy(muon->lanes[i].done);
        if (i > 0) device_stream_destroy(muon->lanes[i].stream);
    }
    device_event_destroy(muon->begun);
    memory_free(muon->batches);
    memory_free(muon);
}
