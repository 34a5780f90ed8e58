/* Kernels with known results and kernels with known faults: `selftest CASE` runs one of them (test_emulator.py). */
#include "nn/cuda/storage.cuh"

#include <stdio.h>
#include <stdlib.h>

enum { THREADS = 256, BLOCKS = 5, COUNT = THREADS * BLOCKS };

static __constant__ int table[4] = {1, 10, 100, 1000};

/* ---- right -------------------------------------------------------------------------------------------------------*/

template <typename T> __device__ __forceinline__ T block_max(T value) {
    __shared__ T partial[MAX_BLOCK / WARP];
    int thread = thread_index(), lane = thread % WARP;
    value = warp_max(value);
    __syncthreads();
    if (lane == 0) partial[thread / WARP] = value;
    __syncthreads();
    return warp_max(partial[lane < thread_count() / WARP ? lane : 0]);
}

template <typename T> __global__ void reductions(const T *__restrict__ from, float *__restrict__ to) {
    DYNAMIC_SHARED(float, mirror);
    __shared__ float first;
    int thread = (int)threadIdx.x;
    float value = to_float(from[blockIdx.x * blockDim.x + threadIdx.x]);
    mirror[thread] = value;
    __syncthreads();
    float other = mirror[THREADS - 1 - thread];
    if (thread == 0) first = other;
    float sum = block_sum(value), largest = block_max(other), again = (float)block_sum((double)value);
    float warp = warp_sum(value), next = __shfl_down_sync(WHOLE_WARP, value, 1);
    unsigned odd = __ballot_sync(WHOLE_WARP, (int)value % 2);
    if (thread != 33) return;
    float *result = to + blockIdx.x * 8;
    float results[] = {sum, largest, again, warp, next, (float)__popc(odd), first, (float)table[blockIdx.x % 4]};
    for (int i = 0; i < 8; i++) result[i] = results[i];
}

template <typename T> __global__ void twice(const T *from, T *to, size_t count) {
    GRID_LOOP(i, count / Pack<T>::PACK) {
        float values[Pack<T>::PACK];
        load_floats(from + i * Pack<T>::PACK, values);
        for (int lane = 0; lane < Pack<T>::PACK; lane++) values[lane] *= 2.0f;
        store_floats(to + i * Pack<T>::PACK, values);
    }
}

/* The warp's lanes hand values on through shared memory, ordered by __syncwarp alone. */
__global__ void warp_transpose(float *values) {
    __shared__ float tile[THREADS];
    int thread = (int)threadIdx.x, lane = thread % WARP;
    tile[thread] = values[thread];
    __syncwarp();
    float other = tile[thread - lane + (WARP - 1 - lane)];
    __syncwarp();
    tile[thread] = other;
    values[thread] = tile[thread];
}

/* The last block to end adds up what the others left. */
__global__ void last_block(float *partial, unsigned *ticket, float *total) {
    __shared__ bool last;
    float sum = block_sum(1.0f);
    if (threadIdx.x == 0) {
        partial[blockIdx.x] = sum;
        __threadfence();
        last = atomicAdd(ticket, 1u) == gridDim.x - 1;
    }
    __syncthreads();
    if (!last || threadIdx.x != 0) return;
    __threadfence();
    float all = 0.0f;
    for (unsigned i = 0; i < gridDim.x; i++) all += partial[i];
    *total = all;
}

/* ---- wrong -------------------------------------------------------------------------------------------------------*/

__global__ void divergent_barrier(float *values) {
    if (threadIdx.x < THREADS / 2) __syncthreads();
    values[threadIdx.x] = 1.0f;
}

__global__ void divergent_shuffle(float *values) {
    float value = values[threadIdx.x];
    if (threadIdx.x % WARP < 16) value = warp_sum(value);
    values[threadIdx.x] = value;
}

__global__ void out_of_bounds(float *values, int count) { values[count + (int)threadIdx.x] = 1.0f; }

__global__ void too_early(const float *from, float *to) {
    float value = from[threadIdx.x];
    grid_begin();
    to[threadIdx.x] = value;
}

__global__ void misaligned(float *values) { store_pack(values + 1, Pack<float>{}); }

__global__ void unwritten_shared(float *values) {
    DYNAMIC_SHARED(float, tile);
    if (threadIdx.x > 0) tile[threadIdx.x] = 1.0f;
    __syncthreads();
    values[threadIdx.x] = tile[threadIdx.x];
}

__global__ void unwritten_device(const float *from, float *to) { to[threadIdx.x] = from[threadIdx.x]; }

__global__ void missing_barrier(float *values) {
    __shared__ float tile[THREADS];
    tile[threadIdx.x] = values[threadIdx.x];
    values[threadIdx.x] = tile[(threadIdx.x + WARP) % THREADS];
}

__global__ void racing_threads(float *values) { values[threadIdx.x / 2] = (float)threadIdx.x; }

__global__ void racing_blocks(float *values) {
    if (threadIdx.x == 0) values[0] = (float)blockIdx.x;
}

__global__ void beyond_shared(float *values) {
    DYNAMIC_SHARED(float, tile);
    tile[threadIdx.x + 1] = values[threadIdx.x];
}

/* ---- running them ------------------------------------------------------------------------------------------------*/

template <typename T> static Status write_numbers(T *device, int count) {
    T values[COUNT];
    for (int i = 0; i < count; i++) values[i] = from_float<T>((float)(i % 100));
    return device_copy(device, values, sizeof(T) * (size_t)count, NULL);
}

static Status run_reductions(int precision) {
    void *from;
    float *to, results[BLOCKS * 8];
    TRY(device_alloc(COUNT * sizeof(float), &from));
    TRY(device_alloc(sizeof results, &to));
    DISPATCH_STORAGE(precision, T, {
        TRY(write_numbers((T *)from, COUNT));
        TRY(LAUNCH(reductions<T>, BLOCKS, THREADS, THREADS * sizeof(float), NULL, (T *)from, to));
    });
    TRY(device_copy(results, to, sizeof results, NULL));
    for (int i = 0; i < BLOCKS * 8; i++) printf("%g\n", (double)results[i]);
    device_free(from);
    device_free(to);
    return STATUS_OK;
}

static Status run_twice(int precision) {
    void *from, *to;
    TRY(device_alloc(COUNT * sizeof(float), &from));
    TRY(device_alloc(COUNT * sizeof(float), &to));
    DISPATCH_STORAGE(precision, T, {
        T results[COUNT];
        TRY(write_numbers((T *)from, COUNT));
        TRY(LAUNCH(twice<T>, 2, 64, 0, NULL, (T *)from, (T *)to, COUNT));
        TRY(device_copy(results, to, sizeof results, NULL));
        for (int i = 0; i < COUNT; i++) printf("%g\n", (double)to_float(results[i]));
    });
    device_free(from);
    device_free(to);
    return STATUS_OK;
}

static Status print_floats(const float *device, int count) {
    float values[COUNT];
    TRY(device_copy(values, device, sizeof(float) * (size_t)count, NULL));
    for (int i = 0; i < count; i++) printf("%g\n", (double)values[i]);
    return STATUS_OK;
}

static Status run_last_block(float *values) {
    float *partial, *total;
    unsigned *ticket;
    (void)values;
    TRY(device_alloc(BLOCKS * sizeof(float), &partial));
    TRY(device_alloc(sizeof(float), &total));
    TRY(device_alloc(sizeof(unsigned), &ticket));
    TRY(device_fill(ticket, 0, sizeof(unsigned), NULL));
    TRY(LAUNCH(last_block, BLOCKS, THREADS, 0, NULL, partial, ticket, total));
    return print_floats(total, 1);
}

static Status run_case(const char *name, float *values) {
    float *fresh;
    TRY(device_alloc(THREADS * sizeof(float), &fresh));
#define CASE(kernel, grid, shared, ...)                                                                                \
    if (strcmp(name, #kernel) == 0) return LAUNCH(kernel, grid, THREADS, shared, NULL, __VA_ARGS__)
    CASE(divergent_barrier, 1, 0, values);
    CASE(divergent_shuffle, 1, 0, values);
    CASE(out_of_bounds, 1, 0, values, COUNT);
    CASE(misaligned, 1, 0, values);
    CASE(unwritten_shared, 1, THREADS * sizeof(float), values);
    CASE(unwritten_device, 1, 0, fresh, values);
    CASE(missing_barrier, 1, 0, values);
    CASE(racing_threads, 1, 0, values);
    CASE(racing_blocks, 2, 0, values);
    CASE(beyond_shared, 1, THREADS * sizeof(float), values);
    return error_fail(STATUS_ARGUMENT, "no case %s", name);
}

static Status run(const char *name) {
    float *values, host;
    TRY(device_alloc(COUNT * sizeof(float), &values));
    TRY(write_numbers(values, COUNT));
    if (strncmp(name, "reductions", 10) == 0) return run_reductions(name[10] - '0');
    if (strncmp(name, "twice", 5) == 0) return run_twice(name[5] - '0');
    if (strcmp(name, "last_block") == 0) return run_last_block(values);
    if (strcmp(name, "warp_transpose") == 0) {
        TRY(LAUNCH(warp_transpose, 1, THREADS, 0, NULL, values));
        return print_floats(values, THREADS);
    }
    if (strcmp(name, "too_early") == 0) return LAUNCH_AFTER(too_early, 1, WARP, 0, NULL, values, values);
    if (strcmp(name, "host_pointer") == 0) return LAUNCH(unwritten_device, 1, WARP, 0, NULL, &host, values);
    if (strcmp(name, "too_many_threads") == 0) return LAUNCH(unwritten_device, 1, 1025, 0, NULL, values, values);
    if (strcmp(name, "host_access") == 0) {
        *(volatile float *)values = 1.0f;
        return STATUS_OK;
    }
    if (strcmp(name, "freed") == 0) {
        device_free(values);
        return LAUNCH(racing_blocks, 1, 32, 0, NULL, values);
    }
    return run_case(name, values);
}

int main(int count, char **arguments) {
    Status status = run(count > 1 ? arguments[1] : "");
    if (status != STATUS_OK) printf("failed: %s\n", error_record()->message);
    return status == STATUS_OK ? 0 : 1;
}
