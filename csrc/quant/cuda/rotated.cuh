/* The codec "rotated" by one warp. A bucket's values lie like its elements, `v[p][k]` of a lane being value 1024 p + 32
 * k + lane, so that butterflies are shuffles below a distance of 32 and registers above. A bucket of more than one
 * piece does not fit into registers: its values pass through local memory. */
#ifndef CGXFFCV_QUANT_CUDA_ROTATED_CUH
#define CGXFFCV_QUANT_CUDA_ROTATED_CUH

#include "quant/cuda/warp.cuh"

extern "C" {
#include "quant/rotation.h"
}

#define QUANT_MAX_PIECES (QUANT_ROTATED_MAX_BUCKET / QUANT_PIECE)
#define QUANT_PIECE_DRAWS (QUANT_PIECE / QUANT_SIGNS)
/* In the room's words, behind a piece's signs. */
#define QUANT_LEVELS_AT QUANT_ROWS
#define QUANT_THRESHOLDS_AT (QUANT_LEVELS_AT + (1 << QUANT_ROTATED_MAX_BITS))

/* Of buckets of up to PIECES pieces: 1, or QUANT_MAX_PIECES. Rows beyond the bucket's are worked on like the others,
 * which costs less than to leave them out, and come to nothing. */
template <int PIECES> struct QuantValues {
    float v[PIECES][QUANT_ROWS];
    int count = 0; /* of values */

    __device__ __forceinline__ int pieces() const { return PIECES == 1 ? 1 : count / QUANT_PIECE; }
    __device__ __forceinline__ int rows() const { return (PIECES == 1 ? count : QUANT_PIECE) / WARP; }
};

#define FOR_PIECES(p, values) _Pragma("unroll 1") for (int p = 0; p < (values).pieces(); p++)
/* Registers take no index, local memory does. */
#define FOR_ROWS(k) _Pragma("unroll (PIECES == 1 ? 32 : 1)") for (int k = 0; k < QUANT_ROWS; k++)

/* Out of line, so that what one piece needs may stay in registers. */
template <typename Work> __device__ NOT_INLINE void quant_apart(const Work &work) { work(); }

/* What a bucket's values may be done with: CALL(1) for one piece, else CALL(QUANT_MAX_PIECES). */
#define QUANT_BY_PIECES(elems, CALL)                                                                                   \
    if ((elems) <= QUANT_PIECE) {                                                                                      \
        CALL(1);                                                                                                       \
    } else {                                                                                                           \
        quant_apart([&]() { CALL(QUANT_MAX_PIECES); });                                                                \
    }

/* ---- the domain ---- */

template <int PIECES>
__device__ __forceinline__ void quant_turn_signs(QuantValues<PIECES> &values, const QuantRandom &random,
                                                 QuantRoom *room) {
    const int lane = quant_lane();
    FOR_PIECES(p, values) {
        __syncwarp();
        if (lane < QUANT_PIECE_DRAWS) {
            Philox4 signs = quant_signs(&random, p * QUANT_PIECE_DRAWS + lane);
            for (int i = 0; i < 4; i++) room->words[4 * lane + i] = signs.word[i];
        }
        __syncwarp();
#pragma unroll(PIECES == 1 ? 8 : 1)
        for (int i = 0; i < QUANT_ROWS / 4; i++) {
            const uint4 four = reinterpret_cast<const uint4 *>(room->words)[i];
            const uint32_t words[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
            for (int c = 0; c < 4; c++) {
                float *value = &values.v[p][4 * i + c];
                *value = float_of_bits(float_bits(*value) ^ (words[c] << (WARP - 1 - lane) & 0x80000000u));
            }
        }
    }
}

__device__ static __forceinline__ void quant_butterfly(float *a, float *b) {
    float sum = QUANT_ADD(*a, *b);
    *b = QUANT_SUB(*a, *b);
    *a = sum;
}

/* The butterflies within a piece. */
template <int PIECES> __device__ __forceinline__ void quant_rotate_piece(float (&v)[QUANT_ROWS], int rows) {
    const int lane = quant_lane();
#pragma unroll(PIECES == 1 ? 5 : 1)
    for (int h = 1; h < WARP; h *= 2) {
        const float sign = (lane & h) != 0 ? -1.0f : 1.0f; /* whose product is exact, so that one rounding is left */
        FOR_ROWS(k) v[k] = __fmaf_rn(v[k], sign, __shfl_xor_sync(WHOLE_WARP, v[k], h));
    }
#pragma unroll(PIECES == 1 ? 5 : 1)
    for (int h = 1; h < QUANT_ROWS; h *= 2) {
        if (h >= rows) continue;
        FOR_ROWS(k) {
            if ((k & h) == 0) quant_butterfly(&v[k], &v[(k + h) % QUANT_ROWS]);
        }
    }
}

/* The Hadamard transform, which is its own inverse; where a bucket is one of NaN all become NaN. */
template <int PIECES> __device__ __forceinline__ void quant_rotate(QuantValues<PIECES> &values, bool nan) {
    const float factor = nan ? float_of_bits(QUANT_NAN_F32) : quant_rotation_factor(values.count);
    FOR_PIECES(p, values) quant_rotate_piece<PIECES>(values.v[p], values.rows());
    for (int h = 1; h < values.pieces(); h *= 2) {
        FOR_PIECES(p, values) {
            if ((p & h) != 0) continue;
            for (int k = 0; k < QUANT_ROWS; k++) quant_butterfly(&values.v[p][k], &values.v[(p + h) % PIECES][k]);
        }
    }
    FOR_PIECES(p, values) { FOR_ROWS(k) values.v[p][k] = QUANT_MUL(values.v[p][k], factor); }
}

/* The bucket's elements, which `source` gives, as values. */
template <int PIECES, typename Source>
__device__ __forceinline__ void quant_enter(const Source &source, int64_t elems, const QuantRandom &random,
                                            QuantValues<PIECES> &values, QuantRoom *room) {
    float magnitude = 0.0f;
    values.count = (int)quant_rotated_values(elems);
    FOR_PIECES(p, values) {
        int count = quant_piece_count(elems, p * QUANT_PIECE), rows = count > 0 ? quant_rows(count) : 0;
        if (count > 0) source.piece(p * QUANT_PIECE, count, values.v[p]);
        FOR_ROWS(k) {
            if (k >= rows) values.v[p][k] = 0.0f;
            magnitude = quant_max_nan(magnitude, fabsf(values.v[p][k]));
        }
    }
    const bool nan = quant_warp_magnitude(magnitude) >= QUANT_ROTATED_LIMIT;
    quant_turn_signs(values, random, room);
    quant_rotate(values, nan);
}

template <int PIECES>
__device__ __forceinline__ void quant_leave(QuantValues<PIECES> &values, const QuantRandom &random, QuantRoom *room) {
    quant_rotate(values, false);
    quant_turn_signs(values, random, room);
}

/* ---- codes ---- */

/* Of a table in the room what a marked code stands for. */
__device__ static __forceinline__ float quant_marked_at(const uint32_t *table, uint32_t marked) {
    return float_of_bits(table[marked - QUANT_MARK]);
}

/* Guesses how many thresholds lie below t, one too few at most, by a curve through them: u (first + u (second + u
 * third)), where u, from 0 to 1, is how far t has come. */
struct QuantCurve {
    float step, first, second, third;

    __device__ __forceinline__ explicit QuantCurve(int bits) {
        step = bits == 4 ? 0.17543860f : bits == 3 ? 0.26428571f : bits == 2 ? 0.33333333f : 0.4f;
        first = bits == 4 ? 0.54f : (float)((1 << bits) - 1);
        second = bits == 4 ? 43.38f : 0.0f;
        third = bits == 4 ? -28.92f : 0.0f;
    }

    /* Marked; of NaN code 0. */
    __device__ __forceinline__ float guess(float t) const {
        const float u = __saturatef(__fmaf_rn(t, step, 0.5f));
        const float curve = __fmaf_rn(u, __fmaf_rn(u, third, second), first);
        return __fmaf_rz(u, curve, float_of_bits(QUANT_MARK));
    }
};

/* The threshold above a code, infinity above the last one: it decides whether the next code is taken. */
__device__ static __forceinline__ float quant_threshold_above(int bits, int code) {
    return code + 1 < 1 << bits ? quant_threshold(bits, code) : float_of_bits(0x7F800000u);
}

__device__ static __forceinline__ uint32_t quant_marked_decided(float guess, float above, float t) {
    return float_bits(QUANT_ADD(guess, above < t ? 1.0f : 0.0f));
}

/* Finds codes with the help of the room, which has the threshold above each. */
struct QuantThresholds {
    QuantCurve curve;
    const QuantRoom *room;

    __device__ __forceinline__ QuantThresholds(int bits, QuantRoom *with) : curve(bits), room(with) {
        const int lane = quant_lane();
        __syncwarp();
        if (lane < 1 << bits) {
            with->words[QUANT_THRESHOLDS_AT + lane] = float_bits(quant_threshold_above(bits, lane));
        }
        __syncwarp();
    }

    /* Marked; of NaN that of code 0. */
    __device__ __forceinline__ uint32_t code(float t) const {
        const float guess = curve.guess(t);
        const float above = quant_marked_at(room->words + QUANT_THRESHOLDS_AT, float_bits(guess));
        return quant_marked_decided(guess, above, t);
    }
};

/* By which values are multiplied to find their codes: NaN where all are 0. */
__device__ static __forceinline__ float quant_rotated_inverse(float rms) {
    return quant_is_finite(rms) && rms > 0.0f ? QUANT_DIV(1.0f, rms) : float_of_bits(QUANT_NAN_F32);
}

/* What codes stand for, in the room: levels times `scale`, NaN with one that is no number. */
__device__ static __forceinline__ void quant_put_levels(int bits, float scale, QuantRoom *room) {
    const int lane = quant_lane();
    __syncwarp();
    if (lane < 1 << bits) {
        float level = QUANT_MUL(quant_level(bits, lane), scale);
        room->words[QUANT_LEVELS_AT + lane] = quant_is_finite(scale) ? float_bits(level) : QUANT_NAN_F32;
    }
    __syncwarp();
}

__device__ static __forceinline__ float quant_level_at(const QuantRoom *room, uint32_t code) {
    return float_of_bits(room->words[QUANT_LEVELS_AT + code]);
}

/* ---- buckets ---- */

template <int PIECES> __device__ __forceinline__ float quant_sum_of_squares(const QuantValues<PIECES> &values) {
    float partial = 0.0f;
    FOR_PIECES(p, values) { FOR_ROWS(k) partial = QUANT_ADD(partial, QUANT_MUL(values.v[p][k], values.v[p][k])); }
    return quant_warp_fold(partial);
}

/* Writes the codes; returns the bucket's scale. */
template <int PIECES>
__device__ __forceinline__ float quant_emit_levels(const QuantValues<PIECES> &values, const QuantSpec &spec, float rms,
                                                   float squares, QuantPlace place, QuantSink sink, QuantRoom *room) {
    const bool unbiased = spec.scale != QUANT_SCALE_MSE;
    const QuantThresholds thresholds(spec.bits, room);
    const float inverse = quant_rotated_inverse(rms);
    float partial = 0.0f;
    quant_put_levels(spec.bits, 1.0f, room);
    FOR_PIECES(p, values) {
        __syncwarp();
        FOR_ROWS(k) {
            const uint32_t code = thresholds.code(QUANT_MUL(values.v[p][k], inverse));
            room->codes[k * WARP + quant_lane()] = (uint8_t)code;
            if (unbiased)
                partial =
                    QUANT_ADD(partial, QUANT_MUL(values.v[p][k], quant_marked_at(room->words + QUANT_LEVELS_AT, code)));
        }
        uint64_t at = place.codes + (uint64_t)(p * QUANT_PIECE / 8 * spec.bits);
        quant_emit_codes(sink, at, spec.bits, values.rows() * WARP, room);
    }
    if (inverse != inverse || !unbiased) return rms;
    return QUANT_DIV(squares, quant_warp_fold(partial));
}

/* Keeps these elements of a bucket. */
template <int PIECES, typename Keep>
__device__ __forceinline__ void quant_keep_elements(QuantValues<PIECES> &values, int64_t elems, Keep keep) {
    const int lane = quant_lane();
    uint32_t magnitude = 0;
    FOR_PIECES(p, values) {
        int count = quant_piece_count(elems, p * QUANT_PIECE), rows = count > 0 ? quant_rows(count) : 0;
        FOR_ROWS(k) {
            if (k >= rows) continue;
            float kept = quant_residual_kept(QUANT_MUL(values.v[p][k], keep.unscaled));
            if constexpr (!Keep::EIGHT) {
                keep.residual[p * QUANT_PIECE + k * WARP + lane] = kept;
            } else {
                values.v[p][k] = kept;
                magnitude = quant_greater_magnitude(magnitude, kept);
            }
        }
    }
    if constexpr (Keep::EIGHT) {
        const float inverse = quant_residual_inverse(quant_keep_exponent(keep.exponents, magnitude));
        FOR_PIECES(p, values) {
            int count = quant_piece_count(elems, p * QUANT_PIECE), rows = count > 0 ? quant_rows(count) : 0;
            FOR_ROWS(k) {
                if (k >= rows) continue;
                keep.codes[p * QUANT_PIECE + k * WARP + lane] = quant_residual_code(values.v[p][k], inverse);
            }
        }
    }
}

/* Keeps what the codes have lost of the values, which are no more afterwards. */
template <int PIECES, typename Keep>
__device__ __forceinline__ void quant_keep_lost_values(QuantValues<PIECES> &values, const QuantSpec &spec, float rms,
                                                       float scale, int64_t elems, const QuantRandom &random, Keep keep,
                                                       QuantRoom *room) {
    const QuantThresholds thresholds(spec.bits, room);
    const float inverse = quant_rotated_inverse(rms);
    quant_put_levels(spec.bits, scale, room);
    FOR_PIECES(p, values) {
        FOR_ROWS(k) {
            const uint32_t code = thresholds.code(QUANT_MUL(values.v[p][k], inverse));
            values.v[p][k] = QUANT_SUB(values.v[p][k], quant_marked_at(room->words + QUANT_LEVELS_AT, code));
        }
    }
    quant_leave(values, random, room);
    quant_keep_elements(values, elems, keep);
}

/* Quantises the values of a bucket of so many elements. */
template <int PIECES, typename Keep>
__device__ __forceinline__ void quant_encode_values(QuantValues<PIECES> &values, const QuantSpec &spec, int64_t elems,
                                                    const QuantRandom &random, QuantPlace place, QuantSink sink,
                                                    Keep keep, QuantRoom *room) {
    float squares = quant_sum_of_squares(values), rms = quant_rotated_rms(squares, values.count);
    float scale = quant_emit_levels(values, spec, rms, squares, place, sink, room);
    quant_emit_word(sink, place.metadata, float_bits(scale), sizeof scale);
    if (keep.keeps()) quant_keep_lost_values(values, spec, rms, scale, elems, random, keep, room);
}

/* Decodes a bucket of so many elements and adds it to the values, or puts it there. */
template <int PIECES>
__device__ __forceinline__ void quant_decode_values(const uint8_t *base, QuantPlace place, const QuantSpec &spec,
                                                    int64_t elems, bool add, QuantValues<PIECES> &values,
                                                    QuantRoom *room) {
    const int bits = spec.bits;
    values.count = (int)quant_rotated_values(elems);
    const int rows = values.rows();
    uint32_t scale = (uint32_t)quant_fetch_word(base + place.metadata, sizeof scale);
    quant_put_levels(bits, float_of_bits(scale), room);
    FOR_PIECES(p, values) {
        uint64_t at = place.codes + (uint64_t)(p * QUANT_PIECE / 8 * bits);
        const QuantStripedCodes codes(room, quant_fetch(base, at, rows * WARP / 8 * bits, room), bits);
        FOR_ROWS(k) {
            float level = quant_level_at(room, codes.row(k < rows ? k : 0));
            float value = k < rows ? level : 0.0f;
            values.v[p][k] = add ? QUANT_ADD(values.v[p][k], value) : value;
        }
    }
}

template <int PIECES>
__device__ __forceinline__ void quant_add_values(const QuantValues<PIECES> &from, QuantValues<PIECES> &to) {
    FOR_PIECES(p, to) { FOR_ROWS(k) to.v[p][k] = QUANT_ADD(to.v[p][k], from.v[p][k]); }
}

/* ---- from and to elements ---- */

/* The bucket's elements, from values that have left. */
template <int PIECES>
__device__ __forceinline__ void quant_store_values(QuantType type, void *x, int64_t first, int64_t elems,
                                                   const QuantValues<PIECES> &values) {
    FOR_PIECES(p, values) {
        int count = quant_piece_count(elems, p * QUANT_PIECE);
        if (count > 0) quant_store_piece(type, x, first + p * QUANT_PIECE, count, values.v[p]);
    }
}

template <int PIECES, typename Source, typename Keep>
__device__ __forceinline__ void quant_encode_entering(const Source &source, const QuantSpec &spec, int64_t elems,
                                                      const QuantRandom &random, QuantPlace place, QuantSink sink,
                                                      Keep keep, QuantRoom *room) {
    QuantValues<PIECES> values;
    quant_enter(source, elems, random, values, room);
    quant_encode_values(values, spec, elems, random, place, sink, keep, room);
}

#endif
