/* Tensors in device memory with the codec "sign": whole pieces of buckets of 64, 128 .. 8,192 elements the quick way,
 * and what is left of a run bucket by bucket.
 *
 * The quick way: warp w of a block begins with the piece that pieces.cuh gives it, takes all pieces of the bucket that
 * begins there, and none if none does. Row k of a piece is its elements 32 k + lane, so that a lane sums up one of the
 * 32 partial sums of docs/WIRE.md, and collects the signs of its column, which become rows in the end. */
#include "quant/cuda/pieces.cuh"

/* A column of 32 bits of each lane becomes a row of each: bit l of lane k is what was bit k of lane l. */
__device__ static __forceinline__ uint32_t sign_transpose(uint32_t column) {
    uint32_t kept = 0x0000FFFFu;
#pragma unroll
    for (int distance = WARP / 2; distance > 0; distance /= 2, kept ^= kept << distance) {
        const bool upper = (quant_lane() & distance) != 0;
        const uint32_t other = __shfl_xor_sync(WHOLE_WARP, column, distance), own = upper ? ~kept : kept;
        column = (column & own) | ((upper ? other >> distance : other << distance) & ~own);
    }
    return column;
}

/* Whether a bucket, x being this lane's column of it, has an element that is too large, or not a number. */
template <QuantType TYPE>
__device__ __forceinline__ bool sign_holds_nan(const typename QuantElement<TYPE>::Stored *x, int rows) {
    float magnitude = 0.0f;
    for (int k = 0; k < rows; k++) {
        magnitude = quant_max_nan(magnitude, fabsf(QuantElement<TYPE>::widened(x[k * WARP])));
    }
    return quant_warp_magnitude(magnitude) >= QUANT_MAGNITUDE_LIMIT;
}

/* Its mean magnitude; NaN if it is one of NaN. No sum of magnitudes that stays below the limit has such an element. Out
 * of line, as it is called at each end that a bucket may have in a piece. */
template <QuantType TYPE>
__device__ NOT_INLINE float sign_mean(const typename QuantElement<TYPE>::Stored *x, int rows, float partial) {
    const float sum = quant_warp_fold(partial);
    const bool large = quant_warp_magnitude(partial) >= QUANT_MAGNITUDE_LIMIT;
    if (large && (!quant_is_finite(sum) || sign_holds_nan<TYPE>(x, rows))) return float_of_bits(QUANT_NAN_F32);
    return QUANT_DIV(sum, (float)(rows * WARP));
}

/* The pieces from x on that end a bucket; the wire's words are rows of signs. */
template <QuantType TYPE>
__device__ __forceinline__ void sign_encode(const typename QuantElement<TYPE>::Stored *x, int shift, float *means,
                                            uint32_t *words) {
    const int lane = quant_lane(), rows = 1 << shift >> 5, pieces = shift > 10 ? 1 << shift >> 10 : 1;
    float partial = 0.0f;
    for (int piece = 0; piece < pieces; piece++, x += QUANT_PIECE) {
        typename QuantElement<TYPE>::Stored stored[QUANT_ROWS];
        uint32_t column = 0, coded = WHOLE_WARP;
#pragma unroll
        for (int k = 0; k < QUANT_ROWS; k++) stored[k] = x[k * WARP + lane];
#pragma unroll
        for (int k = 0; k < QUANT_ROWS; k++) {
            const float value =
                QUANT_ADD(QuantElement<TYPE>::widened(stored[k]), 0.0f); /* so that no zero has a sign */
            column = __funnelshift_l(float_bits(value), column, 1);
            partial = QUANT_ADD(partial, fabsf(value));
            if (k % 2 == 0 || ((piece * QUANT_ROWS + k + 1) & (rows - 1)) != 0) continue;
            const float mean = sign_mean<TYPE>(x + (k + 1 - rows) * WARP + lane, rows, partial);
            if (lane == 0) *means++ = mean;
            if (!quant_is_finite(mean)) coded &= rows < QUANT_ROWS ? ~(((1u << rows) - 1u) << (k + 1 - rows)) : 0;
            partial = 0.0f;
        }
        const uint32_t signs = sign_transpose(__brev(column));
        words[piece * QUANT_ROWS + lane] = coded >> lane & 1 ? signs : 0;
        for (int before = 0; coded == 0 && before < piece; before++) words[before * QUANT_ROWS + lane] = 0;
    }
}

template <QuantType TYPE>
static __global__ void __launch_bounds__(QUANT_WARPS *WARP, 4) sign_encode_kernel(const QuantItem *items, int count) {
    grid_begin();
    const QuantItem *item = quant_find_item<true>(items, count);
    const PiecesOwn piece = pieces_own(item);
    if (!piece.some || piece.inside != 0) return;
    uint8_t *base = (uint8_t *)item->run.wire;
    sign_encode<TYPE>((const typename QuantElement<TYPE>::Stored *)item->run.x + piece.number * QUANT_PIECE,
                      item->shift, reinterpret_cast<float *>(base + piece.place.metadata),
                      reinterpret_cast<uint32_t *>(base + piece.place.codes));
}

static Status sign_launch_quick(const QuantDeviceBatch *batch, bool encode, DeviceStream *stream) {
#define ENCODE(TYPE)                                                                                                   \
    LAUNCH_AFTER(sign_encode_kernel<TYPE>, (unsigned)batch->quick_blocks, QUANT_WARPS *WARP, 0, stream, batch->items,  \
                 batch->count)
    return encode ? QUANT_BY_TYPE(batch->type, ENCODE) : pieces_launch_decode<QUANT_SIGN>(batch, stream);
#undef ENCODE
}

extern "C" Status quant_launch_sign(const QuantDeviceBatch *batch, bool encode, DeviceStream *stream) {
    if (batch->quick_blocks > 0) TRY(sign_launch_quick(batch, encode, stream));
    return batch->blocks > 0 ? quant_launch<QUANT_SIGN>(batch, encode, stream) : STATUS_OK;
}
