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
#define QUANT_LEVELS_AT QUANT_ROWS /* in the room's words, behind a piece's signs */

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
template <typename Work> __device__ __attribute__((noinline)) void quant_apart(const Work &work) { work(); }

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
        FOR_ROWS(k) {
            uint32_t turned = (room->words[k] >> lane & 1u) << 31;
            values.v[p][k] = float_of_bits(float_bits(values.v[p][k]) ^ turned);
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
        const bool high = (lane & h) != 0;
        FOR_ROWS(k) {
            float other = __shfl_xor_sync(WHOLE_WARP, v[k], h);
            v[k] = high ? QUANT_SUB(other, v[k]) : QUANT_ADD(v[k], other);
        }
    }
#pragma unroll(PIECES == 1 ? 5 : 1)
    for (int h = 1; h < QUANT_ROWS; h *= 2) {
        if (h >= rows) continue;
        FOR_ROWS(k) {
            if ((k & h) == 0) quant_butterfly(&v[k], &v[(k + h) % QUANT_ROWS]);
        }
    }
}

/* The Hadamard transform, which is its own inverse. */
template <int PIECES> __device__ __forceinline__ void quant_rotate(QuantValues<PIECES> &values) {
    const float factor = quant_rotation_factor(values.count);
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
    uint32_t magnitude = 0;
    values.count = (int)quant_rotated_values(elems);
    FOR_PIECES(p, values) {
        int count = quant_piece_count(elems, p * QUANT_PIECE), rows = count > 0 ? quant_rows(count) : 0;
        if (count > 0) source.piece(p * QUANT_PIECE, count, values.v[p]);
        FOR_ROWS(k) {
            if (k >= rows) values.v[p][k] = 0.0f;
            uint32_t own = float_bits(values.v[p][k]) & 0x7FFFFFFFu;
            magnitude = own > magnitude ? own : magnitude;
        }
    }
    const bool nan = warp_max(magnitude) >= QUANT_ROTATED_LIMIT;
    FOR_PIECES(p, values) { FOR_ROWS(k) values.v[p][k] = nan ? float_of_bits(QUANT_NAN_F32) : values.v[p][k]; }
    quant_turn_signs(values, random, room);
    quant_rotate(values);
}

template <int PIECES>
__device__ __forceinline__ void quant_leave(QuantValues<PIECES> &values, const QuantRandom &random, QuantRoom *room) {
    quant_rotate(values);
    quant_turn_signs(values, random, room);
}

/* ---- codes ---- */

/* The thresholds above zero as whole numbers, so many as 4 bits have; those that fewer bits lack are passed by
 * nothing. */
#define QUANT_THRESHOLDS 7
struct QuantThresholds {
    uint32_t above[QUANT_THRESHOLDS];
    int half; /* of the codes */

    __device__ __forceinline__ explicit QuantThresholds(int bits) : half(1 << (bits - 1)) {
#pragma unroll
        for (int i = 0; i < QUANT_THRESHOLDS; i++) {
            above[i] = i + 1 < half ? float_bits(quant_threshold(bits, half + i)) : 0xFFFFFFFFu;
        }
    }

    /* How many thresholds lie below t. They are the same on both sides of zero, so magnitudes are compared; below zero
     * a threshold that is met counts as one above. */
    __device__ __forceinline__ uint32_t code(float t) const {
        const bool up = t > 0.0f;
        const uint32_t magnitude = (float_bits(t) & 0x7FFFFFFFu) + (up ? 0u : 1u);
        int passed = 0;
#pragma unroll
        for (int i = 0; i < QUANT_THRESHOLDS; i++) passed += above[i] < magnitude;
        return (uint32_t)(up ? half + passed : half - 1 - passed);
    }
};

/* The codes of a piece into the room, a byte each; 0 where a bucket has none. */
template <int PIECES>
__device__ __forceinline__ void quant_take_levels(const float (&v)[QUANT_ROWS], int bits, bool coded, float inverse,
                                                  QuantRoom *room) {
    const QuantThresholds thresholds(bits);
    __syncwarp();
    FOR_ROWS(k) {
        uint32_t code = coded ? thresholds.code(QUANT_MUL(v[k], inverse)) : 0;
        room->codes[k * WARP + quant_lane()] = (uint8_t)code;
    }
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
    const bool coded = quant_is_finite(rms) && rms > 0.0f, unbiased = spec.scale != QUANT_SCALE_MSE;
    const int lane = quant_lane();
    const float inverse = QUANT_DIV(1.0f, rms);
    float partial = 0.0f;
    quant_put_levels(spec.bits, 1.0f, room);
    FOR_PIECES(p, values) {
        quant_take_levels<PIECES>(values.v[p], spec.bits, coded, inverse, room);
        if (unbiased) {
            FOR_ROWS(k) {
                float level = quant_level_at(room, room->codes[k * WARP + lane]);
                partial = QUANT_ADD(partial, QUANT_MUL(values.v[p][k], level));
            }
        }
        uint64_t at = place.codes + (uint64_t)(p * QUANT_PIECE / 8 * spec.bits);
        quant_emit_codes(sink, at, spec.bits, values.rows() * WARP, room);
    }
    if (!coded || !unbiased) return rms;
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
    const bool coded = quant_is_finite(rms) && rms > 0.0f;
    const int lane = quant_lane();
    const float inverse = QUANT_DIV(1.0f, rms);
    quant_put_levels(spec.bits, scale, room);
    FOR_PIECES(p, values) {
        quant_take_levels<PIECES>(values.v[p], spec.bits, coded, inverse, room);
        FOR_ROWS(k) {
            float decoded = quant_level_at(room, room->codes[k * WARP + lane]);
            values.v[p][k] = QUANT_SUB(values.v[p][k], decoded);
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
    const int bits = spec.bits, lane = quant_lane();
    values.count = (int)quant_rotated_values(elems);
    const int rows = values.rows();
    uint32_t scale = (uint32_t)quant_fetch_word(base + place.metadata, sizeof scale);
    quant_put_levels(bits, float_of_bits(scale), room);
    FOR_PIECES(p, values) {
        uint64_t at = place.codes + (uint64_t)(p * QUANT_PIECE / 8 * bits);
        int before = quant_fetch(base, at, rows * WARP / 8 * bits, room);
        FOR_ROWS(k) {
            int row = k < rows ? k : 0;
            float level = quant_level_at(room, quant_code_at(room, before * 8 + (row * WARP + lane) * bits, bits));
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
template <QuantType TYPE, int PIECES>
__device__ __forceinline__ void quant_store_values(void *x, int64_t first, int64_t elems,
                                                   const QuantValues<PIECES> &values) {
    FOR_PIECES(p, values) {
        int count = quant_piece_count(elems, p * QUANT_PIECE);
        if (count > 0) quant_store_piece<TYPE>(x, first + p * QUANT_PIECE, count, values.v[p]);
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
