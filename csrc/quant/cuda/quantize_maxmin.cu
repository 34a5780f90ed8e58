/* Tensors in device memory with the codec "maxmin": whole pieces of buckets of 64, 128 .. 8,192 elements the quick way,
 * and what is left of a run bucket by bucket. */
#include "quant/cuda/pieces.cuh"

/* The extremes of a bucket of several pieces, of those of its pieces; by all warps of the block. */
__device__ static __forceinline__ float maxmin_fold_pieces(float own, int shift) {
    __shared__ float extremes[QUANT_WARPS][2];
    const int warp = (int)threadIdx.x / WARP, pieces = 1 << shift >> 10, first = warp & -pieces, odd = quant_lane() % 2;
    if (quant_lane() < 2) extremes[warp][odd] = own;
    __syncthreads();
    for (int i = 0; i < pieces; i++) own = quant_min_nan(own, extremes[first + i][odd]);
    return own;
}

/* With DRAWS some items of the batch are rounded by random numbers. */
template <QuantType TYPE, bool DRAWS>
static __global__ void __launch_bounds__(QUANT_WARPS *WARP, 4) maxmin_encode_kernel(const QuantItem *items, int count) {
    __shared__ QuantRoom rooms[QUANT_WARPS];
    grid_begin();
    const QuantItem *item = quant_find_item<true>(items, count);
    const PiecesOwn piece = pieces_own(item);
    QuantRoom *room = &rooms[threadIdx.x / WARP];
    const bool wide = 1 << item->shift >= QUANT_PIECE, draws = DRAWS && item->run.spec.rounding == QUANT_STOCHASTIC;
    const int64_t number = piece.some ? piece.number : 0; /* some piece, whose extremes then concern nobody */
    PiecesElements<TYPE> elements;
    elements.load((const typename QuantElement<TYPE>::Stored *)item->run.x + number * QUANT_PIECE);
    float own = wide ? pieces_extremes<true>(elements, item->shift) : pieces_extremes<false>(elements, item->shift);
    if (1 << item->shift > QUANT_PIECE) own = maxmin_fold_pieces(own, item->shift);
    if (!piece.some) return;
#define ENCODE(DRAWN)                                                                                                  \
    (wide ? pieces_encode<DRAWN, true>(elements, own, item, piece, room)                                               \
          : pieces_encode<DRAWN, false>(elements, own, item, piece, room))
    draws ? ENCODE(DRAWS) : ENCODE(false);
#undef ENCODE
}

template <QuantType TYPE> static Status maxmin_encode(const QuantDeviceBatch *batch, DeviceStream *stream) {
#define ENCODE(DRAWS)                                                                                                  \
    LAUNCH_AFTER((maxmin_encode_kernel<TYPE, DRAWS>), (unsigned)batch->quick_blocks, QUANT_WARPS *WARP, 0, stream,     \
                 batch->items, batch->count)
    return batch->draws ? ENCODE(true) : ENCODE(false);
#undef ENCODE
}

static Status maxmin_launch_quick(const QuantDeviceBatch *batch, bool encode, DeviceStream *stream) {
#define ENCODE(TYPE) maxmin_encode<TYPE>(batch, stream)
    return encode ? QUANT_BY_TYPE(batch->type, ENCODE) : pieces_launch_decode<QUANT_MAXMIN>(batch, stream);
#undef ENCODE
}

extern "C" Status quant_launch_maxmin(const QuantDeviceBatch *batch, bool encode, DeviceStream *stream) {
    if (batch->quick_blocks > 0) TRY(maxmin_launch_quick(batch, encode, stream));
    return batch->blocks > 0 ? quant_launch<QUANT_MAXMIN>(batch, encode, stream) : STATUS_OK;
}
