/* Whole pieces of max-min buckets, the way that most elements go: 8, 4, 2 or 1 buckets of a piece by a warp, in
 * registers from end to end, the same bytes as bucket.cuh's. A lane has four neighbours of each of the piece's groups
 * (QUANT_QUADS), whose codes of 2, 4 or 8 bits fill whole bytes, so that it can read them by itself.
 *
 * Every step has its exact cheap form: elements are in [min, max] of their bucket, so that a code never leaves its
 * range and truncation is an addition of 2^23 that rounds towards zero; a code is made a float by that number's bits;
 * one NaN-keeping minimum finds what is not finite, too. */
#ifndef CGXFFCV_QUANT_CUDA_QUADS_CUH
#define CGXFFCV_QUANT_CUDA_QUADS_CUH

#include "quant/cuda/warp.cuh"

#define QUADS_GROUPS (QUANT_PIECE / QUANT_GROUP)
#define QUADS_ONE 0x4B000000u /* 2^23, whose last bit counts ones */
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

/* The least of all lanes' `min` and the greatest of their `max`; NaN where one of them is. */
__device__ static __forceinline__ void quads_fold(float *min, float *max) {
    const bool low = quant_lane() < WARP / 2; /* half of the lanes fold min, half -max */
    float own = low ? *min : -*max, other = low ? -*max : *min;
    own = quant_min_nan(own, __shfl_xor_sync(WHOLE_WARP, other, WARP / 2));
#pragma unroll
    for (int distance = WARP / 4; distance > 0; distance /= 2) {
        own = quant_min_nan(own, __shfl_xor_sync(WHOLE_WARP, own, distance));
    }
    *min = __shfl_sync(WHOLE_WARP, own, 0);
    *max = -__shfl_sync(WHOLE_WARP, own, WARP / 2);
}

/* The grid of GROUPS groups from `first` on. */
template <int GROUPS> __device__ __forceinline__ QuantGrid quads_grid(const QuadsHalf (&v)[2], int first, int bits) {
    float min = v[first / QUADS_HALF][4 * (first % QUADS_HALF)], max = min;
#pragma unroll
    for (int k = 4 * first + 1; k < 4 * (first + GROUPS); k++) {
        min = quant_min_nan(min, v[k / (4 * QUADS_HALF)][k % (4 * QUADS_HALF)]);
        max = quant_max_nan(max, v[k / (4 * QUADS_HALF)][k % (4 * QUADS_HALF)]);
    }
    quads_fold(&min, &max);
    const uint32_t least = float_bits(min) & 0x7FFFFFFFu, most = float_bits(max) & 0x7FFFFFFFu;
    const bool nan = least >= QUANT_MAGNITUDE_LIMIT || most >= QUANT_MAGNITUDE_LIMIT;
    QuantGrid grid = quant_grid_between(min, max, bits);
    return nan ? quant_grid_nan() : grid;
}

/* The code, in the last bits of what is returned. */
__device__ static __forceinline__ uint32_t quads_code(float x, float min, float inverse) {
    return float_bits(__fadd_rz(QUANT_ADD(quant_place(x, min, inverse), 0.5f), float_of_bits(QUADS_ONE)));
}

/* A lane's four codes, side by side. */
__device__ static __forceinline__ uint32_t quads_pack(const uint32_t (&codes)[4], int bits) {
    uint32_t all = QUADS_ONE + (QUADS_ONE << bits) + (QUADS_ONE << 2 * bits) + (QUADS_ONE << 3 * bits);
    return codes[0] + (codes[1] << bits) + (codes[2] << 2 * bits) + (codes[3] << 3 * bits) - all;
}

__device__ static __forceinline__ void quads_put(QuantRoom *room, int j, int bits, uint32_t packed) {
    const int at = j * WARP + quant_lane();
    if (bits == 4) {
        reinterpret_cast<uint16_t *>(room->codes)[at] = (uint16_t)packed;
    } else if (bits == 2) {
        room->codes[at] = (uint8_t)packed;
    } else {
        reinterpret_cast<uint32_t *>(room->codes)[at] = packed;
    }
}

/* What a group's codes have lost of element c of a lane, of its half `v`. */
__device__ static __forceinline__ float quads_lost(float unscaled, QuantGrid grid, int j, int c, int bits,
                                                   uint32_t packed, const QuadsHalf &v) {
    float decoded = quant_decode(packed >> c * bits & ((1u << bits) - 1u), grid.unit, grid.min);
    return quant_residual_kept(QUANT_MUL(QUANT_SUB(v[4 * (j % QUADS_HALF) + c], decoded), unscaled));
}

/* Keeps it; `residual` is the piece's. */
__device__ static __forceinline__ void quads_keep(QuantKeep keep, QuantGrid grid, int j, int bits, uint32_t packed,
                                                  const QuadsHalf &v) {
    FOR_QUAD(c) {
        float lost = quads_lost(keep.unscaled, grid, j, c, bits, packed, v);
        keep.residual[j * QUANT_GROUP + 4 * quant_lane() + c] = lost;
    }
}

/* Puts it in the elements' place until all of the bucket is known; the greatest magnitude so far. */
__device__ static __forceinline__ uint32_t quads_lose(float unscaled, QuantGrid grid, int j, int bits, uint32_t packed,
                                                      uint32_t magnitude, QuadsHalf &v) {
    FOR_QUAD(c) {
        float lost = quads_lost(unscaled, grid, j, c, bits, packed, v);
        magnitude = quant_greater_magnitude(magnitude, lost);
        v[4 * (j % QUADS_HALF) + c] = lost;
    }
    return magnitude;
}

/* The codes of what GROUPS groups from `first` on, a bucket, have lost. */
template <int GROUPS>
__device__ __forceinline__ void quads_keep_codes(QuantKeepEight keep, int first, uint32_t magnitude,
                                                 const QuadsHalf (&v)[2]) {
    const float inverse = quant_residual_inverse(quant_keep_exponent(keep.exponents + first / GROUPS, magnitude));
#pragma unroll
    for (int j = first; j < first + GROUPS; j++) {
        quant_store_kept<QUANT_QUADS>(keep.codes, inverse, j, QUANT_PIECE, v[j / QUADS_HALF] + 4 * (j % QUADS_HALF));
    }
}

/* The room's codes of a piece, to a multiple of QUANT_MOVE_BYTES. */
__device__ static __forceinline__ void quads_emit(QuantSink sink, uint64_t at, int bits, const QuantRoom *room) {
    __syncwarp();
    for (int i = quant_lane(); i < bits * QUANT_PIECE / 8 / QUANT_MOVE_BYTES; i += WARP) {
        uint4 moved = reinterpret_cast<const uint4 *>(room->codes)[i];
        for (int s = 0; s < sink.count; s++) reinterpret_cast<uint4 *>(sink.bases[s] + at)[i] = moved;
    }
    __syncwarp();
}

/* A piece of 8 / GROUPS buckets, whose metadata and codes stand at `place`; what it loses is kept the one way, or the
 * other. `v` is no more afterwards. */
template <int GROUPS>
__device__ __forceinline__ void quads_encode(QuadsHalf (&v)[2], int bits, QuantPlace place, QuantSink sink,
                                             QuantKeep keep, QuantKeepEight eight, QuantRoom *room) {
#pragma unroll
    for (int first = 0; first < QUADS_GROUPS; first += GROUPS) {
        const QuantGrid grid = quads_grid<GROUPS>(v, first, bits);
        const bool coded = quant_grid_is_usable(grid);
        const float inverse = QUANT_DIV(1.0f, coded ? grid.unit : 1.0f);
        uint64_t metadata = (uint64_t)float_bits(grid.min) << 32 | float_bits(grid.unit);
        uint32_t lost = 0;
        quant_emit_word(sink, place.metadata + (uint64_t)(first / GROUPS * 8), metadata, 8);
#pragma unroll
        for (int j = first; j < first + GROUPS; j++) {
            uint32_t codes[4];
            FOR_QUAD(c) codes[c] = quads_code(v[j / QUADS_HALF][4 * (j % QUADS_HALF) + c], grid.min, inverse);
            const uint32_t packed = coded ? quads_pack(codes, bits) : 0;
            quads_put(room, j, bits, packed);
            if (keep.keeps()) quads_keep(keep, grid, j, bits, packed, v[j / QUADS_HALF]);
            if (eight.keeps()) lost = quads_lose(eight.unscaled, grid, j, bits, packed, lost, v[j / QUADS_HALF]);
        }
        if (eight.keeps()) quads_keep_codes<GROUPS>(eight, first, lost, v);
    }
    quads_emit(sink, place.codes, bits, room);
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

/* The same of memory that is far away, which wants to be read in large parts. */
__device__ static __forceinline__ void quads_fetch_far(const uint8_t *codes, int bits, QuantRoom *room,
                                                       uint32_t (&words)[QUADS_HALF]) {
    __syncwarp();
    for (int i = quant_lane(); i < bits * QUANT_PIECE / 16 / QUANT_MOVE_BYTES; i += WARP) {
        reinterpret_cast<uint4 *>(room->codes)[i] = __ldcg(reinterpret_cast<const uint4 *>(codes) + i);
    }
    __syncwarp();
    quads_fetch<false>(room->codes, bits, words);
}

/* (unit, min) of each group of a half, of `groups` (a power of two) a bucket. */
__device__ static __forceinline__ void quads_fetch_grids(const uint8_t *metadata, int groups, int half,
                                                         float2 (&grids)[QUADS_HALF]) {
    const float2 *from = reinterpret_cast<const float2 *>(metadata) + half * QUADS_HALF / groups;
    grids[0] = __ldcg(from);
#pragma unroll
    for (int j = 1; j < QUADS_HALF; j++) {
        grids[j] = (j & (groups - 1)) == 0 ? __ldcg(from + j / groups) : grids[j - 1];
    }
}

/* Adds one half of a piece to v, which begins as quads_begin; with FAR by way of the room, where `far` says so. */
template <bool FAR>
__device__ __forceinline__ void quads_add(const uint8_t *base, QuantPlace place, int bits, int groups, int half,
                                          bool far, QuantRoom *room, QuadsHalf &v) {
    const uint32_t mask = (1u << bits) - 1u;
    const float one = float_of_bits(QUADS_ONE);
    const uint8_t *codes = base + place.codes + half * bits * (QUANT_PIECE / 16);
    uint32_t words[QUADS_HALF];
    float2 grids[QUADS_HALF];
    quads_fetch_grids(base + place.metadata, groups, half, grids);
    if (FAR && far) {
        quads_fetch_far(codes, bits, room, words);
    } else {
        quads_fetch<true>(codes, bits, words);
    }
    FOR_HALF(j) {
        const bool finite = quant_is_finite(grids[j].x) && quant_is_finite(grids[j].y);
        const float unit = finite ? grids[j].x : float_of_bits(QUANT_NAN_F32);
        FOR_QUAD(c) {
            const float code = QUANT_SUB(float_of_bits(QUADS_ONE | (words[j] >> c * bits & mask)), one);
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
