/* Tensors in device memory with the codec "maxmin": whole pieces of buckets of 64, 128 .. 8,192 elements the quick way
 * (quads.cuh), by kernels of their own, and what is left of a run bucket by bucket.
 *
 * Warp w of a block of those: piece QUANT_WARPS (block - first_quick) + w of an item, to which blocks [first_quick,
 * first_quick of the next item) belong; a lane has four elements of each group. The pieces of a bucket that has several
 * are those of neighbouring warps. Buffers and shared memory are those of quantize.cuh. */
#include "quant/cuda/quads.cuh"
#include "quant/cuda/quantize.cuh"

/* The piece of this warp. */
struct QuantOwnPiece {
    int64_t number, inside; /* inside: the number of its first element in its bucket */
    bool some;              /* false: none */
    QuantPlace place;
};

__device__ static __forceinline__ QuantOwnPiece quant_own_piece(const QuantItem *item) {
    QuantOwnPiece piece = {};
    piece.number = ((int64_t)blockIdx.x - item->first_quick) * QUANT_WARPS + threadIdx.x / WARP;
    piece.some = piece.number < item->pieces;
    const int64_t first = piece.number * QUANT_PIECE;
    piece.inside = first & ((1 << item->shift) - 1);
    piece.place.metadata = (uint64_t)(first >> item->shift) * item->layout.metadata;
    piece.place.codes =
        item->layout.codes_at + (uint64_t)piece.number * (QUANT_PIECE / 8) * (uint64_t)item->run.spec.bits;
    return piece;
}

/* The extremes of a bucket of several pieces, of those of its pieces; by all warps of the block. */
__device__ static __forceinline__ float quant_fold_pieces(float own, int shift) {
    __shared__ float extremes[QUANT_WARPS][2];
    const int warp = (int)threadIdx.x / WARP, pieces = 1 << shift >> 10, first = warp & -pieces, odd = quant_lane() % 2;
    if (quant_lane() < 2) extremes[warp][odd] = own;
    __syncthreads();
    for (int i = 0; i < pieces; i++) own = quant_min_nan(own, extremes[first + i][odd]);
    return own;
}

template <QuantType TYPE>
static __global__ void __launch_bounds__(QUANT_WARPS *WARP, 3)
    quant_encode_pieces_kernel(const QuantItem *items, int count) {
    __shared__ QuantRoom rooms[QUANT_WARPS];
    grid_begin();
    const QuantItem *item = quant_find_item<true>(items, count);
    const QuantOwnPiece piece = quant_own_piece(item);
    QuantRoom *room = &rooms[threadIdx.x / WARP];
    uint8_t *base = (uint8_t *)item->run.wire;
    const QuantSink sink = {&base, 1};
    const QuantKeep keep = {nullptr, 1.0f};
    const QuantKeepEight eight = {nullptr, nullptr, 1.0f};
    const float scale = item->run.scale;
    const int bits = item->run.spec.bits, shift = item->shift;
    QuadsHalf v[2] = {};
#pragma unroll
    for (int half = 0; half < 2 && piece.some; half++) {
        const auto *x = (const typename QuantElement<TYPE>::Stored *)item->run.x;
        quads_load<TYPE>(x + piece.number * QUANT_PIECE, half, v[half]);
#pragma unroll
        for (int k = 0; k < QUANT_ROWS / 2; k++) v[half][k] = QUANT_MUL(v[half][k], scale);
    }
    float own = quads_extremes(v, shift);
    if (1 << shift > QUANT_PIECE) own = quant_fold_pieces(own, shift);
    if (!piece.some) return;
    quads_put_grids(own, bits, shift, piece.inside, piece.place.metadata, sink, room);
    QuadsRounding rounding = {item->run.spec.rounding == QUANT_STOCHASTIC, item->run.random};
    rounding.random.quad += (uint64_t)piece.number * (QUANT_PIECE / 4);
    quads_put_codes<true>(v, bits, shift, rounding, piece.place.codes, sink, keep, eight, room);
}

template <QuantType TYPE>
static __global__ void __launch_bounds__(QUANT_WARPS *WARP, 4)
    quant_decode_pieces_kernel(const QuantItem *items, int count) {
    __shared__ QuantRoom rooms[QUANT_WARPS];
    grid_begin();
    const QuantItem *item = quant_find_item<true>(items, count);
    const QuantOwnPiece piece = quant_own_piece(item);
    if (!piece.some) return;
    auto *to = (typename QuantElement<TYPE>::Stored *)item->run.x + piece.number * QUANT_PIECE;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        QuadsHalf v;
        quads_begin(v);
        quads_add<false, true>((const uint8_t *)item->run.wire, piece.place, item->run.spec.bits, item->shift, half,
                               false, &rooms[threadIdx.x / WARP], v);
        quads_store<TYPE>(to, half, v);
    }
}

template <QuantType TYPE>
static Status quant_launch_pieces(const QuantDeviceBatch *batch, bool encode, DeviceStream *stream) {
    unsigned blocks = (unsigned)batch->quick_blocks;
    if (encode) {
        return LAUNCH_AFTER(quant_encode_pieces_kernel<TYPE>, blocks, QUANT_WARPS * WARP, 0, stream, batch->items,
                            batch->count);
    }
    return LAUNCH_AFTER(quant_decode_pieces_kernel<TYPE>, blocks, QUANT_WARPS * WARP, 0, stream, batch->items,
                        batch->count);
}

static Status quant_launch_quick(const QuantDeviceBatch *batch, bool encode, DeviceStream *stream) {
    if (batch->type == QUANT_F16) return quant_launch_pieces<QUANT_F16>(batch, encode, stream);
    if (batch->type == QUANT_BF16) return quant_launch_pieces<QUANT_BF16>(batch, encode, stream);
    return quant_launch_pieces<QUANT_F32>(batch, encode, stream);
}

extern "C" Status quant_launch_maxmin(const QuantDeviceBatch *batch, bool encode, DeviceStream *stream) {
    if (batch->quick_blocks > 0) TRY(quant_launch_quick(batch, encode, stream));
    return batch->blocks > 0 ? quant_launch<QUANT_MAXMIN>(batch, encode, stream) : STATUS_OK;
}
