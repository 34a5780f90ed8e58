/* Whole pieces of buckets of 2^shift elements, half a group at least, by the quantiser's own kernels: in registers from
 * end to end, the same bytes as bucket.cuh's. A lane has four neighbours of each of the piece's groups (QUANT_QUADS),
 * as they are stored, so that two elements of 16 bits share a register and their extremes are found two at a time.
 * Codes that fill whole bytes four by four go to the wire, and come from it, as they are; others by way of the room.
 *
 * Warp w of a block: piece QUANT_WARPS (block - first_quick) + w of an item, to which blocks [first_quick, first_quick
 * of the next item) belong. The pieces of a bucket that has several are those of neighbouring warps. Buffers and shared
 * memory are those of quantize.cuh. */
#ifndef CGXFFCV_QUANT_CUDA_PIECES_CUH
#define CGXFFCV_QUANT_CUDA_PIECES_CUH

#include "quant/cuda/quads.cuh"
#include "quant/cuda/quantize.cuh"

/* The piece of a warp. */
struct PiecesOwn {
    int64_t number;
    int inside; /* the number of its first element in its bucket */
    bool some;  /* false: none */
    QuantPlace place;
};

__device__ static __forceinline__ PiecesOwn pieces_of(const QuantItem *item, int warp) {
    PiecesOwn piece = {};
    piece.number = ((int64_t)blockIdx.x - item->first_quick) * QUANT_WARPS + warp;
    piece.some = piece.number < item->pieces;
    const int64_t first = piece.number * QUANT_PIECE;
    piece.inside = (int)(first & ((1 << item->shift) - 1));
    piece.place.metadata = (uint64_t)(first >> item->shift) * item->layout.metadata;
    piece.place.codes =
        item->layout.codes_at + (uint64_t)piece.number * (QUANT_PIECE / 8) * (uint64_t)item->run.spec.bits;
    return piece;
}

/* That of this warp. */
__device__ static __forceinline__ PiecesOwn pieces_own(const QuantItem *item) {
    return pieces_of(item, (int)threadIdx.x / WARP);
}

/* ---- elements ---- */

template <QuantType TYPE> struct PiecesPair;
template <> struct PiecesPair<QUANT_F16> {
    typedef __half2 Two;
    __device__ static __forceinline__ float2 widened(Two two) { return __half22float2(two); }
    __device__ static __forceinline__ Two narrowed(float a, float b) { return __floats2half2_rn(a, b); }
};
template <> struct PiecesPair<QUANT_BF16> {
    typedef __nv_bfloat162 Two;
    __device__ static __forceinline__ float2 widened(Two two) { return __bfloat1622float2(two); }
    __device__ static __forceinline__ Two narrowed(float a, float b) { return __floats2bfloat162_rn(a, b); }
};

__device__ static __forceinline__ float pieces_greatest(float a, float b) { return quant_max_nan(a, b); }
__device__ static __forceinline__ __half2 pieces_greatest(__half2 a, __half2 b) { return __hmax2_nan(a, b); }
__device__ static __forceinline__ __nv_bfloat162 pieces_greatest(__nv_bfloat162 a, __nv_bfloat162 b) {
    return __hmax2_nan(a, b);
}

#define FOR_QUADS(j) _Pragma("unroll") for (int j = 0; j < QUADS_GROUPS; j++)

/* This lane's elements of a piece, at an address that is a multiple of an element's size. */
template <QuantType TYPE> struct PiecesElements {
    typedef typename PiecesPair<TYPE>::Two Extreme; /* of all first, and of all second ones of pairs */
    Extreme pairs[QUADS_GROUPS][2];

    __device__ __forceinline__ void load(const uint16_t *x) {
        const uint16_t *from = x + 4 * quant_lane();
        uint16_t four[QUADS_GROUPS][4];
        if (quant_is_aligned(x)) {
            FOR_QUADS(j) quant_read_four<false>(from + j * QUANT_GROUP, four[j]);
        } else {
            FOR_QUADS(j) FOR_QUAD(c) four[j][c] = from[j * QUANT_GROUP + c];
        }
        memcpy(static_cast<void *>(pairs), four, sizeof four);
    }

    __device__ __forceinline__ Extreme least(int j) const { return quads_least(pairs[j][0], pairs[j][1]); }
    __device__ __forceinline__ Extreme greatest(int j) const { return pieces_greatest(pairs[j][0], pairs[j][1]); }
    __device__ __forceinline__ void group(int j, float (&four)[4]) const {
        const float2 first = PiecesPair<TYPE>::widened(pairs[j][0]), second = PiecesPair<TYPE>::widened(pairs[j][1]);
        four[0] = first.x, four[1] = first.y, four[2] = second.x, four[3] = second.y;
    }
};

template <> struct PiecesElements<QUANT_F32> {
    typedef float Extreme;
    float groups[QUADS_GROUPS][4];

    __device__ __forceinline__ void load(const float *x) {
        const float *from = x + 4 * quant_lane();
        if (quant_is_aligned(x)) {
            FOR_QUADS(j) quant_read_four<false>(from + j * QUANT_GROUP, groups[j]);
        } else {
            FOR_QUADS(j) FOR_QUAD(c) groups[j][c] = from[j * QUANT_GROUP + c];
        }
    }

    __device__ __forceinline__ Extreme least(int j) const {
        const float *four = groups[j];
        return quads_least(quads_least(four[0], four[1]), quads_least(four[2], four[3]));
    }
    __device__ __forceinline__ Extreme greatest(int j) const {
        const float *four = groups[j];
        return pieces_greatest(pieces_greatest(four[0], four[1]), pieces_greatest(four[2], four[3]));
    }
    __device__ __forceinline__ void group(int j, float (&to)[4]) const { FOR_QUAD(c) to[c] = groups[j][c]; }
};

/* ---- extremes ---- */

/* The same as quads_fold, in fewer steps, where the piece lies in one bucket. */
template <typename Extreme> __device__ __forceinline__ float pieces_fold(Extreme (&least)[2 * QUADS_GROUPS]) {
#pragma unroll
    for (int j = 1; j < QUADS_GROUPS; j++) {
        least[0] = quads_least(least[0], least[j]);
        least[QUADS_GROUPS] = quads_least(least[QUADS_GROUPS], least[QUADS_GROUPS + j]);
    }
    const float low = quads_single(least[0]), high = quads_single(least[QUADS_GROUPS]);
    const bool odd = quant_lane() % 2 != 0;
    float own = quant_min_nan(odd ? high : low, __shfl_xor_sync(WHOLE_WARP, odd ? low : high, 1));
#pragma unroll
    for (int distance = 2; distance < WARP; distance *= 2) {
        own = quant_min_nan(own, __shfl_xor_sync(WHOLE_WARP, own, distance));
    }
    return own;
}

/* As quads_fold leaves them; WIDE: the piece lies in one bucket. */
template <bool WIDE, QuantType TYPE>
__device__ __forceinline__ float pieces_extremes(const PiecesElements<TYPE> &elements, int shift) {
    typename PiecesElements<TYPE>::Extreme least[2 * QUADS_GROUPS];
    FOR_QUADS(j) {
        least[j] = elements.least(j);
        least[QUADS_GROUPS + j] = -elements.greatest(j);
    }
    if constexpr (WIDE) {
        return pieces_fold(least);
    } else {
        return quads_fold(least, shift);
    }
}

/* ---- to the wire ---- */

/* The random words of this lane's elements of groups [first, first + PIECES_DRAWN), round by round, so that neither
 * waits for the other; `random` holds the quad of the piece. */
#define PIECES_DRAWN 2
__device__ static __forceinline__ void pieces_draw(const QuantRandom &random, int first,
                                                   Philox4 (&words)[PIECES_DRAWN]) {
    uint32_t low = (uint32_t)random.seed, high = (uint32_t)(random.seed >> 32);
#pragma unroll
    for (int j = 0; j < PIECES_DRAWN; j++) {
        const uint64_t quad = random.quad + (uint64_t)((first + j) * WARP + quant_lane());
        words[j] = philox_counter(random.call, quad, PHILOX_QUANTIZE, random.rank);
    }
#pragma unroll
    for (int round = 0; round < PHILOX_ROUNDS; round++, low += PHILOX_W0, high += PHILOX_W1) {
#pragma unroll
        for (int j = 0; j < PIECES_DRAWN; j++) words[j] = philox_round(words[j], low, high);
    }
}

/* Four codes of this lane, side by side, of each group: by the grid given, with WIDE, or those in the room. */
template <bool DRAWS, bool WIDE, QuantType TYPE>
__device__ __forceinline__ void pieces_codes(const PiecesElements<TYPE> &elements, const QuadsGrid &wide, int bits,
                                             const QuantRandom &random, const QuantRoom *room,
                                             uint32_t (&packed)[QUADS_GROUPS]) {
    const float levels = (float)((1 << bits) - 1);
    Philox4 words[PIECES_DRAWN];
    FOR_QUADS(j) {
        const QuadsGrid grid = WIDE ? wide : quads_grid_at(room, j);
        float four[4];
        uint32_t codes[4];
        elements.group(j, four);
        if (DRAWS && j % PIECES_DRAWN == 0) pieces_draw(random, j, words);
        FOR_QUAD(c) {
            const uint32_t word = DRAWS ? words[j % PIECES_DRAWN].word[c] : 0;
            codes[c] = DRAWS ? quant_marked_drawn(four[c], grid.min, grid.inverse, levels, word)
                             : quant_marked_nearest(four[c], grid.min, grid.inverse);
        }
        packed[j] = grid.inverse != 0.0f ? quads_pack(codes, bits) : 0;
    }
}

/* Writes them, from `to` on. */
__device__ static __forceinline__ void pieces_store(const uint32_t (&packed)[QUADS_GROUPS], int bits, uint8_t *to,
                                                    QuantRoom *room) {
    const int lane = quant_lane();
    const QuantSink sink = {&to, 1};
    switch (bits) {
    case 2:
        FOR_QUADS(j) to[j * WARP + lane] = (uint8_t)packed[j];
        break;
    case 4:
        FOR_QUADS(j) reinterpret_cast<uint16_t *>(to)[j * WARP + lane] = (uint16_t)packed[j];
        break;
    case 8:
        FOR_QUADS(j) reinterpret_cast<uint32_t *>(to)[j * WARP + lane] = packed[j];
        break;
    default:
        __syncwarp(); /* grids have been read */
        FOR_QUADS(j) reinterpret_cast<uint32_t *>(room->codes)[j * WARP + lane] = packed[j];
        quant_emit_codes<QUANT_QUADS>(sink, 0, bits, QUANT_PIECE, room);
    }
}

template <bool DRAWS, bool WIDE, QuantType TYPE>
__device__ __forceinline__ void pieces_encode(const PiecesElements<TYPE> &elements, float own, const QuantItem *item,
                                              const PiecesOwn &piece, QuantRoom *room) {
    const int bits = item->run.spec.bits;
    uint8_t *base = (uint8_t *)item->run.wire;
    QuantRandom random = item->run.random;
    QuadsGrid grid = {};
    uint32_t packed[QUADS_GROUPS];
    random.quad += (uint64_t)piece.number * (QUANT_PIECE / 4);
    if (!WIDE) {
        quads_put_grids(own, bits, item->shift, piece.place.metadata, {&base, 1}, room);
    } else {
        grid = quads_grid(own, bits);
        if (quant_lane() == 0 && piece.inside == 0) {
            *reinterpret_cast<float2 *>(base + piece.place.metadata) = make_float2(grid.unit, grid.min);
        }
    }
    pieces_codes<DRAWS, WIDE>(elements, grid, bits, random, room, packed);
    pieces_store(packed, bits, base + piece.place.codes, room);
}

/* ---- from the wire ---- */

/* This lane's four codes of each group of a half, which begins at `codes`. */
__device__ static __forceinline__ void pieces_fetch(const uint8_t *codes, int bits, QuantRoom *room,
                                                    uint32_t (&words)[QUADS_HALF]) {
    const int lane = quant_lane();
    if (bits == 1) {
        const uint32_t word = __ldcg(reinterpret_cast<const unsigned int *>(codes) + lane % (WARP / 2));
        FOR_HALF(j) words[j] = __shfl_sync(WHOLE_WARP, word, 4 * j + lane / 8) >> 4 * (lane % 8);
    } else if (bits == 2 || bits == 4 || bits == 8) {
        quads_fetch<true>(codes, bits, words);
    } else {
        quant_fetch(codes, 0, bits * QUANT_PIECE / 16, room);
        FOR_HALF(j) words[j] = quant_four_codes_at(room, (j * WARP + lane) * 4 * bits, bits);
    }
}

/* (unit, min) of a bucket; the unit is NaN where the bucket is one of NaN. */
template <QuantCodec CODEC>
__device__ __forceinline__ float2 pieces_fetch_grid(const uint8_t *metadata, int64_t bucket) {
    float2 grid;
    if (CODEC == QUANT_SIGN) {
        const float mean = __ldcg(reinterpret_cast<const float *>(metadata) + bucket);
        grid = make_float2(QUANT_MUL(-2.0f, mean), mean);
    } else {
        grid = __ldcg(reinterpret_cast<const float2 *>(metadata) + bucket);
    }
    if (!quant_is_finite(grid.x) || !quant_is_finite(grid.y)) grid.x = float_of_bits(QUANT_NAN_F32);
    return grid;
}

/* That of this lane's elements of a group. Each lane has fetched that of half a group, as many as there are; with WIDE
 * there is one bucket. */
template <bool WIDE> __device__ __forceinline__ float2 pieces_grid_of(float2 own, int group) {
    if (WIDE) return own;
    const int slot = 2 * group + quant_lane() / (WARP / 2);
    return make_float2(__shfl_sync(WHOLE_WARP, own.x, slot), __shfl_sync(WHOLE_WARP, own.y, slot));
}

/* Stores a lane's four elements of a group, or the canonical NaN; `aligned`: at once. */
template <QuantType TYPE>
__device__ __forceinline__ void pieces_put_four(float *to, const float (&four)[4], bool finite, bool aligned) {
    float stored[4];
    FOR_QUAD(c) stored[c] = finite ? four[c] : float_of_bits(QUANT_NAN_F32);
    if (aligned) {
        quant_put_four(to, stored);
    } else {
        FOR_QUAD(c) to[c] = stored[c];
    }
}

template <QuantType TYPE>
__device__ __forceinline__ void pieces_put_four(uint16_t *to, const float (&four)[4], bool finite, bool aligned) {
    const uint32_t nan = TYPE == QUANT_F16 ? HALF_NAN : BFLOAT16_NAN;
    uint32_t words[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const auto two = PiecesPair<TYPE>::narrowed(four[2 * i], four[2 * i + 1]);
        memcpy(&words[i], &two, sizeof two);
        if (!finite) words[i] = nan | nan << 16;
    }
    if (aligned) {
        *reinterpret_cast<uint2 *>(to) = make_uint2(words[0], words[1]);
    } else {
        FOR_QUAD(c) to[c] = (uint16_t)(words[c / 2] >> 16 * (c % 2));
    }
}

/* Decodes a piece of buckets that have grids; spikes as if they were others. */
template <QuantType TYPE, QuantCodec CODEC, bool WIDE>
__device__ __forceinline__ void pieces_decode_by(const QuantItem *item, const PiecesOwn &piece, QuantRoom *room) {
    const uint8_t *base = (const uint8_t *)item->run.wire;
    auto *to = (typename QuantElement<TYPE>::Stored *)item->run.x + piece.number * QUANT_PIECE;
    const int bits = item->run.spec.bits;
    const int slot = quant_lane() % (2 * QUADS_GROUPS) * QUADS_SLOT;
    const float2 own = pieces_fetch_grid<CODEC>(base + piece.place.metadata, slot >> item->shift);
    const uint32_t mask = (1u << bits) - 1u;
    const bool aligned = quant_is_aligned(to);
    uint32_t words[QUADS_HALF];
    FOR_QUADS(j) {
        if (j % QUADS_HALF == 0) {
            pieces_fetch(base + piece.place.codes + j / QUADS_HALF * bits * (QUANT_PIECE / 16), bits, room, words);
        }
        const float2 grid = pieces_grid_of<WIDE>(own, j);
        const uint32_t codes = words[j % QUADS_HALF];
        float four[4];
        FOR_QUAD(c) {
            const float marked = float_of_bits(QUANT_MARK | (codes >> c * bits & mask));
            four[c] = QUANT_ADD(grid.y, QUANT_MUL(grid.x, QUANT_SUB(marked, float_of_bits(QUANT_MARK))));
        }
        pieces_put_four<TYPE>(to + j * QUANT_GROUP + 4 * quant_lane(), four, quant_is_finite(grid.x), aligned);
    }
}

template <QuantType TYPE, QuantCodec CODEC>
__device__ __forceinline__ void pieces_decode(const QuantItem *item, const PiecesOwn &piece, QuantRoom *room) {
    if (1 << item->shift >= QUANT_PIECE) {
        pieces_decode_by<TYPE, CODEC, true>(item, piece, room);
    } else {
        pieces_decode_by<TYPE, CODEC, false>(item, piece, room);
    }
}

template <QuantType TYPE, QuantCodec CODEC>
static __global__ void __launch_bounds__(QUANT_WARPS *WARP, 4) pieces_decode_kernel(const QuantItem *items, int count) {
    __shared__ QuantRoom rooms[QUANT_WARPS];
    grid_begin();
    const QuantItem *item = quant_find_item<true>(items, count);
    const PiecesOwn piece = pieces_own(item);
    if (piece.some) pieces_decode<TYPE, CODEC>(item, piece, &rooms[threadIdx.x / WARP]);
}

template <QuantCodec CODEC> static Status pieces_launch_decode(const QuantDeviceBatch *batch, DeviceStream *stream) {
#define DECODE(TYPE)                                                                                                   \
    LAUNCH_AFTER((pieces_decode_kernel<TYPE, CODEC>), (unsigned)batch->quick_blocks, QUANT_WARPS *WARP, 0, stream,     \
                 batch->items, batch->count)
    return QUANT_BY_TYPE(batch->type, DECODE);
#undef DECODE
}

#endif
