/* Matrix products on the GPU: the only interface to cuBLAS. Row-major matrices; sums are float32, in an order that
 * depends on the shape alone, so that the same operands give the same bytes every time. */
#ifndef CGXFFCV_OPTIM_CUDA_GEMM_H
#define CGXFFCV_OPTIM_CUDA_GEMM_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "device/device.h"

typedef enum CudaGemmType { CUDA_GEMM_FLOAT32, CUDA_GEMM_BFLOAT16, CUDA_GEMM_FLOAT16 } CudaGemmType;

/* `batch` products D = alpha op(A) op(B) + beta C: op(A) is m x k, op(B) k x n, C and D m x n. All sizes, row lengths
 * and strides are in elements; all but `batch` are multiples of 8. */
typedef struct CudaGemmShape {
    int64_t m, n, k;
    int64_t row_a, row_b, row_d;          /* from one stored row to the next; C is stored like D */
    int64_t stride_a, stride_b, stride_d; /* from one matrix of the batch to the next */
    int batch;
    bool transpose_a, transpose_b; /* A is stored as k x m; B is stored as n x k */
    CudaGemmType in;               /* of A and B: bfloat16 or float16 */
    CudaGemmType out;              /* of C and D: the same as `in`, or float32 */
} CudaGemmShape;

/* A library handle with its own workspace, for products on one stream. */
typedef struct CudaGemm CudaGemm;

Status optim_cuda_gemm_create(DeviceStream *stream, CudaGemm **out);
/* Does nothing if NULL. */
void optim_cuda_gemm_destroy(CudaGemm *gemm);

/* Enqueues the products on the stream. Addresses are multiples of 16. A and B may be the same memory, C may be D (and
 * is not read if beta is 0), D overlaps neither A nor B. The first call with a shape chooses the algorithm; later calls
 * allocate nothing and may be captured. */
Status optim_cuda_gemm_batched(CudaGemm *gemm, const CudaGemmShape *shape, float alpha, const void *a, const void *b,
                               float beta, const void *c, void *d);

#endif
