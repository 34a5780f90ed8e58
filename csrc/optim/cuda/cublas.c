/* Matrix products by cublasLt, which is loaded when the first handle is created. A handle owns its workspace, and a
 * choice (descriptors and the algorithm that the library's heuristic prefers) for each shape it has seen. Algorithms
 * are chosen by that heuristic, never by timing, and without reductions in the output's type, so that a shape's sums
 * are always taken in the same order. */
#include "optim/cuda/gemm.h"

#include <cublasLt.h>
#include <pthread.h>
#include <stdio.h>

#include "base/library.h"
#include "base/memory.h"

#define WORKSPACE_BYTES ((size_t)32 << 20)
#define ALIGNMENT_BYTES 16u

typedef struct GemmChoice {
    CudaGemmShape shape;
    cublasLtMatmulDesc_t product;   /* owned, like all descriptors */
    cublasLtMatrixLayout_t a, b, d; /* the library's operands: it is column-major, so its A is our B */
    cublasLtMatmulAlgo_t algorithm;
} GemmChoice;

struct CudaGemm {
    cublasLtHandle_t library; /* owned */
    DeviceStream *stream;     /* borrowed */
    void *workspace;          /* owned, on the device */
    GemmChoice *choices;      /* owned */
    size_t count;
};

/* ---- the library ---- */

#define REMEDY "pip install 'cgxffcv[cuda13]', or apt install libcublas-13-0"
#define CUBLAS_CALLS(X)                                                                                                \
    X(cublasLtGetStatusString)                                                                                         \
    X(cublasLtMatrixLayoutCreate)                                                                                      \
    X(cublasLtMatrixLayoutSetAttribute)                                                                                \
    X(cublasLtMatmulDescCreate)                                                                                        \
    X(cublasLtMatmulDescSetAttribute)                                                                                  \
    X(cublasLtMatmulPreferenceCreate)                                                                                  \
    X(cublasLtMatmulPreferenceSetAttribute)                                                                            \
    X(cublasLtMatmulAlgoGetHeuristic)                                                                                  \
    X(cublasLtMatmulPreferenceDestroy)                                                                                 \
    X(cublasLtMatrixLayoutDestroy)                                                                                     \
    X(cublasLtMatmulDescDestroy)                                                                                       \
    X(cublasLtCreate)                                                                                                  \
    X(cublasLtDestroy)                                                                                                 \
    X(cublasLtMatmul)

static struct {
#define CUBLAS_MEMBER(name) __typeof__(name) *name;
    CUBLAS_CALLS(CUBLAS_MEMBER)
#undef CUBLAS_MEMBER
} blas;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static char load_why[LIBRARY_WHY_BYTES]; /* why it is not loaded; "" if it is */

static void cublas_load(void) {
    static const LibraryRequest request = {.variable = "CGXFFCV_CUBLASLT_LIBRARY",
                                           .package = "nvidia/cu13/lib/libcublasLt.so.13",
                                           .name = "libcublasLt.so.13",
                                           .remedy = REMEDY};
    void *library = library_open(&request, load_why);
#define CUBLAS_FIND(name)                                                                                              \
    if (load_why[0] == '\0' && !library_function(library, #name, &blas.name)) {                                        \
        snprintf(load_why, sizeof load_why, "cublasLt has no " #name ": " REMEDY);                                     \
    }
    CUBLAS_CALLS(CUBLAS_FIND)
#undef CUBLAS_FIND
}

static Status cublas_open(void) {
    pthread_once(&once, cublas_load);
    if (load_why[0] != '\0') FAIL(STATUS_NOT_BUILT, "matrix products on GPUs need cublasLt: %s", load_why);
    return STATUS_OK;
}

/* ---- descriptors ---- */

static Status cublas_fail(cublasStatus_t error, const char *what) {
    Status code = error == CUBLAS_STATUS_ALLOC_FAILED       ? STATUS_MEMORY
                  : error == CUBLAS_STATUS_EXECUTION_FAILED ? STATUS_CUDA
                                                            : STATUS_LIBRARY;
    return error_fail(code, "%s: %s", what, blas.cublasLtGetStatusString(error));
}

#define TRY_CUBLAS(call)                                                                                               \
    do {                                                                                                               \
        cublasStatus_t try_cublas_ = (call);                                                                           \
        if (try_cublas_ != CUBLAS_STATUS_SUCCESS) return cublas_fail(try_cublas_, #call);                              \
    } while (0)

#define TRY_CUBLAS_GOTO(call)                                                                                          \
    do {                                                                                                               \
        cublasStatus_t try_cublas_ = (call);                                                                           \
        if (try_cublas_ != CUBLAS_STATUS_SUCCESS) {                                                                    \
            status = cublas_fail(try_cublas_, #call);                                                                  \
            goto done;                                                                                                 \
        }                                                                                                              \
    } while (0)

static bool same_shape(const CudaGemmShape *x, const CudaGemmShape *y) {
    return x->m == y->m && x->n == y->n && x->k == y->k && x->row_a == y->row_a && x->row_b == y->row_b &&
           x->row_d == y->row_d && x->stride_a == y->stride_a && x->stride_b == y->stride_b &&
           x->stride_d == y->stride_d && x->batch == y->batch && x->transpose_a == y->transpose_a &&
           x->transpose_b == y->transpose_b && x->in == y->in && x->out == y->out;
}

static cudaDataType_t data_type(CudaGemmType type) {
    return type == CUDA_GEMM_BFLOAT16 ? CUDA_R_16BF : type == CUDA_GEMM_FLOAT16 ? CUDA_R_16F : CUDA_R_32F;
}

/* `rows` rows, `row` elements apart, which are columns to the library. */
static Status make_layout(CudaGemmType type, int64_t rows, int64_t columns, int64_t row, int batch, int64_t stride,
                          cublasLtMatrixLayout_t *out) {
    TRY_CUBLAS(blas.cublasLtMatrixLayoutCreate(out, data_type(type), (uint64_t)columns, (uint64_t)rows, row));
    int32_t count = batch;
    TRY_CUBLAS(blas.cublasLtMatrixLayoutSetAttribute(*out, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count, sizeof count));
    TRY_CUBLAS(blas.cublasLtMatrixLayoutSetAttribute(*out, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &stride,
                                                     sizeof stride));
    return STATUS_OK;
}

/* D' = B' A': the operands are swapped, and each keeps its own transposition. */
static Status describe_choice(GemmChoice *choice) {
    const CudaGemmShape *s = &choice->shape;
    int32_t transpose_a = s->transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N;
    int32_t transpose_b = s->transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N;
    TRY_CUBLAS(blas.cublasLtMatmulDescCreate(&choice->product, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    TRY_CUBLAS(blas.cublasLtMatmulDescSetAttribute(choice->product, CUBLASLT_MATMUL_DESC_TRANSA, &transpose_a,
                                                   sizeof transpose_a));
    TRY_CUBLAS(blas.cublasLtMatmulDescSetAttribute(choice->product, CUBLASLT_MATMUL_DESC_TRANSB, &transpose_b,
                                                   sizeof transpose_b));
    TRY(make_layout(s->in, s->transpose_b ? s->n : s->k, s->transpose_b ? s->k : s->n, s->row_b, s->batch, s->stride_b,
                    &choice->a));
    TRY(make_layout(s->in, s->transpose_a ? s->k : s->m, s->transpose_a ? s->m : s->k, s->row_a, s->batch, s->stride_a,
                    &choice->b));
    return make_layout(s->out, s->m, s->n, s->row_d, s->batch, s->stride_d, &choice->d);
}

static Status cublas_choose(const CudaGemm *gemm, GemmChoice *choice) {
    Status status = STATUS_OK;
    cublasLtMatmulPreference_t preference = NULL;
    cublasLtMatmulHeuristicResult_t found;
    int count = 0;
    const size_t workspace = WORKSPACE_BYTES;
    const uint32_t alignment = ALIGNMENT_BYTES;
    const uint32_t reductions = CUBLASLT_REDUCTION_SCHEME_NONE | CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    static const cublasLtMatmulPreferenceAttributes_t aligned[] = {
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES};
    TRY_CUBLAS_GOTO(blas.cublasLtMatmulPreferenceCreate(&preference));
    TRY_CUBLAS_GOTO(blas.cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                                              &workspace, sizeof workspace));
    TRY_CUBLAS_GOTO(blas.cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                                                              &reductions, sizeof reductions));
    for (size_t i = 0; i < sizeof aligned / sizeof *aligned; i++) {
        TRY_CUBLAS_GOTO(
            blas.cublasLtMatmulPreferenceSetAttribute(preference, aligned[i], &alignment, sizeof alignment));
    }
    TRY_CUBLAS_GOTO(blas.cublasLtMatmulAlgoGetHeuristic(gemm->library, choice->product, choice->a, choice->b, choice->d,
                                                        choice->d, preference, 1, &found, &count));
    if (count < 1) {
        FAIL_GOTO(STATUS_LIBRARY, "cublasLt has no algorithm for %d products of %lld x %lld by %lld x %lld",
                  choice->shape.batch, (long long)choice->shape.m, (long long)choice->shape.k,
                  (long long)choice->shape.k, (long long)choice->shape.n);
    }
    choice->algorithm = found.algo;
done:
    if (preference != NULL) (void)blas.cublasLtMatmulPreferenceDestroy(preference);
    return status;
}

static void destroy_gemm_choice(GemmChoice *choice) {
    if (choice->d != NULL) (void)blas.cublasLtMatrixLayoutDestroy(choice->d);
    if (choice->b != NULL) (void)blas.cublasLtMatrixLayoutDestroy(choice->b);
    if (choice->a != NULL) (void)blas.cublasLtMatrixLayoutDestroy(choice->a);
    if (choice->product != NULL) (void)blas.cublasLtMatmulDescDestroy(choice->product);
}

static Status find_gemm_choice(CudaGemm *gemm, const CudaGemmShape *shape, const GemmChoice **out) {
    Status status = STATUS_OK;
    for (size_t i = 0; i < gemm->count; i++) {
        *out = &gemm->choices[i];
        if (same_shape(&gemm->choices[i].shape, shape)) return STATUS_OK;
    }
    GemmChoice choice = {.shape = *shape};
    TRY_GOTO(describe_choice(&choice));
    TRY_GOTO(cublas_choose(gemm, &choice));
    TRY_GOTO(
        memory_resize(&gemm->choices, gemm->count * sizeof *gemm->choices, (gemm->count + 1) * sizeof *gemm->choices));
    gemm->choices[gemm->count] = choice;
    *out = &gemm->choices[gemm->count++];
    choice = (GemmChoice){0};
done:
    destroy_gemm_choice(&choice);
    return status;
}

Status optim_cuda_gemm_create(DeviceStream *stream, CudaGemm **out) {
    Status status = STATUS_OK;
    CudaGemm *gemm = NULL;
    TRY(cublas_open());
    TRY(memory_calloc(1, sizeof *gemm, &gemm));
    gemm->stream = stream;
    TRY_CUBLAS_GOTO(blas.cublasLtCreate(&gemm->library));
    TRY_GOTO(device_alloc(WORKSPACE_BYTES, &gemm->workspace));
    TRY_GOTO(device_fill(gemm->workspace, 0, WORKSPACE_BYTES, stream)); /* products may read parts that they ignore */
    *out = gemm;
    gemm = NULL;
done:
    optim_cuda_gemm_destroy(gemm);
    return status;
}

void optim_cuda_gemm_destroy(CudaGemm *gemm) {
    if (gemm == NULL) return;
    for (size_t i = gemm->count; i > 0; i--) destroy_gemm_choice(&gemm->choices[i - 1]);
    memory_free(gemm->choices);
    device_free(gemm->workspace);
    if (gemm->library != NULL) (void)blas.cublasLtDestroy(gemm->library);
    memory_free(gemm);
}

Status optim_cuda_gemm_batched(CudaGemm *gemm, const CudaGemmShape *shape, float alpha, const void *a, const void *b,
                               float beta, const void *c, void *d) {
    const GemmChoice *choice = NULL;
    TRY(find_gemm_choice(gemm, shape, &choice));
    TRY_CUBLAS(blas.cublasLtMatmul(gemm->library, choice->product, &alpha, b, choice->a, a, choice->b, &beta,
                                   beta == 0 ? d : c, choice->d, d, choice->d, &choice->algorithm, gemm->workspace,
                                   WORKSPACE_BYTES, (cudaStream_t)gemm->stream));
    return STATUS_OK;
}
