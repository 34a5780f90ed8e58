/* The whole pieces of a tile on the fast path (quant/cuda/quads.cuh), from elements to windows and back.
 * A warp takes one piece of 1,024 elements at a time; buffers are those of exchange.cuh. */
#ifndef CGXFFCV_ALLREDUCE_DEVICE_EXCHANGE_PIECES_CUH
#define CGXFFCV_ALLREDUCE_DEVICE_EXCHANGE_PIECES_CUH

#include "allreduce/device/exchange_ground.cuh"
#include "quant/cuda/quads.cuh"

struct ExchangePiece {
    int64_t first;   /* in the flat buffer */
    uint64_t bucket; /* the number of its first one in the call */
    QuantPlace place;
};

__device__ static __forceinline__ ExchangePiece exchange_piece(const DeviceTile &tile, int64_t number) {
    ExchangePiece piece = {};
    piece.first = tile.first + number * QUANT_PIECE;
    const uint64_t buckets = (uint64_t)(number * QUANT_PIECE >> tile.shift); /* before it */
    piece.bucket = tile.bucket + buckets;
    piece.place.metadata = tile.at + buckets * tile.metadata;
    piece.place.codes = tile.at + tile.codes_at + (uint64_t)number * (QUANT_PIECE / 8) * (uint64_t)tile.bits;
    return piece;
}

#define FOR_EACH_OF(values, k) _Pragma("unroll") for (int k = 0; k < (int)(sizeof(values) / sizeof((values)[0])); k++)

#define FOR_PIECES_OF(number, tile)                                                                                    \
    for (int64_t number = threadIdx.x / WARP; number * QUANT_PIECE < (tile).elems; number += WARPS)

/* ---- whole pieces ---- */

/* Adds the residual, kept in 8 bits, to half a piece, in which a bucket has 2^shift elements. */
__device__ static __forceinline__ void exchange_add_kept(const ExchangePlan *plan, const ExchangePiece &piece,
                                                         int shift, int half, QuadsHalf &v) {
    FOR_HALF(j) {
        const int group = half * QUADS_HALF + j;
        const float unit =
            quant_residual_unit(plan->codes.exponents[piece.bucket + (uint64_t)(group * QUANT_GROUP >> shift)]);
        float lost[4];
        quant_load_kept<QUANT_QUADS>(plan->codes.codes + piece.first, unit, group, QUANT_PIECE, lost);
        FOR_QUAD(c) v[4 * j + c] = QUANT_ADD(lost[c], v[4 * j + c]);
    }
}

/* This rank's elements of half a piece, with the residual: added to v, or stored there. */
template <QuantType TYPE, bool ADD>
__device__ __forceinline__ void exchange_own(const ExchangePlan *plan, const void *buffer, const DeviceTile &tile,
                                             const ExchangePiece &piece, int half, QuadsHalf &v) {
    QuadsHalf own;
    quads_load<TYPE>((const typename QuantElement<TYPE>::Stored *)buffer + piece.first, half, own);
    if (plan->residual != nullptr) {
        QuadsHalf lost;
        quads_load<QUANT_F32>(plan->residual + piece.first, half, lost);
        FOR_EACH_OF(own, k) own[k] = QUANT_ADD(lost[k], own[k]);
    } else if (plan->codes.codes != nullptr) {
        exchange_add_kept(plan, piece, tile.shift, half, own);
    }
    FOR_EACH_OF(own, k) {
        const float scaled = QUANT_MUL(own[k], plan->scale);
        v[k] = ADD ? QUANT_ADD(v[k], scaled) : scaled;
    }
}

/* Adds rows [row, row + rows) of half a piece in their order; with FAR some of them are in host memory. */
template <bool FAR>
__device__ __forceinline__ void exchange_add_pieces(const ExchangePlan *plan, const DeviceTile &tile,
                                                    const ExchangePiece &piece, uint32_t epoch, int row, int rows,
                                                    int half, QuantRoom *room, QuadsHalf &v) {
    for (int i = row; i < row + rows; i++) {
        const uint8_t *base = exchange_row(plan, epoch, i);
        const bool far = FAR && (plan->window.far >> i & 1u) != 0;
        quads_add<FAR>(base, piece.place, tile.bits, tile.shift, half, far, room, v);
    }
}

__device__ static __forceinline__ void exchange_encode_piece(const ExchangePlan *plan, const DeviceTile &tile,
                                                             const ExchangePiece &piece, QuadsHalf (&v)[2],
                                                             QuantSink sink, QuantRoom *room) {
    const auto keep = exchange_keep<QuantKeep>(plan, piece.first, piece.bucket);
    const auto eight = exchange_keep<QuantKeepEight>(plan, piece.first, piece.bucket);
    quads_encode(v, tile.bits, tile.shift, piece.place, sink, keep, eight, room);
}

/* Quantises the pieces of a tile into the sink: this rank's elements, or with REDUCES the sum of all ranks' terms in
 * rank order. */
template <QuantType TYPE, bool REDUCES, bool FAR>
__device__ __forceinline__ void exchange_encode_tile(const ExchangePlan *plan, const void *buffer,
                                                     const DeviceTile &tile, uint32_t epoch, QuantSink sink,
                                                     QuantRoom *room) {
    QuadsHalf v[2];
    FOR_PIECES_OF(number, tile) {
        const ExchangePiece piece = exchange_piece(tile, number);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            if (REDUCES) {
                quads_begin(v[half]);
                exchange_add_pieces<FAR>(plan, tile, piece, epoch, 0, plan->rank, half, room, v[half]);
            }
            exchange_own<TYPE, REDUCES>(plan, buffer, tile, piece, half, v[half]);
            if (REDUCES) {
                const int next = plan->rank + 1;
                exchange_add_pieces<FAR>(plan, tile, piece, epoch, next, plan->ranks - next, half, room, v[half]);
            }
        }
        exchange_encode_piece(plan, tile, piece, v, sink, room);
    }
}

/* Adds rows [row, row + rows) of a tile's pieces and stores their sum. */
template <QuantType TYPE, bool FAR>
__device__ __forceinline__ void exchange_gather_pieces(const ExchangePlan *plan, void *buffer, const DeviceTile &tile,
                                                       uint32_t epoch, int row, int rows, QuantRoom *room) {
    QuadsHalf v;
    FOR_PIECES_OF(number, tile) {
        const ExchangePiece piece = exchange_piece(tile, number);
        auto *to = (typename QuantElement<TYPE>::Stored *)buffer + piece.first;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            quads_begin(v);
            exchange_add_pieces<FAR>(plan, tile, piece, epoch, row, rows, half, room, v);
            exchange_divide(plan, v);
            quads_store<TYPE>(to, half, v);
        }
    }
}

template <QuantType TYPE, bool FAR> struct ExchangePieces {
    typedef ExchangePieces Gathers;
    static constexpr uint32_t WAYS = EXCHANGE_QUICK;
    static constexpr int GATHERERS = FAR ? BLOCKS_EACH : 2 * BLOCKS_EACH; /* near, half of the registers suffice */

    __device__ static __forceinline__ void push(const ExchangePlan *plan, const void *buffer, const DeviceTile &tile,
                                                QuantSink sink, QuantRoom *room) {
        exchange_encode_tile<TYPE, false, FAR>(plan, buffer, tile, 0, sink, room);
    }
    __device__ static __forceinline__ void reduce(const ExchangePlan *plan, const void *buffer, const DeviceTile &tile,
                                                  uint32_t epoch, QuantSink sink, QuantRoom *room) {
        exchange_encode_tile<TYPE, true, FAR>(plan, buffer, tile, epoch, sink, room);
    }
    __device__ static __forceinline__ void gather(const ExchangePlan *plan, void *buffer, const DeviceTile &tile,
                                                  uint32_t epoch, int row, int rows, QuantRoom *room) {
        exchange_gather_pieces<TYPE, FAR>(plan, buffer, tile, epoch, row, rows, room);
    }
};

#endif
