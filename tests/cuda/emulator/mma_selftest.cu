/* Tensor-core products and asynchronous copies with results that tests/cuda/test_mma.py knows. */
#include "device/mma.cuh"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ROWS 16
#define COLUMNS 24 /* of A: one product of 16, one of 8 */
#define OUT 16
#define A_STRIDE 40 /* elements */
#define B_STRIDE 24
#define SHARED_BYTES (2 * (ROWS * A_STRIDE + 24 * B_STRIDE))

/* C = A B^T: A is 16 x 24, B 16 x 24, numbers from 0 to 6 less 3. `transposed`: B lies as 24 x 16. */
template <typename T> __global__ void product(const T *a, const T *b, float *c, bool transposed) {
    DYNAMIC_SHARED(T, left);
    T *right = left + ROWS * A_STRIDE;
    int lane = thread_index(), g = lane / 4, t = lane % 4;
    int across = transposed ? OUT : COLUMNS, rows = transposed ? COLUMNS : OUT;
    for (int i = lane; i < ROWS * COLUMNS / 8; i += WARP) {
        cp_async_16(left + i / 3 * A_STRIDE + i % 3 * 8, a + i * 8, false);
    }
    cp_async_commit();
    for (int i = lane; i < rows * across / 8; i += WARP) {
        int in_row = across / 8;
        cp_async_16(right + i / in_row * B_STRIDE + i % in_row * 8, b + i * 8, false);
    }
    cp_async_commit();
    cp_async_wait<0>();
    __syncwarp();
    float sums[2][4] = {};
    uint32_t whole[4], rest[2], columns[2][4];
    ldmatrix_x4(whole, left + lane % 16 * A_STRIDE + lane / 16 * 8);
    ldmatrix_x2(rest, left + lane % 16 * A_STRIDE + 16);
    for (int n = 0; n < 2; n++) { /* the 8 columns n; registers: rows 0, 8, 16 of B, the last once more */
        int part = lane / 8 < 3 ? lane / 8 : 2;
        if (transposed) {
            ldmatrix_x4_trans(columns[n], right + (part * 8 + lane % 8) * B_STRIDE + n * 8);
        } else {
            ldmatrix_x4(columns[n], right + (n * 8 + lane % 8) * B_STRIDE + part * 8);
        }
        mma_16816<T>(sums[n], whole, columns[n][0], columns[n][1]);
        mma_1688<T>(sums[n], rest[0], rest[1], columns[n][2]);
        for (int i = 0; i < 4; i++) c[(g + i / 2 * 8) * OUT + n * 8 + 2 * t + i % 2] = sums[n][i];
    }
}

__global__ void cleared(const uint4 *from, uint4 *to) {
    DYNAMIC_SHARED(uint4, shared);
    int lane = thread_index();
    cp_async_16(shared + lane, from + lane, lane % 3 == 1);
    cp_async_commit();
    cp_async_wait<0>();
    to[lane] = shared[lane];
}

/* Reads what has not been waited for. */
__global__ void too_early(const uint4 *from, uint4 *to) {
    DYNAMIC_SHARED(uint4, shared);
    cp_async_16(shared + thread_index(), from + thread_index(), false);
    cp_async_commit();
    cp_async_wait<1>();
    to[thread_index()] = shared[thread_index()];
}

template <typename T> static Status run_product(bool transposed) {
    T host[2][OUT * COLUMNS], *a, *b;
    float *c, out[ROWS * OUT];
    for (int i = 0; i < OUT * COLUMNS; i++) {
        int row = i / COLUMNS, column = i % COLUMNS;
        host[0][i] = from_float<T>((float)((3 * row + 5 * column + row * column) % 7 - 3));
        int place = transposed ? column * OUT + row : i;
        host[1][place] = from_float<T>((float)((2 * row + 3 * column + row * column) % 7 - 3));
    }
    TRY(device_alloc(sizeof host[0], &a));
    TRY(device_alloc(sizeof host[0], &b));
    TRY(device_alloc(sizeof out, &c));
    TRY(device_copy(a, host[0], sizeof host[0], NULL));
    TRY(device_copy(b, host[1], sizeof host[1], NULL));
    TRY(LAUNCH(product<T>, 1, WARP, SHARED_BYTES, NULL, a, b, c, transposed));
    TRY(device_copy(out, c, sizeof out, NULL));
    TRY(device_stream_synchronize(NULL));
    for (int i = 0; i < ROWS * OUT; i++) printf("%.9g\n", (double)out[i]);
    return STATUS_OK;
}

static Status run_copies(bool early) {
    uint32_t host[WARP * 4];
    uint4 *from, *to;
    for (uint32_t i = 0; i < WARP * 4; i++) host[i] = i + 1;
    TRY(device_alloc(sizeof host, &from));
    TRY(device_alloc(sizeof host, &to));
    TRY(device_copy(from, host, sizeof host, NULL));
    TRY(LAUNCH(early ? too_early : cleared, 1, WARP, WARP * sizeof(uint4), NULL, from, to));
    TRY(device_copy(host, to, sizeof host, NULL));
    TRY(device_stream_synchronize(NULL));
    for (int i = 0; i < WARP * 4; i++) printf("%u\n", host[i]);
    return STATUS_OK;
}

static Status run(const char *name) {
    if (strcmp(name, "float16") == 0) return run_product<__half>(false);
    if (strcmp(name, "float16_transposed") == 0) return run_product<__half>(true);
    if (strcmp(name, "bfloat16") == 0) return run_product<__nv_bfloat16>(false);
    if (strcmp(name, "bfloat16_transposed") == 0) return run_product<__nv_bfloat16>(true);
    return run_copies(strcmp(name, "too_early") == 0);
}

int main(int count, char **arguments) {
    Status status = run(count > 1 ? arguments[1] : "");
    if (status != STATUS_OK) printf("failed: %s\n", error_record()->message);
    return status == STATUS_OK ? 0 : 1;
}
