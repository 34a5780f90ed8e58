/* The quantiser's kernels for AVX-512 (F, BW, DQ, VL). */
#include "quant/kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include "base/bytes.h"

#define INLINE static inline __attribute__((always_inline))
#define LANES 16
#define VF __m512
#define VI __m512i
#define KERNELS quant_kernels_avx512
#define KERNELS_NAME "avx512"

INLINE VF v_set1(float x) { return _mm512_set1_ps(x); }
INLINE VI v_set1i(uint32_t x) { return _mm512_set1_epi32((int)x); }
INLINE VF v_add(VF a, VF b) { return _mm512_add_ps(a, b); }
INLINE VF v_sub(VF a, VF b) { return _mm512_sub_ps(a, b); }
INLINE VF v_mul(VF a, VF b) { return _mm512_mul_ps(a, b); }
INLINE VF v_div(VF a, VF b) { return _mm512_div_ps(a, b); }
INLINE VF v_min(VF a, VF b) { return _mm512_min_ps(a, b); }
INLINE VF v_max(VF a, VF b) { return _mm512_max_ps(a, b); }
INLINE VI v_minu(VI a, VI b) { return _mm512_min_epu32(a, b); }
INLINE VI v_maxu(VI a, VI b) { return _mm512_max_epu32(a, b); }
INLINE VI v_shift_right(VI a, unsigned count) { return _mm512_srli_epi32(a, count); }
INLINE VF v_to_float(VI a) { return _mm512_cvtepi32_ps(a); }
INLINE VI v_truncate(VF a) { return _mm512_cvttps_epi32(a); }
INLINE VF v_as_float(VI a) { return _mm512_castsi512_ps(a); }
INLINE VI v_magnitude(VF a) { return _mm512_and_si512(_mm512_castps_si512(a), _mm512_set1_epi32(0x7FFFFFFF)); }
INLINE float v_reduce_min(VF a) { return _mm512_reduce_min_ps(a); }
INLINE float v_reduce_max(VF a) { return _mm512_reduce_max_ps(a); }
INLINE uint32_t v_reduce_maxu(VI a) { return _mm512_reduce_max_epu32(a); }
INLINE void v_store_float(float *to, VF a) { _mm512_storeu_ps(to, a); }

/* whole + 1 where a < b */
INLINE VI v_increment_if_less(VI whole, VF a, VF b) {
    return _mm512_mask_add_epi32(whole, _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), whole, _mm512_set1_epi32(1));
}

INLINE VF widen(__m256i a, QuantType type) {
    if (type == QUANT_F16) return _mm512_cvtph_ps(a);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(a), 16));
}

INLINE VF v_load(const void *x, QuantType type, int64_t i) {
    if (type == QUANT_F32) return _mm512_loadu_ps((const uint8_t *)x + 4 * i);
    return widen(_mm256_loadu_si256((const void *)((const uint8_t *)x + 2 * i)), type);
}

/* The first `count` lanes of `a`, the others of `fill`. */
INLINE VF v_first(VF a, int count, VF fill) { return _mm512_mask_mov_ps(fill, (__mmask16)((1u << count) - 1u), a); }

INLINE VF v_load_part(const void *x, QuantType type, int64_t i, int count, VF fill) {
    __mmask16 mask = (__mmask16)((1u << count) - 1u);
    if (type == QUANT_F32) return _mm512_mask_loadu_ps(fill, mask, (const uint8_t *)x + 4 * i);
    return _mm512_mask_mov_ps(fill, mask, widen(_mm256_maskz_loadu_epi16(mask, (const uint8_t *)x + 2 * i), type));
}

INLINE __m256i narrow(VF a, QuantType type, __mmask16 nan) {
    if (type == QUANT_F16) {
        __m256i half = _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        return _mm256_mask_mov_epi16(half, nan, _mm256_set1_epi16(HALF_NAN));
    }
    VI bits = _mm512_castps_si512(a), odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    VI rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7FFF)), odd);
    __m256i half = _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
    return _mm256_mask_mov_epi16(half, nan, _mm256_set1_epi16(BFLOAT16_NAN));
}

/* `sound`: no lane is NaN. */
INLINE void v_store(void *to, QuantType type, int64_t i, VF a, bool sound) {
    __mmask16 nan = sound ? 0 : _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
    if (type == QUANT_F32) {
        VF canonical = _mm512_castsi512_ps(_mm512_set1_epi32(QUANT_NAN_F32));
        _mm512_storeu_ps((uint8_t *)to + 4 * i, _mm512_mask_mov_ps(a, nan, canonical));
    } else {
        _mm256_storeu_si256((void *)((uint8_t *)to + 2 * i), narrow(a, type, nan));
    }
}

INLINE void v_store_part(void *to, QuantType type, int64_t i, int count, VF a) {
    __mmask16 mask = (__mmask16)((1u << count) - 1u), nan = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
    if (type == QUANT_F32) {
        VF canonical = _mm512_castsi512_ps(_mm512_set1_epi32(QUANT_NAN_F32));
        _mm512_mask_storeu_ps((uint8_t *)to + 4 * i, mask, _mm512_mask_mov_ps(a, nan, canonical));
    } else {
        _mm256_mask_storeu_epi16((uint8_t *)to + 2 * i, mask, narrow(a, type, nan));
    }
}

/* Flips the sign of the lanes whose bit in `bits` is set. */
INLINE VF v_negate_where(VF a, uint32_t bits) {
    VI as_bits = _mm512_castps_si512(a);
    return _mm512_castsi512_ps(_mm512_mask_xor_epi32(as_bits, (__mmask16)bits, as_bits, _mm512_set1_epi32(INT32_MIN)));
}

/* Each lane's neighbour `distance` away, a power of two. */
INLINE VF v_swap(VF a, int distance) {
    if (distance == 1) return _mm512_permute_ps(a, 0xB1);
    if (distance == 2) return _mm512_permute_ps(a, 0x4E);
    return distance == 4 ? _mm512_shuffle_f32x4(a, a, 0xB1) : _mm512_shuffle_f32x4(a, a, 0x4E);
}

INLINE VI v_multiply(VI a, VI b) { return _mm512_mul_epu32(a, b); }
INLINE VI v_shift_right64(VI a, unsigned count) { return _mm512_srli_epi64(a, count); }
INLINE VI v_xor3(VI a, VI b, VI c) { return _mm512_ternarylogic_epi32(a, b, c, 0x96); }

/* `first` and the next seven numbers: first through the even 64-bit lanes, then through the odd ones */
INLINE VI v_quads(uint64_t first) {
    return _mm512_add_epi64(_mm512_set1_epi64((long long)first), _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7));
}

/* The low halves of the 64-bit lanes as rows of four words. */
INLINE void v_join(VI c0, VI c1, VI c2, VI c3, VI word[2]) {
    VI low = _mm512_mask_mov_epi32(c0, 0xAAAA, _mm512_slli_epi64(c1, 32));
    VI high = _mm512_mask_mov_epi32(c2, 0xAAAA, _mm512_slli_epi64(c3, 32));
    word[0] = _mm512_unpacklo_epi64(low, high);
    word[1] = _mm512_unpackhi_epi64(low, high);
}

/* The bytes 0..bits-1 of each half of a 128-bit lane, side by side. */
INLINE VI squeeze(VI a, int bits) {
    uint8_t pick[16];
    for (int i = 0; i < 16; i++) {
        pick[i] = (uint8_t)(i < bits ? i : i < 2 * bits ? i - bits + 8 : 0x80);
    }
    return _mm512_shuffle_epi8(a, _mm512_broadcast_i32x4(_mm_loadu_si128((const void *)pick)));
}

/* 64 codes of 32 bits to 8 * bits bytes; up to 16 bytes more are written where bits is not a power of two. */
INLINE void pack_block(const VI code[4], int bits, uint8_t *to) {
    const VI order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    VI bytes = _mm512_packus_epi16(_mm512_packus_epi32(code[0], code[1]), _mm512_packus_epi32(code[2], code[3]));
    bytes = _mm512_permutexvar_epi32(order, bytes);
    if (bits == 8) {
        _mm512_storeu_si512(to, bytes);
        return;
    }
    if (bits == 1) {
        store_u64(to, _mm512_test_epi8_mask(bytes, _mm512_set1_epi8(1)));
        return;
    }
    VI pairs = _mm512_maddubs_epi16(_mm512_set1_epi16((short)(1 | (256 << bits))), bytes);
    if (bits == 4) {
        _mm256_storeu_si256((void *)to, _mm512_cvtepi16_epi8(pairs));
        return;
    }
    VI fours = _mm512_madd_epi16(pairs, _mm512_set1_epi32(1 | (65536 << 2 * bits)));
    if (bits == 2) {
        _mm_storeu_si128((void *)to, _mm512_cvtepi32_epi8(fours));
        return;
    }
    VI low = _mm512_and_si512(fours, _mm512_set1_epi64(0xFFFFFFFF));
    VI eights = _mm512_or_si512(low, _mm512_slli_epi64(_mm512_srli_epi64(fours, 32), (unsigned)(4 * bits)));
    eights = squeeze(eights, bits);
    _mm_storeu_si128((void *)to, _mm512_castsi512_si128(eights));
    _mm_storeu_si128((void *)(to + 2 * bits), _mm512_extracti32x4_epi32(eights, 1));
    _mm_storeu_si128((void *)(to + 4 * bits), _mm512_extracti32x4_epi32(eights, 2));
    _mm_storeu_si128((void *)(to + 6 * bits), _mm512_extracti32x4_epi32(eights, 3));
}

#define WINDOW_BYTES 16

#define TABLE_BITS 4    /* of codes whose table fits one vector */
#define TABLE_VECTORS 1 /* in a table of QUANT_LEVELS */

/* How a vector's codes are taken from a window of their bytes: each lane gets all of them if they fit a word, else two
 * bytes; then a shift, and a table of the bucket's values or, if that would be too long, the arithmetic. */
typedef struct Unpack {
    VI pick, shift;
    VF table[TABLE_VECTORS], unit, min;
} Unpack;

/* Whether a vector's codes fit a word. */
INLINE bool in_word(int bits) { return bits <= 2; }

INLINE Unpack unpack_make(int bits) {
    VI lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    VI at = _mm512_mullo_epi32(lane, _mm512_set1_epi32(bits)), byte = _mm512_srli_epi32(at, 3);
    VI next = _mm512_slli_epi32(_mm512_add_epi32(byte, _mm512_set1_epi32(1)), 8);
    VI pick = _mm512_or_si512(_mm512_or_si512(byte, next), _mm512_set1_epi32((int)0x80800000u));
    return (Unpack){.pick = pick, .shift = in_word(bits) ? at : _mm512_and_si512(at, _mm512_set1_epi32(7))};
}

INLINE VI load_window(const uint8_t *from, int bits) {
    if (bits == 1) return _mm512_set1_epi32(load_u16(from));
    if (bits == 2) return _mm512_set1_epi32((int)load_u32(from));
    if (bits == 4) return _mm512_set1_epi64((long long)load_u64(from));
    return _mm512_broadcast_i32x4(_mm_loadu_si128((const void *)from));
}

INLINE VI load_window_part(const uint8_t *from, int bits, int bytes) {
    __m128i window = _mm_maskz_loadu_epi8((__mmask16)((1u << bytes) - 1u), from);
    return in_word(bits) ? _mm512_broadcastd_epi32(window) : _mm512_broadcast_i32x4(window);
}

INLINE VF unpack_values(const Unpack *unpack, int bits, bool lookup, VI window) {
    VI spread = in_word(bits) ? window : _mm512_shuffle_epi8(window, unpack->pick);
    VI code = _mm512_srlv_epi32(spread, unpack->shift);
    if (lookup) return _mm512_permutexvar_ps(code, unpack->table[0]);
    VF p = v_mul(unpack->unit, v_to_float(_mm512_and_si512(code, _mm512_set1_epi32((1 << bits) - 1))));
    return v_add(unpack->min, p);
}

#include "quant/kernels_vector.h"
#endif
