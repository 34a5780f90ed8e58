/* The kernels of tensors in device memory to the wire and back, many of them in one launch. A block of QUANT_WARPS
 * warps takes as many buckets of one run, one a warp; blocks [first_block, first_block of the next item) belong to an
 * item. Each codec compiles them in a file of its own, maxmin with others before them for whole pieces.
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

template <QuantType TYPE, QuantCodec CODEC> struct QuantTensor {
    const void *x;
    float scale;

    __device__ __forceinline__ void piece(int64_t first, int count, float (&v)[QUANT_ROWS]) const {
        quant_load_piece<TYPE, quant_lie<CODEC>()>(x, first, count, scale, v);
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

/* The bucket of this warp. */
struct QuantBucket {
    int64_t number, first, elems; /* elems <= 0: none */
    QuantPlace place;
};

__device__ static __forceinline__ QuantBucket quant_own_bucket(const QuantItem *item) {
    int64_t size = item->run.spec.bucket_size;
    QuantBucket bucket = {};
    bucket.number = item->skipped + ((int64_t)blockIdx.x - item->first_block) * QUANT_WARPS + threadIdx.x / WARP;
    bucket.first = bucket.number * size;
    int64_t left = item->run.elems - bucket.first;
    bucket.elems = bucket.number >= item->layout.buckets ? 0 : left < size ? left : size;
    uint64_t number = (uint64_t)bucket.number;
    bucket.place.metadata = number * item->layout.metadata;
    bucket.place.spikes = item->layout.spikes_at + number * item->layout.spikes;
    bucket.place.codes = item->layout.codes_at + number * item->layout.codes;
    return bucket;
}

__device__ static __forceinline__ QuantRandom quant_bucket_random(const QuantItem *item, const QuantBucket &bucket) {
    QuantRandom random = item->run.random;
    random.quad += (uint64_t)bucket.number * (uint64_t)((item->run.spec.bucket_size + 3) / 4);
    return random;
}

/* WHOLE: the bucket is one whole piece. */
template <QuantType TYPE, QuantCodec CODEC, bool WHOLE>
__device__ __forceinline__ void quant_encode_bucket(const QuantItem *item, const QuantBucket &bucket, QuantRoom *room) {
    typedef typename QuantElement<TYPE>::Stored Stored;
    const QuantSpec spec = item->run.spec;
    const QuantRandom random = quant_bucket_random(item, bucket);
    const QuantTensor<TYPE, CODEC> tensor = {(const Stored *)item->run.x + bucket.first, item->run.scale};
    uint8_t *base = (uint8_t *)item->run.wire;
    const QuantKeep keep = {nullptr, 1.0f};
    const QuantSink sink = {&base, 1};
    if constexpr (CODEC == QUANT_ROTATED && WHOLE) {
        quant_encode_entering<1>(tensor, spec, QUANT_PIECE, random, bucket.place, sink, keep, room);
    } else {
        const bool draws = CODEC == QUANT_ROTATED || spec.rounding == QUANT_STOCHASTIC;
        quant_warp_encode<TYPE, CODEC>(tensor, spec, WHOLE ? QUANT_PIECE : bucket.elems, draws ? &random : nullptr,
                                       bucket.place, sink, keep, room);
    }
}

/* Rotated values of a bucket, which leave their domain. */
template <QuantType TYPE, int PIECES>
__device__ __forceinline__ void quant_decode_leaving(const QuantItem *item, const QuantBucket &bucket, int64_t elems,
                                                     QuantRoom *room) {
    const QuantSpec spec = item->run.spec;
    QuantValues<PIECES> values;
    quant_decode_values((const uint8_t *)item->run.wire, bucket.place, spec, elems, false, values, room);
    quant_leave(values, quant_bucket_random(item, bucket), room);
    quant_store_values<TYPE>(item->run.x, bucket.first, elems, values);
}

/* False if the bucket cannot be what a peer wrote. */
template <QuantType TYPE, QuantCodec CODEC, bool WHOLE>
__device__ __forceinline__ bool quant_decode_bucket(const QuantItem *item, const QuantBucket &bucket, QuantRoom *room) {
    const int64_t elems = WHOLE ? QUANT_PIECE : bucket.elems;
    bool sound = true;
    if constexpr (CODEC == QUANT_ROTATED && WHOLE) {
        quant_decode_leaving<TYPE, 1>(item, bucket, QUANT_PIECE, room);
    } else if constexpr (CODEC == QUANT_ROTATED) {
#define CALL(PIECES) quant_decode_leaving<TYPE, PIECES>(item, bucket, elems, room)
        QUANT_BY_PIECES(elems, CALL)
#undef CALL
    } else {
        const QuantSpec spec = item->run.spec;
        float v[QUANT_ROWS];
        for (int64_t first = 0; first < elems; first += QUANT_PIECE) {
            int piece = quant_piece_count(elems, first);
            sound = quant_warp_decode<CODEC>((const uint8_t *)item->run.wire, bucket.place, spec, elems, first, piece,
                                             false, v, room) &&
                    sound;
            quant_store_piece<TYPE, quant_lie<CODEC>()>(item->run.x, bucket.first + first, piece, v);
        }
    }
    return sound;
}

/* Whole pieces, which most buckets are, go in a straight line with that number known: CALL(true); others out of line.
 * Where whole pieces go a way of their own, all are others. */
#define QUANT_BY_ELEMS(bucket, CALL)                                                                                   \
    if ((bucket).elems <= 0) return;                                                                                   \
    if (CODEC != QUANT_MAXMIN && (bucket).elems == QUANT_PIECE) {                                                      \
        CALL(CODEC != QUANT_MAXMIN); /* so that it is not compiled there */                                            \
    } else {                                                                                                           \
        quant_apart([=]() { CALL(false); });                                                                           \
    }

/* The search for spikes has more to keep than the others. */
template <QuantType TYPE, QuantCodec CODEC>
static __global__ void __launch_bounds__(QUANT_WARPS *WARP, CODEC == QUANT_SPIKES ? 2 : 3)
    quant_encode_kernel(const QuantItem *items, int count) {
    __shared__ QuantRoom rooms[QUANT_WARPS];
    grid_begin();
    const QuantItem *item = quant_find_item<false>(items, count);
    const QuantBucket bucket = quant_own_bucket(item);
    QuantRoom *room = &rooms[threadIdx.x / WARP];
#define CALL(WHOLE) quant_encode_bucket<TYPE, CODEC, (WHOLE)>(item, bucket, room)
    QUANT_BY_ELEMS(bucket, CALL)
#undef CALL
}

template <QuantType TYPE, QuantCodec CODEC>
static __global__ void __launch_bounds__(QUANT_WARPS *WARP, 3)
    quant_decode_kernel(const QuantItem *items, int count, uint32_t *damaged) {
    __shared__ QuantRoom rooms[QUANT_WARPS];
    grid_begin();
    const QuantItem *item = quant_find_item<false>(items, count);
    const QuantBucket bucket = quant_own_bucket(item);
    QuantRoom *room = &rooms[threadIdx.x / WARP];
#define CALL(WHOLE)                                                                                                    \
    if (!quant_decode_bucket<TYPE, CODEC, (WHOLE)>(item, bucket, room)) *damaged = 1
    QUANT_BY_ELEMS(bucket, CALL)
#undef CALL
}

/* ---- launches ---- */

template <QuantType TYPE, QuantCodec CODEC>
static Status quant_launch_type(const QuantDeviceBatch *batch, bool encode, DeviceStream *stream) {
    unsigned blocks = (unsigned)batch->blocks;
    if (encode) {
        return LAUNCH_AFTER((quant_encode_kernel<TYPE, CODEC>), blocks, QUANT_WARPS * WARP, 0, stream, batch->items,
                            batch->count);
    }
    return LAUNCH_AFTER((quant_decode_kernel<TYPE, CODEC>), blocks, QUANT_WARPS * WARP, 0, stream, batch->items,
                        batch->count, batch->damaged);
}

template <QuantCodec CODEC>
static Status quant_launch(const QuantDeviceBatch *batch, bool encode, DeviceStream *stream) {
    if (batch->type == QUANT_F16) return quant_launch_type<QUANT_F16, CODEC>(batch, encode, stream);
    if (batch->type == QUANT_BF16) return quant_launch_type<QUANT_BF16, CODEC>(batch, encode, stream);
    return quant_launch_type<QUANT_F32, CODEC>(batch, encode, stream);
}

#endif
