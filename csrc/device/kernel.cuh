/* What all kernels share: launches that report failure, storage types, 16-byte accesses, sums in a fixed order.
 *
 * For .cu files only. A .cu file keeps its kernels to itself and exports extern "C" launchers that return Status. The
 * tests' emulator compiles the same files with a C++ compiler and replaces start_kernel and DYNAMIC_SHARED by its own,
 * so nothing else may launch a kernel or declare dynamic shared memory.
 *
 * The same input gives the same bytes in every run: no floating-point atomics anywhere. */
#ifndef CGXFFCV_DEVICE_KERNEL_CUH
#define CGXFFCV_DEVICE_KERNEL_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

extern "C" {
#include "base/status.h"
#include "device/device.h"
#include "device/probe.h"
}

#define WARP 32
#define WHOLE_WARP 0xffffffffu
#define MAX_BLOCK 1024
#define NOT_INLINE __attribute__((noinline))

/* ---- launching ---- */

/* Keeps a function parameter from taking part in template deduction: arguments convert to the kernel's types. */
template <typename T> struct AsDeclared { typedef T type; };

#ifndef CGXFFCV_EMULATED
#define SHARED_WITHOUT_ASKING (48u << 10)

/* Whether the next work captured on the stream depends on one kernel and nothing else. */
static inline bool follows_kernel(cudaStream_t stream) {
    enum cudaStreamCaptureStatus status;
    enum cudaGraphNodeType type;
    const cudaGraphNode_t *nodes;
    size_t count = 0;
    cudaError_t error = cudaStreamGetCaptureInfo(stream, &status, nullptr, nullptr, &nodes, nullptr, &count);
    bool one = error == cudaSuccess && status == cudaStreamCaptureStatusActive && count == 1;
    bool kernel = one && cudaGraphNodeGetType(nodes[0], &type) == cudaSuccess && type == cudaGraphNodeTypeKernel;
    if (error != cudaSuccess) (void)cudaGetLastError();
    return kernel;
}

/* `early`: in a graph, the kernel may start before the preceding kernel ends. */
template <typename... Parameters>
static cudaError_t start_kernel(const char *, void (*kernel)(Parameters...), bool early, dim3 grid, dim3 block,
                                size_t shared_bytes, cudaStream_t stream,
                                typename AsDeclared<Parameters>::type... arguments) {
    const void *function = reinterpret_cast<const void *>(kernel);
    if (shared_bytes > SHARED_WITHOUT_ASKING) {
        cudaError_t error =
            cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared_bytes);
        if (error != cudaSuccess) return error;
    }
    void *pointers[] = {(void *)&arguments..., nullptr};
    if (!early || !device_probe_early() || !follows_kernel(stream)) {
        return cudaLaunchKernel(function, grid, block, pointers, shared_bytes, stream);
    }
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream;
    config.attrs = &attribute;
    config.numAttrs = 1;
    return cudaLaunchKernelExC(&config, function, pointers);
}

/* `name` becomes a pointer to this block's dynamic shared memory, aligned to 16 bytes. */
#define DYNAMIC_SHARED(type, name)                                                                                     \
    extern __shared__ uint4 dynamic_shared_memory[];                                                                   \
    type *name = reinterpret_cast<type *>(dynamic_shared_memory)
#endif

static inline Status launch_failed(cudaError_t error, const char *kernel, dim3 grid, dim3 block, size_t shared_bytes) {
    (void)cudaGetLastError();
    return error_fail(
        STATUS_CUDA, "launching kernel %s (grid %u x %u x %u, block %u x %u x %u, %zu bytes of shared memory): %s%s",
        kernel, grid.x, grid.y, grid.z, block.x, block.y, block.z, shared_bytes, cudaGetErrorString(error),
        error == cudaErrorNoKernelImageForDevice
            ? "; rebuild with CGXFFCV_CUDA_ARCH set to this GPU's compute capability"
            : "");
}

template <typename... Parameters>
static Status launch_kernel(const char *name, void (*kernel)(Parameters...), bool early, dim3 grid, dim3 block,
                            size_t shared_bytes, cudaStream_t stream,
                            typename AsDeclared<Parameters>::type... arguments) {
    if (grid.x == 0 || grid.y == 0 || grid.z == 0) return STATUS_OK;
    cudaError_t error = start_kernel(name, kernel, early, grid, block, shared_bytes, stream, arguments...);
    return error == cudaSuccess ? STATUS_OK : launch_failed(error, name, grid, block, shared_bytes);
}

/* Launches a kernel on a stream (DeviceStream * or cudaStream_t), which may be capturing; a Status. Grid and block are
 * numbers or dim3; an empty grid does nothing. A kernel name with a comma goes into parentheses:
 * TRY(LAUNCH((scale<T, 4>), ceil_div(count, 256), 256, 0, stream, values, count)); */
#define LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                                                         \
    launch_kernel(#kernel, kernel, false, grid, block, shared_bytes, (cudaStream_t)(stream), __VA_ARGS__)

/* The same for kernels in which every thread calls grid_begin before it touches device memory, even data that other
 * kernels only read: in a graph such a kernel starts while the preceding one still runs. The emulator reports accesses
 * that come too early. CGXFFCV_LAUNCH=plain in the environment makes this the same as LAUNCH. */
#define LAUNCH_AFTER(kernel, grid, block, shared_bytes, stream, ...)                                                   \
    launch_kernel(#kernel, kernel, true, grid, block, shared_bytes, (cudaStream_t)(stream), __VA_ARGS__)

/* Waits until the preceding kernels are done and their writes visible; then lets the next one start. Whatever that one
 * reads before its own wait, only this kernel's work can still be unfinished. */
#ifdef CGXFFCV_EMULATED
__device__ static __forceinline__ void grid_begin(void) { emulator_grid_begin(); }
#else
__device__ static __forceinline__ void grid_begin(void) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    cudaGridDependencySynchronize();
    cudaTriggerProgrammaticLaunchCompletion();
#endif
}
#endif

/* ---- indices ---- */

__host__ __device__ static __forceinline__ size_t ceil_div(size_t value, size_t divisor) {
    return (value + divisor - 1) / divisor;
}

/* The thread's linear index in its block, of any shape, and the number of threads. */
__device__ static __forceinline__ int thread_index(void) {
    return (int)((threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x);
}
__device__ static __forceinline__ int thread_count(void) { return (int)(blockDim.x * blockDim.y * blockDim.z); }

/* A grid-stride loop over [0, count) with all threads of a one-dimensional grid. */
#define GRID_LOOP(index, count)                                                                                        \
    for (size_t index = (size_t)blockIdx.x * blockDim.x + threadIdx.x; index < (size_t)(count);                        \
         index += (size_t)gridDim.x * blockDim.x)

/* ---- storage types: float, __half, __nv_bfloat16 ---- */

__host__ __device__ static __forceinline__ float to_float(float value) { return value; }
__host__ __device__ static __forceinline__ float to_float(__half value) { return __half2float(value); }
__host__ __device__ static __forceinline__ float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }

/* Rounds to nearest even; beyond the type's range, to infinity. */
template <typename T> __host__ __device__ __forceinline__ T from_float(float value);
template <> __host__ __device__ __forceinline__ float from_float<float>(float value) { return value; }
template <> __host__ __device__ __forceinline__ __half from_float<__half>(float value) {
    return __float2half_rn(value);
}
template <> __host__ __device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float value) {
    return __float2bfloat16_rn(value);
}

/* 16 bytes: PACK elements of T (whose size divides 16), moved in one access. Addresses are multiples of 16. */
template <typename T> struct alignas(16) Pack {
    static constexpr int PACK = (int)(16 / sizeof(T));
    T lanes[PACK];

    __device__ __forceinline__ T &operator[](int lane) { return lanes[lane]; }
    __device__ __forceinline__ const T &operator[](int lane) const { return lanes[lane]; }
    __device__ __forceinline__ float get(int lane) const { return to_float(lanes[lane]); }
    __device__ __forceinline__ void set(int lane, float value) { lanes[lane] = from_float<T>(value); }
};

template <typename T> __device__ __forceinline__ Pack<T> pack_of_bits(uint4 bits) {
    Pack<T> pack;
    memcpy(&pack, &bits, sizeof bits);
    return pack;
}

template <typename T> __device__ __forceinline__ uint4 bits_of_pack(const Pack<T> &pack) {
    uint4 bits;
    memcpy(&bits, &pack, sizeof bits);
    return bits;
}

template <typename T> __device__ __forceinline__ Pack<T> load_pack(const T *from) {
    return pack_of_bits<T>(*reinterpret_cast<const uint4 *>(from));
}

/* For memory that is not read again soon: does not displace other data from the cache. */
template <typename T> __device__ __forceinline__ Pack<T> load_pack_streaming(const T *from) {
    return pack_of_bits<T>(__ldcs(reinterpret_cast<const uint4 *>(from)));
}

template <typename T> __device__ __forceinline__ void store_pack(T *to, const Pack<T> &pack) {
    *reinterpret_cast<uint4 *>(to) = bits_of_pack(pack);
}

/* The same, converting to PACK float32 values. */
template <typename T> __device__ __forceinline__ void load_floats(const T *from, float (&to)[Pack<T>::PACK]) {
    Pack<T> pack = load_pack(from);
#pragma unroll
    for (int lane = 0; lane < Pack<T>::PACK; lane++) to[lane] = pack.get(lane);
}

/* Converts in pairs, each of which is one instruction for the 16-bit types. */
__device__ static __forceinline__ void narrow(const float (&from)[4], Pack<float> *to) { memcpy(to, from, sizeof *to); }

__device__ static __forceinline__ void narrow(const float (&from)[8], Pack<__half> *to) {
#pragma unroll
    for (int lane = 0; lane < 8; lane += 2) {
        __half2 pair = __floats2half2_rn(from[lane], from[lane + 1]);
        to->lanes[lane] = pair.x, to->lanes[lane + 1] = pair.y;
    }
}

__device__ static __forceinline__ void narrow(const float (&from)[8], Pack<__nv_bfloat16> *to) {
#pragma unroll
    for (int lane = 0; lane < 8; lane += 2) {
        __nv_bfloat162 pair = __floats2bfloat162_rn(from[lane], from[lane + 1]);
        to->lanes[lane] = pair.x, to->lanes[lane + 1] = pair.y;
    }
}

template <typename T> __device__ __forceinline__ void store_floats(T *to, const float (&from)[Pack<T>::PACK]) {
    Pack<T> pack;
    narrow(from, &pack);
    store_pack(to, pack);
}

/* ---- special function unit: accurate to about 2 ulp; subnormals are flushed to zero ---- */

#ifdef CGXFFCV_EMULATED
__device__ static __forceinline__ float fast_exp2(float value) { return exp2f(value); }
__device__ static __forceinline__ float fast_reciprocal(float value) { return 1.0f / value; }
#else
__device__ static __forceinline__ float fast_exp2(float value) {
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(value));
    return result;
}
__device__ static __forceinline__ float fast_reciprocal(float value) {
    float result;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(value));
    return result;
}
#endif

/* Starts to load the 128 bytes around an address of device memory into the L2 cache, for a later read. */
#ifdef CGXFFCV_EMULATED
__device__ static __forceinline__ void prefetch(const void *) {}
#else
__device__ static __forceinline__ void prefetch(const void *address) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(__cvta_generic_to_global(address)));
}
#endif

/* ---- reductions: all threads of the warp or block call them and get the result; the order is fixed ---- */

template <typename T> __device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
    for (int distance = WARP / 2; distance > 0; distance /= 2) {
        value += __shfl_xor_sync(WHOLE_WARP, value, distance);
    }
    return value;
}

/* The largest; unspecified if one of them is a NaN. */
template <typename T> __device__ __forceinline__ T warp_max(T value) {
#pragma unroll
    for (int distance = WARP / 2; distance > 0; distance /= 2) {
        T other = __shfl_xor_sync(WHOLE_WARP, value, distance);
        value = other > value ? other : value;
    }
    return value;
}

/* Over a block of 32 to MAX_BLOCK threads, a multiple of 32; T is float, double or an integer. Holds barriers. */
template <typename T> __device__ __forceinline__ T block_sum(T value) {
    __shared__ T partial[MAX_BLOCK / WARP];
    int thread = thread_index(), lane = thread % WARP;
    value = warp_sum(value);
    __syncthreads(); /* the readers of an earlier call are done */
    if (lane == 0) partial[thread / WARP] = value;
    __syncthreads();
    return warp_sum(lane < thread_count() / WARP ? partial[lane] : T(0));
}

#endif
