/* Stands in for optim/cuda/cublas.c: the same products as plain sums in float32, taken in the order of k. */
#include "machine.h"

#include <stdlib.h>

#include <vector>

extern "C" {
#include "optim/cuda/gemm.h"
}

struct CudaGemm {
    cudaStream_t stream;
};

namespace {

const int64_t ALIGNMENT = 16, MULTIPLE = 8;

size_t size_of(CudaGemmType type) { return type == CUDA_GEMM_FLOAT32 ? 4 : 2; }

float load(CudaGemmType type, const void *from, int64_t index) {
    if (type == CUDA_GEMM_FLOAT32) return ((const float *)from)[index];
    if (type == CUDA_GEMM_FLOAT16) return __half2float(((const __half *)from)[index]);
    return __bfloat162float(((const __nv_bfloat16 *)from)[index]);
}

void store(CudaGemmType type, void *to, int64_t index, float value) {
    if (type == CUDA_GEMM_FLOAT32)
        ((float *)to)[index] = value;
    else if (type == CUDA_GEMM_FLOAT16)
        ((__half *)to)[index] = __float2half_rn(value);
    else
        ((__nv_bfloat16 *)to)[index] = __float2bfloat16_rn(value);
}

/* op(X) of rows x columns as float32. */
std::vector<float> unpack(CudaGemmType type, const void *from, int64_t start, int64_t row, bool transpose, int64_t rows,
                          int64_t columns) {
    std::vector<float> values((size_t)(rows * columns));
    for (int64_t i = 0; i < rows; i++) {
        for (int64_t j = 0; j < columns; j++) {
            int64_t index = start + (transpose ? j * row + i : i * row + j);
            values[(size_t)(i * columns + j)] = load(type, from, index);
        }
    }
    return values;
}

struct Product {
    CudaGemmShape shape;
    float alpha, beta;
    const void *a, *b, *c;
    void *d;
};

void multiply_one(const Product &product, int64_t number) {
    const CudaGemmShape &s = product.shape;
    std::vector<float> a = unpack(s.in, product.a, number * s.stride_a, s.row_a, s.transpose_a, s.m, s.k);
    std::vector<float> b = unpack(s.in, product.b, number * s.stride_b, s.row_b, s.transpose_b, s.k, s.n);
    std::vector<float> sums((size_t)s.n);
    for (int64_t i = 0; i < s.m; i++) {
        sums.assign((size_t)s.n, 0.0f);
        for (int64_t k = 0; k < s.k; k++) {
            float factor = a[(size_t)(i * s.k + k)];
            for (int64_t j = 0; j < s.n; j++) sums[(size_t)j] += factor * b[(size_t)(k * s.n + j)];
        }
        for (int64_t j = 0; j < s.n; j++) {
            int64_t index = number * s.stride_d + i * s.row_d + j;
            float value = product.alpha * sums[(size_t)j];
            if (product.beta != 0.0f) value += product.beta * load(s.out, product.c, index);
            store(s.out, product.d, index, value);
        }
    }
}

/* Of an operand of batch matrices, from the first byte to the last. */
size_t extent(CudaGemmType type, int64_t rows, int64_t columns, int64_t row, int64_t stride, int batch) {
    return (size_t)((batch - 1) * stride + (rows - 1) * row + columns) * size_of(type);
}

Status check(const CudaGemmShape *s) {
    const int64_t sizes[] = {s->m, s->n, s->k, s->row_a, s->row_b, s->row_d, s->stride_a, s->stride_b, s->stride_d};
    for (int64_t size : sizes) {
        if (size < 0 || size % MULTIPLE != 0) {
            FAIL(STATUS_ARGUMENT, "matrix product: size, row or stride %lld is no multiple of %lld", (long long)size,
                 (long long)MULTIPLE);
        }
    }
    if (s->m < 1 || s->n < 1 || s->k < 1 || s->batch < 1 || s->in == CUDA_GEMM_FLOAT32 ||
        (s->out != s->in && s->out != CUDA_GEMM_FLOAT32)) {
        FAIL(STATUS_ARGUMENT, "matrix product: sizes or types that there are not");
    }
    return STATUS_OK;
}

} // namespace

extern "C" Status optim_cuda_gemm_create(DeviceStream *stream, CudaGemm **out) {
    *out = new CudaGemm{(cudaStream_t)stream};
    return STATUS_OK;
}

extern "C" void optim_cuda_gemm_destroy(CudaGemm *gemm) { delete gemm; }

extern "C" Status optim_cuda_gemm_batched(CudaGemm *gemm, const CudaGemmShape *shape, float alpha, const void *a,
                                          const void *b, float beta, const void *c, void *d) {
    const CudaGemmShape &s = *shape;
    TRY(check(shape));
    for (const void *address : {a, b, (const void *)d}) {
        if ((uintptr_t)address % ALIGNMENT != 0) FAIL(STATUS_ARGUMENT, "matrix product: address %p", address);
    }
    Product product = {s, alpha, beta, a, b, c, d};
    auto work = [product]() {
        for (int64_t i = 0; i < product.shape.batch; i++) multiply_one(product, i);
        return cudaSuccess;
    };
    size_t a_bytes = s.transpose_a ? extent(s.in, s.k, s.m, s.row_a, s.stride_a, s.batch)
                                   : extent(s.in, s.m, s.k, s.row_a, s.stride_a, s.batch);
    size_t b_bytes = s.transpose_b ? extent(s.in, s.n, s.k, s.row_b, s.stride_b, s.batch)
                                   : extent(s.in, s.k, s.n, s.row_b, s.stride_b, s.batch);
    size_t d_bytes = extent(s.out, s.m, s.n, s.row_d, s.stride_d, s.batch);
    Operand addend = beta != 0.0f ? Operand{c, d_bytes, false} : Operand{a, a_bytes, false};
    cudaError_t error = machine_submit("matrix product", gemm->stream, work,
                                       {{a, a_bytes, false}, {b, b_bytes, false}, addend, {d, d_bytes, true}});
    if (error == cudaSuccess) return STATUS_OK;
    return error_fail(STATUS_CUDA, "matrix product: %s", cudaGetErrorString(error));
}
