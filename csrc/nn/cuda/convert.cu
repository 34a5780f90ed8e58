/* Converts between float32 and the storage types, streaming through memory once.
 *
 * Thread i of the whole grid takes packs i, i + threads, ...: 16 bytes of the storage type T, 4 or 8 elements; then the
 * elements after the last whole pack one by one. Buffers: `from` and `to`, elems of float32 and of T, or vice versa. */
#include "nn/cuda/storage.cuh"

extern "C" {
#include "nn/cuda/context.h"
}

#define THREADS 256
#define MOST_BLOCKS 2048

/* Both kernels work pack by pack; `from` may be `to`, since every element stays in its place. */
template <typename T> __global__ void storage_narrow_kernel(const float *from, size_t packs, size_t elems, T *to) {
    grid_begin();
    constexpr int PACK = Pack<T>::PACK;
    GRID_LOOP(index, packs) {
        Pack<T> pack;
#pragma unroll
        for (int part = 0; part < PACK; part += Pack<float>::PACK) {
            Pack<float> values = load_pack(from + index * PACK + part);
#pragma unroll
            for (int lane = 0; lane < Pack<float>::PACK; lane++) pack.set(part + lane, values[lane]);
        }
        store_pack(to + index * PACK, pack);
    }
    GRID_LOOP(index, elems - packs * PACK) { to[packs * PACK + index] = from_float<T>(from[packs * PACK + index]); }
}

template <typename T>
__global__ void storage_widen_kernel(const T *from, size_t packs, size_t elems, float factor, float *to) {
    grid_begin();
    constexpr int PACK = Pack<T>::PACK;
    GRID_LOOP(index, packs) {
        Pack<T> pack = load_pack(from + index * PACK);
#pragma unroll
        for (int part = 0; part < PACK; part += Pack<float>::PACK) {
            Pack<float> values;
#pragma unroll
            for (int lane = 0; lane < Pack<float>::PACK; lane++) values[lane] = pack.get(part + lane) * factor;
            store_pack(to + index * PACK + part, values);
        }
    }
    GRID_LOOP(index, elems - packs * PACK) { to[packs * PACK + index] = to_float(from[packs * PACK + index]) * factor; }
}

/* No packs if an address is not a multiple of 16. */
static size_t packs_of(const void *from, const void *to, size_t elems, int pack) {
    bool aligned = (reinterpret_cast<size_t>(from) | reinterpret_cast<size_t>(to)) % 16 == 0;
    return aligned ? elems / (size_t)pack : 0;
}

static unsigned blocks_for(size_t packs, size_t elems) {
    size_t blocks = ceil_div(packs > 0 ? packs : elems, THREADS);
    return (unsigned)(blocks < MOST_BLOCKS ? blocks : MOST_BLOCKS);
}

extern "C" Status nn_cuda_from_float(const float *from, size_t elems, Precision precision, void *to,
                                     DeviceStream *stream) {
    if (elems == 0 || (from == to && precision == PRECISION_FLOAT32)) return STATUS_OK;
    DISPATCH_STORAGE(precision, T, {
        size_t packs = packs_of(from, to, elems, Pack<T>::PACK);
        TRY(LAUNCH_AFTER(storage_narrow_kernel<T>, blocks_for(packs, elems), THREADS, 0, stream, from, packs, elems,
                         (T *)to));
    });
    return STATUS_OK;
}

extern "C" Status nn_cuda_to_float(const void *from, size_t elems, Precision precision, float factor, float *to,
                                   DeviceStream *stream) {
    if (elems == 0 || (from == to && precision == PRECISION_FLOAT32 && factor == 1.0f)) return STATUS_OK;
    DISPATCH_STORAGE(precision, T, {
        size_t packs = packs_of(from, to, elems, Pack<T>::PACK);
        TRY(LAUNCH_AFTER(storage_widen_kernel<T>, blocks_for(packs, elems), THREADS, 0, stream, (const T *)from, packs,
                         elems, factor, to));
    });
    return STATUS_OK;
}
