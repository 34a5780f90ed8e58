/* The kernels of tensors in device memory to the wire and back, many of them in one launch. A block of QUANT_WARPS
 * warps takes as many buckets of one run, one a warp; blocks [first_block, first_block of the next item) belong to an
 * item. Each codec compiles them in a file of its own, once for all types, with others before them for whole pieces
 * (pieces.cuh), most of them for each type.
 *
 * Warp w of a block: bucket QUANT_WARPS (block - first_block) + w of those, piece by piece of 1,024 elements, of
 * which a lane has four of each group of 128 (warp.cuh; rotated.cuh for that codec). Buffers of an item: x (elems), of
 * the spec's type; wire, the run's bytes as docs/WIRE.md, section 2, has them. Shared: a QuantRoom for each warp. */
#ifndef CGXFFCV_QUANT_CUDA_QUANTIZE_CUH
#define CGXFFCV_QUANT_CUDA_QUANTIZE_CUH

#include "quant/cuda/bucket.cuh"

extern "C" {
#include "quant/cuda/batch.h"
}

/* A bucket's elements. */
template <QuantCodec CODEC> struct QuantTensor {
    QuantType type;
    const void *x;
    int64_t begin;

    __device__ __forceinline__ void piece(int64_t first, int count, float (&v)[QUANT_ROWS]) const {
        quant_load_piece<quant_lie<CODEC>()>(type, x, begin + first, count, v);
    }
};

/* This block's, of the kernels of the quick way or the others. */
template <bool QUICK> __device__ __forceinline__ const QuantItem *quant_find_item(const QuantItem *items, int count) {
    int low = 0, high = count - 1;
    while (low < high) {
        int middle = (low + high + 1) / 2;
        if ((QUICK ? items[middle].first_quick : items[middle].first_block) <= (int64_t)blockIdx.x) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    return items + low;
}

struct QuantBucket {
    int64_t number, first, elems; /* elems <= 0: none */
    QuantPlace place;
};

__device__ static __forceinline__ QuantBucket quant_bucket(const QuantItem *item, int64_t number) {
    int64_t size = item->run.spec.bucket_size;
    QuantBucket bucket = {};
    bucket.number = number;
    bucket.first = number * size;
    int64_t left = item->run.elems - bucket.first;
    bucket.elems = number >= item->layout.buckets ? 0 : left < size ? left : size;
    bucket.place.metadata = (uint64_t)number * item->layout.metadata;
    bucket.place.spikes = item->layout.spikes_at + (uint64_t)number * item->layout.spikes;
    bucket.place.codes = item->layout.codes_at + (uint64_t)number * item->layout.codes;
    return bucket;
}

/* That of this warp. */
__device__ static __forceinline__ QuantBucket quant_own_bucket(const QuantItem *item) {
    return quant_bucket(item,
                        item->skipped + ((int64_t)blockIdx.x - item->first_block) * QUANT_WARPS + threadIdx.x / WARP);
}

__device__ static __forceinline__ QuantRandom quant_bucket_random(const QuantItem *item, const QuantBucket &bucket) {
    QuantRandom random = item->run.random;
    random.quad += (uint64_t)bucket.number * (uint64_t)((item->run.spec.bucket_size + 3) / 4);
    return random;
}

/* Elements of the tensor's own type need not be rounded to it for 16-bit ranges. */
template <QuantCodec CODEC>
__device__ __forceinline__ void quant_encode_bucket(const QuantItem *item, const QuantBucket &bucket, QuantRoom *room) {
    const QuantSpec spec = item->run.spec;
    const QuantRandom random = quant_bucket_random(item, bucket);
    const QuantTensor<CODEC> tensor = {spec.type, item->run.x, bucket.first};
    uint8_t *base = (uint8_t *)item->run.wire;
    const QuantKeep keep = {nullptr, 1.0f};
    const bool draws = CODEC == QUANT_ROTATED || spec.rounding == QUANT_STOCHASTIC;
    quant_warp_encode<false, CODEC>(tensor, spec, bucket.elems, draws ? &random : nullptr, bucket.place, {&base, 1},
                                    keep, room);
}

/* Rotated values of a bucket, which leave their domain. */
template <int PIECES>
__device__ __forceinline__ void quant_decode_leaving(const QuantItem *item, const QuantBucket &bucket,
                                                     QuantRoom *room) {
    const QuantSpec spec = item->run.spec;
    QuantValues<PIECES> values;
    quant_decode_values((const uint8_t *)item->run.wire, bucket.place, spec, bucket.elems, false, values, room);
    quant_leave(values, quant_bucket_random(item, bucket), room);
    quant_store_values(spec.type, item->run.x, bucket.first, bucket.elems, values);
}

/* False if the bucket cannot be what a peer wrote. */
template <QuantCodec CODEC>
__device__ __forceinline__ bool quant_decode_bucket(const QuantItem *item, const QuantBucket &bucket, QuantRoom *room) {
    bool sound = true;
    if constexpr (CODEC == QUANT_ROTATED) {
#define CALL(PIECES) quant_decode_leaving<PIECES>(item, bucket, room)
        QUANT_BY_PIECES(bucket.elems, CALL)
#undef CALL
    } else {
        const QuantSpec spec = item->run.spec;
        float v[QUANT_ROWS];
        for (int64_t first = 0; first < bucket.elems; first += QUANT_PIECE) {
            int piece = quant_piece_count(bucket.elems, first);
            sound = quant_warp_decode<CODEC>((const uint8_t *)item->run.wire, bucket.place, spec, bucket.elems, first,
                                             piece, false, v, room) &&
                    sound;
            quant_store_piece<quant_lie<CODEC>()>(spec.type, item->run.x, bucket.first + first, piece, v);
        }
    }
    return sound;
}

/* The search for spikes has more to keep than the others. */
template <QuantCodec CODEC>
static __global__ void __launch_bounds__(QUANT_WARPS *WARP, CODEC == QUANT_SPIKES ? 2 : 3)
    quant_encode_kernel(const QuantItem *items, int count) {
    __shared__ QuantRoom rooms[QUANT_WARPS];
    grid_begin();
    const QuantItem *item = quant_find_item<false>(items, count);
    const QuantBucket bucket = quant_own_bucket(item);
    if (bucket.elems > 0) quant_encode_bucket<CODEC>(item, bucket, &rooms[threadIdx.x / WARP]);
}

template <QuantCodec CODEC>
static __global__ void __launch_bounds__(QUANT_WARPS *WARP, 3)
    quant_decode_kernel(const QuantItem *items, int count, uint32_t *damaged) {
    __shared__ QuantRoom rooms[QUANT_WARPS];
    grid_begin();
    const QuantItem *item = quant_find_item<false>(items, count);
    const QuantBucket bucket = quant_own_bucket(item);
    if (bucket.elems <= 0) return;
    if (!quant_decode_bucket<CODEC>(item, bucket, &rooms[threadIdx.x / WARP])) *damaged = 1;
}

/* ---- launches ---- */

template <QuantCodec CODEC>
static Status quant_launch(const QuantDeviceBatch *batch, bool encode, DeviceStream *stream) {
    unsigned blocks = (unsigned)batch->blocks;
    if (encode) {
        return LAUNCH_AFTER(quant_encode_kernel<CODEC>, blocks, QUANT_WARPS * WARP, 0, stream, batch->items,
                            batch->count);
    }
    return LAUNCH_AFTER(quant_decode_kernel<CODEC>, blocks, QUANT_WARPS * WARP, 0, stream, batch->items, batch->count,
                        batch->damaged);
}

#endif
