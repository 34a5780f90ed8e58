/* Tensors in device memory with the codec "maxmin": whole pieces the quick way (quads.cuh), by kernels of their own,
 * and what is left of a run bucket by bucket.
 *
 * Warp w of a block of those: piece QUANT_WARPS (block - first_quick) + w of an item, to which blocks [first_quick,
 * first_quick of the next item) belong; a lane has four elements of each group. Buffers and shared memory are those of
 * quantize.cuh. */
#include "quant/cuda/quads.cuh"
#include "quant/cuda/quantize.cuh"

/* The piece of this warp. */
struct QuantOwnPiece {
    int64_t first; /* element; -1: none */
    QuantPlace place;
};

__device__ static __forceinline__ QuantOwnPiece quant_own_piece(const QuantItem *item) {
    const int64_t number = ((int64_t)blockIdx.x - item->first_quick) * QUANT_WARPS + threadIdx.x / WARP;
    QuantOwnPiece piece = {};
    piece.first = number < item->pieces ? number * QUANT_PIECE : -1;
    piece.place.metadata = (uint64_t)number * (QUADS_GROUPS / item->groups) * item->layout.metadata;
    piece.place.codes = item->layout.codes_at + (uint64_t)number * (QUANT_PIECE / 8) * (uint64_t)item->run.spec.bits;
    return piece;
}

template <QuantType TYPE>
static __global__ void __launch_bounds__(QUANT_WARPS *WARP, 2)
    quant_encode_pieces_kernel(const QuantItem *items, int count) {
    __shared__ QuantRoom rooms[QUANT_WARPS];
    grid_begin();
    const QuantItem *item = quant_find_item<true>(items, count);
    const QuantOwnPiece piece = quant_own_piece(item);
    if (piece.first < 0) return;
    QuantRoom *room = &rooms[threadIdx.x / WARP];
    uint8_t *base = (uint8_t *)item->run.wire;
    const QuantSink sink = {&base, 1};
    const QuantKeep keep = {nullptr, 1.0f};
    const QuantKeepEight eight = {nullptr, nullptr, 1.0f};
    const float scale = item->run.scale;
    const int bits = item->run.spec.bits, groups = item->groups;
    QuadsHalf v[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        quads_load<TYPE>((const typename QuantElement<TYPE>::Stored *)item->run.x + piece.first, half, v[half]);
#pragma unroll
        for (int k = 0; k < QUANT_ROWS / 2; k++) v[half][k] = QUANT_MUL(v[half][k], scale);
    }
    if (groups == 8) quads_encode<8>(v, bits, piece.place, sink, keep, eight, room);
    if (groups == 4) quads_encode<4>(v, bits, piece.place, sink, keep, eight, room);
    if (groups == 2) quads_encode<2>(v, bits, piece.place, sink, keep, eight, room);
    if (groups == 1) quads_encode<1>(v, bits, piece.place, sink, keep, eight, room);
}

template <QuantType TYPE>
static __global__ void __launch_bounds__(QUANT_WARPS *WARP, 4)
    quant_decode_pieces_kernel(const QuantItem *items, int count) {
    grid_begin();
    const QuantItem *item = quant_find_item<true>(items, count);
    const QuantOwnPiece piece = quant_own_piece(item);
    if (piece.first < 0) return;
    auto *to = (typename QuantElement<TYPE>::Stored *)item->run.x + piece.first;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        QuadsHalf v;
        quads_begin(v);
        quads_add<false>((const uint8_t *)item->run.wire, piece.place, item->run.spec.bits, item->groups, half, false,
                         nullptr, v);
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
