/* Whole pieces of max-min buckets of 2^shift elements, half a group at least, the way that most elements go: a piece by
 * a warp, in registers from end to end, the same bytes as bucket.cuh's. A lane has four neighbours of each of the
 * piece's groups (QUANT_QUADS). Here is what the exchange does with them, whose codes have 2, 4 or 8 bits and so fill
 * whole bytes, and what pieces.cuh, the quantiser by itself, shares with it.
 *
 * The extremes of all groups are folded at once: step by step each lane goes on with half of what it has, until it has
 * one of 16 numbers; buckets of several groups, or pieces, are folded on from there. So every bucket size has the same
 * code, and a lane divides once for all buckets. Every step has its exact cheap form: codes are marked ones (warp.cuh),
 * which are floats, too; one NaN-keeping minimum finds what is not finite. */
#ifndef CGXFFCV_QUANT_CUDA_QUADS_CUH
#define CGXFFCV_QUANT_CUDA_QUADS_CUH

#include "quant/cuda/warp.cuh"

#define QUADS_GROUPS (QUANT_PIECE / QUANT_GROUP)
#define QUADS_HALF (QUADS_GROUPS / 2)
#define FOR_HALF(j) _Pragma("unroll") for (int j = 0; j < QUADS_HALF; j++)
#define FOR_QUAD(c) _Pragma("unroll") for (int c = 0; c < 4; c++)

/* This lane's elements of one half of a piece. */
typedef float QuadsHalf[QUANT_ROWS / 2];

/* ---- elements ---- */

/* This lane's elements of one half of a piece, at an address that is a multiple of an element's size. */
template <QuantType TYPE>
__device__ __forceinline__ void quads_load(const typename QuantElement<TYPE>::Stored *x, int half, QuadsHalf &v) {
    typename QuantElement<TYPE>::Stored four[QUADS_HALF][4];
    const auto *from = x + half * QUADS_HALF * QUANT_GROUP + 4 * quant_lane();
    if (quant_is_aligned(x)) {
        FOR_HALF(j) quant_read_four<false>(from + j * QUANT_GROUP, four[j]);
    } else {
        FOR_HALF(j) FOR_QUAD(c) four[j][c] = from[j * QUANT_GROUP + c];
    }
    FOR_HALF(j) FOR_QUAD(c) v[4 * j + c] = QuantElement<TYPE>::widened(four[j][c]);
}

template <QuantType TYPE>
__device__ __forceinline__ void quads_store(typename QuantElement<TYPE>::Stored *x, int half, const QuadsHalf &v) {
    typename QuantElement<TYPE>::Stored four[4];
    auto *to = x + half * QUADS_HALF * QUANT_GROUP + 4 * quant_lane();
    const bool aligned = quant_is_aligned(x);
    FOR_HALF(j) {
        FOR_QUAD(c) four[c] = QuantElement<TYPE>::narrowed(v[4 * j + c]);
        if (aligned) {
            quant_put_four(to + j * QUANT_GROUP, four);
        } else {
            FOR_QUAD(c) to[j * QUANT_GROUP + c] = four[c];
        }
    }
}

/* ---- to the wire ---- */

/* Extremes are kept as floats, or as pairs of 16-bit elements, the one of each first and the other of each second. */
__device__ static __forceinline__ float quads_least(float a, float b) { return quant_min_nan(a, b); }
__device__ static __forceinline__ __half2 quads_least(__half2 a, __half2 b) { return __hmin2_nan(a, b); }
__device__ static __forceinline__ __nv_bfloat162 quads_least(__nv_bfloat162 a, __nv_bfloat162 b) {
    return __hmin2_nan(a, b);
}

__device__ static __forceinline__ float quads_single(float least) { return least; }
__device__ static __forceinline__ float quads_single(__half2 least) {
    return quant_min_nan(__low2float(least), __high2float(least));
}
__device__ static __forceinline__ float quads_single(__nv_bfloat162 least) {
    return quant_min_nan(__low2float(least), __high2float(least));
}

/* By value, as classes are chosen by their address. */
template <typename Extreme> __device__ __forceinline__ Extreme quads_chosen(bool first, Extreme a, Extreme b) {
    static_assert(sizeof(Extreme) == sizeof(uint32_t), "extremes are words");
    uint32_t words[2];
    memcpy(&words[0], &a, sizeof a);
    memcpy(&words[1], &b, sizeof b);
    const uint32_t chosen = first ? words[0] : words[1];
    memcpy(static_cast<void *>(&a), &chosen, sizeof a);
    return a;
}

/* Each lane goes on with one half of 2 * COUNT values, those with the bit with the upper one, and gives the other half
 * away to be folded. */
template <int COUNT, typename Extreme>
__device__ __forceinline__ void quads_halve(Extreme (&least)[2 * QUADS_GROUPS], int bit) {
    const bool upper = (quant_lane() & bit) != 0;
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        const Extreme kept = quads_chosen(upper, least[i + COUNT], least[i]);
        const Extreme given = quads_chosen(upper, least[i], least[i + COUNT]);
        least[i] = quads_least(kept, __shfl_xor_sync(WHOLE_WARP, given, bit));
    }
}

/* The group whose extremes a lane has after all that; of its slot, half a group, the first element in the piece. */
__device__ static __forceinline__ int quads_own_group(void) {
    const int lane = quant_lane();
    return (lane >> 3 & 1) | (lane >> 1 & 2) | (lane << 1 & 4);
}
__device__ static __forceinline__ int quads_slot(int group) { return 2 * group + quant_lane() / (WARP / 2); }
#define QUADS_SLOT (QUANT_GROUP / 2)

/* Folds the least of each group, and behind them the negatives of the greatest: what the bucket of this lane's slot
 * comes to, as far as it lies in the piece. Even lanes get the least, odd ones the negative of the greatest; NaN where
 * one of the elements is. Buckets have 2^shift elements, 64 at least. */
template <typename Extreme> __device__ __forceinline__ float quads_fold(Extreme (&least)[2 * QUADS_GROUPS], int shift) {
    quads_halve<8>(least, 1);
    quads_halve<4>(least, 2);
    quads_halve<2>(least, 4);
    quads_halve<1>(least, 8);
    float own = quads_single(least[0]);
#pragma unroll
    for (int distance = WARP / 2, bucket = 7; distance > 1; distance /= 2, bucket++) {
        if (shift >= bucket) own = quant_min_nan(own, __shfl_xor_sync(WHOLE_WARP, own, distance));
    }
    return own;
}

__device__ static __forceinline__ float quads_extremes(const QuadsHalf (&v)[2], int shift) {
    float least[2 * QUADS_GROUPS];
#pragma unroll
    for (int j = 0; j < QUADS_GROUPS; j++) {
        const float *four = v[j / QUADS_HALF] + 4 * (j % QUADS_HALF);
        least[j] = quant_min_nan(quant_min_nan(four[0], four[1]), quant_min_nan(four[2], four[3]));
        least[QUADS_GROUPS + j] = -quant_max_nan(quant_max_nan(four[0], four[1]), quant_max_nan(four[2], four[3]));
    }
    return quads_fold(least, shift);
}

/* A bucket's grid while it is encoded; an inverse of 0 makes every code 0. */
struct QuadsGrid {
    float unit, min, inverse;
};

__device__ static __forceinline__ QuadsGrid quads_grid(float own, int bits) {
    const bool odd = quant_lane() % 2 != 0;
    const float other = __shfl_xor_sync(WHOLE_WARP, own, 1);
    const float min = odd ? other : own, max = -(odd ? own : other);
    const uint32_t least = float_bits(min) & 0x7FFFFFFFu, most = float_bits(max) & 0x7FFFFFFFu;
    const bool nan = least >= QUANT_MAGNITUDE_LIMIT || most >= QUANT_MAGNITUDE_LIMIT;
    const QuantGrid grid = nan ? quant_grid_nan() : quant_grid_between(min, max, bits);
    const bool coded = quant_grid_is_usable(grid);
    return {grid.unit, grid.min, coded ? QUANT_DIV(1.0f, coded ? grid.unit : 1.0f) : 0.0f};
}

/* The grids of a piece's slots into the room, and those of its buckets, which lie in it, to the wire. */
__device__ static __forceinline__ void quads_put_grids(float own, int bits, int shift, uint64_t metadata,
                                                       QuantSink sink, QuantRoom *room) {
    const QuadsGrid grid = quads_grid(own, bits);
    const int slot = quads_slot(quads_own_group()), at = slot * QUADS_SLOT;
    if (quant_lane() % 2 == 0) {
        reinterpret_cast<float4 *>(room->words)[slot] = make_float4(grid.unit, grid.min, grid.inverse, 0.0f);
        const bool begins = (at & ((1 << shift) - 1)) == 0;
        for (int s = 0; begins && s < sink.count; s++) {
            uint8_t *to = sink.bases[s] + metadata + (uint64_t)(at >> shift) * 8;
            *reinterpret_cast<float2 *>(to) = make_float2(grid.unit, grid.min);
        }
    }
    __syncwarp();
}

__device__ static __forceinline__ QuadsGrid quads_grid_at(const QuantRoom *room, int group) {
    const float4 grid = reinterpret_cast<const float4 *>(room->words)[quads_slot(group)];
    return {grid.x, grid.y, grid.z};
}

/* a * b + c by the multiplier, which has more time to spare than what shifts. */
__device__ static __forceinline__ uint32_t quads_placed(uint32_t a, uint32_t b, uint32_t c) {
#ifdef __CUDA_ARCH__
    uint32_t sum;
    asm("mad.lo.u32 %0, %1, %2, %3;" : "=r"(sum) : "r"(a), "r"(b), "r"(c));
    return sum;
#else
    return a * b + c;
#endif
}

/* A lane's four codes, side by side. */
__device__ static __forceinline__ uint32_t quads_pack(const uint32_t (&codes)[4], int bits) {
    const uint32_t all = QUANT_MARK + (QUANT_MARK << bits) + (QUANT_MARK << 2 * bits) + (QUANT_MARK << 3 * bits);
    const uint32_t two = quads_placed(codes[1], 1u << bits, codes[0] - all);
    return quads_placed(codes[3], 1u << 3 * bits, quads_placed(codes[2], 1u << 2 * bits, two));
}

/* What a group's codes have lost of element c of a lane, of its half `v`. */
__device__ static __forceinline__ float quads_lost(float unscaled, const QuadsGrid &grid, int j, int c, int bits,
                                                   uint32_t packed, const QuadsHalf &v) {
    float decoded = quant_decode(packed >> c * bits & ((1u << bits) - 1u), grid.unit, grid.min);
    return quant_residual_kept(QUANT_MUL(QUANT_SUB(v[4 * (j % QUADS_HALF) + c], decoded), unscaled));
}

/* Keeps it; `residual` is the piece's. */
__device__ static __forceinline__ void quads_keep(QuantKeep keep, const QuadsGrid &grid, int j, int bits,
                                                  uint32_t packed, const QuadsHalf &v) {
    FOR_QUAD(c) {
        float lost = quads_lost(keep.unscaled, grid, j, c, bits, packed, v);
        keep.residual[j * QUANT_GROUP + 4 * quant_lane() + c] = lost;
    }
}

/* Puts it in the elements' place until all of the bucket is known; the greatest magnitude so far. */
__device__ static __forceinline__ uint32_t quads_lose(float unscaled, const QuadsGrid &grid, int j, int bits,
                                                      uint32_t packed, QuadsHalf &v) {
    uint32_t magnitude = 0;
    FOR_QUAD(c) {
        float lost = quads_lost(unscaled, grid, j, c, bits, packed, v);
        magnitude = quant_greater_magnitude(magnitude, lost);
        v[4 * (j % QUADS_HALF) + c] = lost;
    }
    return magnitude;
}

/* The codes of what a piece's groups have lost, each up to its magnitude, of buckets of whole groups. */
__device__ static __forceinline__ void
quads_keep_codes(QuantKeepEight keep, int shift, const uint32_t (&magnitudes)[QUADS_GROUPS], const QuadsHalf (&v)[2]) {
    const int groups = 1 << (shift - 7);
    float inverse = 0.0f;
#pragma unroll
    for (int j = 0; j < QUADS_GROUPS; j++) {
        if ((j & (groups - 1)) == 0) {
            uint32_t greatest = 0;
#pragma unroll
            for (int i = j; i < QUADS_GROUPS; i++) {
                if (i < j + groups && magnitudes[i] > greatest) greatest = magnitudes[i];
            }
            inverse = quant_residual_inverse(quant_keep_exponent(keep.exponents + j / groups, greatest));
        }
        quant_store_kept<QUANT_QUADS>(keep.codes, inverse, j, QUANT_PIECE, v[j / QUADS_HALF] + 4 * (j % QUADS_HALF));
    }
}

/* The room's packed codes of a piece, to a multiple of QUANT_MOVE_BYTES. */
__device__ static __forceinline__ void quads_emit(QuantSink sink, uint64_t at, int bits, QuantRoom *room) {
    __syncwarp();
    for (int i = quant_lane(); i < bits * QUANT_PIECE / 8 / QUANT_MOVE_BYTES; i += WARP) {
        uint4 moved = reinterpret_cast<const uint4 *>(room->codes)[i];
        for (int s = 0; s < sink.count; s++) reinterpret_cast<uint4 *>(sink.bases[s] + at)[i] = moved;
    }
    __syncwarp();
}

/* The codes of a piece whose grids are in the room, to `at`; what it loses is kept the one way, or the other. `v` is no
 * more afterwards. */
__device__ static __forceinline__ void quads_put_codes(QuadsHalf (&v)[2], int bits, int shift, uint64_t at,
                                                       QuantSink sink, QuantKeep keep, QuantKeepEight eight,
                                                       QuantRoom *room) {
    uint32_t lost[QUADS_GROUPS];
#pragma unroll
    for (int j = 0; j < QUADS_GROUPS; j++) {
        QuadsHalf &half = v[j / QUADS_HALF];
        const QuadsGrid grid = quads_grid_at(room, j);
        uint32_t codes[4];
        FOR_QUAD(c) codes[c] = quant_marked_nearest(half[4 * (j % QUADS_HALF) + c], grid.min, grid.inverse);
        const uint32_t packed = grid.inverse != 0.0f ? quads_pack(codes, bits) : 0;
        quant_put_packed(room, j, bits, packed);
        if (keep.keeps()) quads_keep(keep, grid, j, bits, packed, half);
        if (eight.keeps()) lost[j] = quads_lose(eight.unscaled, grid, j, bits, packed, half);
    }
    if (eight.keeps()) quads_keep_codes(eight, shift, lost, v);
    quads_emit(sink, at, bits, room);
}

/* A piece of buckets that lie in it, whose metadata and codes stand at `place`. */
__device__ static __forceinline__ void quads_encode(QuadsHalf (&v)[2], int bits, int shift, QuantPlace place,
                                                    QuantSink sink, QuantKeep keep, QuantKeepEight eight,
                                                    QuantRoom *room) {
    quads_put_grids(quads_extremes(v, shift), bits, shift, place.metadata, sink, room);
    quads_put_codes(v, bits, shift, place.codes, sink, keep, eight, room);
}

/* ---- from the wire: others write it, so the nearer cache is passed by ---- */

/* The codes of this lane's quads of a half, which begins at `codes`. */
template <bool OTHERS>
__device__ __forceinline__ void quads_fetch(const uint8_t *codes, int bits, uint32_t (&words)[QUADS_HALF]) {
    if (bits == 4) {
        const unsigned short *from = reinterpret_cast<const unsigned short *>(codes) + quant_lane();
        FOR_HALF(j) words[j] = quant_read<OTHERS>(from + j * WARP);
    } else if (bits == 2) {
        const uint8_t *from = codes + quant_lane();
        FOR_HALF(j) words[j] = quant_read<OTHERS>(from + j * WARP);
    } else {
        const unsigned int *from = reinterpret_cast<const unsigned int *>(codes) + quant_lane();
        FOR_HALF(j) words[j] = quant_read<OTHERS>(from + j * WARP);
    }
}

/* The same by way of the room: of memory that is far away, which wants to be read in large parts. */
__device__ static __forceinline__ void quads_fetch_far(const uint8_t *codes, int bits, QuantRoom *room,
                                                       uint32_t (&words)[QUADS_HALF]) {
    __syncwarp();
    for (int i = quant_lane(); i < bits * QUANT_PIECE / 16 / QUANT_MOVE_BYTES; i += WARP) {
        reinterpret_cast<uint4 *>(room->codes)[i] = __ldcg(reinterpret_cast<const uint4 *>(codes) + i);
    }
    __syncwarp();
    quads_fetch<false>(room->codes, bits, words);
}

/* (unit, min) of each of this lane's quads of a half, of buckets of 2^shift elements, at least 128. */
__device__ static __forceinline__ void quads_fetch_grids(const uint8_t *metadata, int shift, int half,
                                                         float2 (&grids)[QUADS_HALF]) {
    const int first = half * QUADS_HALF * QUANT_GROUP;
    const float2 *from = reinterpret_cast<const float2 *>(metadata) + (first >> shift);
    grids[0] = __ldcg(from);
#pragma unroll
    for (int j = 1; j < QUADS_HALF; j++) {
        const bool begins = (j * QUANT_GROUP & ((1 << shift) - 1)) == 0;
        grids[j] = begins ? __ldcg(from + (j * QUANT_GROUP >> shift)) : grids[j - 1];
    }
}

/* Adds one half of a piece to v, which begins as quads_begin; by way of the room with FAR, where `far` says so. */
template <bool FAR>
__device__ __forceinline__ void quads_add(const uint8_t *base, QuantPlace place, int bits, int shift, int half,
                                          bool far, QuantRoom *room, QuadsHalf &v) {
    const uint32_t mask = (1u << bits) - 1u;
    const float one = float_of_bits(QUANT_MARK);
    const uint8_t *codes = base + place.codes + half * bits * (QUANT_PIECE / 16);
    uint32_t words[QUADS_HALF];
    float2 grids[QUADS_HALF];
    quads_fetch_grids(base + place.metadata, shift, half, grids);
    if (FAR && far) {
        quads_fetch_far(codes, bits, room, words);
    } else {
        quads_fetch<true>(codes, bits, words);
    }
    FOR_HALF(j) {
        const bool finite = quant_is_finite(grids[j].x) && quant_is_finite(grids[j].y);
        const float unit = finite ? grids[j].x : float_of_bits(QUANT_NAN_F32);
        FOR_QUAD(c) {
            const float code = QUANT_SUB(float_of_bits(QUANT_MARK | (words[j] >> c * bits & mask)), one);
            v[4 * j + c] = QUANT_ADD(v[4 * j + c], QUANT_ADD(grids[j].y, QUANT_MUL(unit, code)));
        }
    }
}

/* -0, to which everything is added without a change. */
__device__ static __forceinline__ void quads_begin(QuadsHalf &v) {
#pragma unroll
    for (int k = 0; k < QUANT_ROWS / 2; k++) v[k] = -0.0f;
}

#endif
