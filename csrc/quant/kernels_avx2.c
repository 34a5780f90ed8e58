/* The quantiser's kernels for AVX2 (with F16C). */
#include "quant/kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include "base/bytes.h"

#define INLINE static inline __attribute__((always_inline))
#define LANES 8
#define VF __m256
#define VI __m256i
#define KERNELS quant_kernels_avx2
#define KERNELS_NAME "avx2"

INLINE VF v_set1(float x) { return _mm256_set1_ps(x); }
INLINE VI v_set1i(uint32_t x) { return _mm256_set1_epi32((int)x); }
INLINE VF v_add(VF a, VF b) { return _mm256_add_ps(a, b); }
INLINE VF v_sub(VF a, VF b) { return _mm256_sub_ps(a, b); }
INLINE VF v_mul(VF a, VF b) { return _mm256_mul_ps(a, b); }
INLINE VF v_div(VF a, VF b) { return _mm256_div_ps(a, b); }
INLINE VF v_min(VF a, VF b) { return _mm256_min_ps(a, b); }
INLINE VF v_max(VF a, VF b) { return _mm256_max_ps(a, b); }
INLINE VI v_minu(VI a, VI b) { return _mm256_min_epu32(a, b); }
INLINE VI v_maxu(VI a, VI b) { return _mm256_max_epu32(a, b); }
INLINE VI v_shift_right(VI a, int count) { return _mm256_srli_epi32(a, count); }
INLINE VF v_to_float(VI a) { return _mm256_cvtepi32_ps(a); }
INLINE VI v_truncate(VF a) { return _mm256_cvttps_epi32(a); }
INLINE VF v_as_float(VI a) { return _mm256_castsi256_ps(a); }
INLINE VI v_magnitude(VF a) { return _mm256_and_si256(_mm256_castps_si256(a), _mm256_set1_epi32(0x7FFFFFFF)); }
INLINE void v_store_float(float *to, VF a) { _mm256_storeu_ps(to, a); }

INLINE float v_reduce_min(VF a) {
    __m128 m = _mm_min_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    m = _mm_min_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_min_ss(m, _mm_shuffle_ps(m, m, 1)));
}

INLINE float v_reduce_max(VF a) {
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_shuffle_ps(m, m, 1)));
}

INLINE uint32_t v_reduce_maxu(VI a) {
    __m128i m = _mm_max_epu32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    m = _mm_max_epu32(m, _mm_shuffle_epi32(m, 0x4E));
    return (uint32_t)_mm_cvtsi128_si32(_mm_max_epu32(m, _mm_shuffle_epi32(m, 0xB1)));
}

/* whole + 1 where a < b */
INLINE VI v_increment_if_less(VI whole, VF a, VF b) {
    return _mm256_sub_epi32(whole, _mm256_castps_si256(_mm256_cmp_ps(a, b, _CMP_LT_OQ)));
}

INLINE VF widen(__m128i a, QuantType type) {
    if (type == QUANT_F16) return _mm256_cvtph_ps(a);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(a), 16));
}

INLINE VF v_load(const void *x, QuantType type, int64_t i) {
    if (type == QUANT_F32) return _mm256_loadu_ps((const void *)((const uint8_t *)x + 4 * i));
    return widen(_mm_loadu_si128((const void *)((const uint8_t *)x + 2 * i)), type);
}

/* All ones in the first `count` lanes. */
INLINE VI lanes_below(int count) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

/* The first `count` lanes of `a`, the others of `fill`. */
INLINE VF v_first(VF a, int count, VF fill) {
    return _mm256_blendv_ps(fill, a, _mm256_castsi256_ps(lanes_below(count)));
}

INLINE VF v_load_part(const void *x, QuantType type, int64_t i, int count, VF fill) {
    VI mask = lanes_below(count);
    VF value;
    if (type == QUANT_F32) {
        value = _mm256_maskload_ps((const void *)((const uint8_t *)x + 4 * i), mask);
    } else {
        uint16_t buffer[LANES] = {0};
        memcpy(buffer, (const uint8_t *)x + 2 * i, (size_t)count * 2);
        value = v_load(buffer, type, 0);
    }
    return v_first(value, count, fill);
}

INLINE __m128i narrow(VF a, QuantType type, VI nan) {
    VI halves;
    if (type == QUANT_F16) {
        __m128i half = _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        halves = _mm256_blendv_epi8(_mm256_cvtepu16_epi32(half), _mm256_set1_epi32(HALF_NAN), nan);
    } else {
        VI bits = _mm256_castps_si256(a), odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
        VI rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7FFF)), odd);
        halves = _mm256_blendv_epi8(_mm256_srli_epi32(rounded, 16), _mm256_set1_epi32(BFLOAT16_NAN), nan);
    }
    return _mm256_castsi256_si128(_mm256_permute4x64_epi64(_mm256_packus_epi32(halves, halves), 0x88));
}

/* `sound`: no lane is NaN. */
INLINE void v_store(void *to, QuantType type, int64_t i, VF a, bool sound) {
    VF unordered = sound ? _mm256_setzero_ps() : _mm256_cmp_ps(a, a, _CMP_UNORD_Q);
    if (type == QUANT_F32) {
        VF canonical = _mm256_castsi256_ps(_mm256_set1_epi32(QUANT_NAN_F32));
        _mm256_storeu_ps((void *)((uint8_t *)to + 4 * i), _mm256_blendv_ps(a, canonical, unordered));
    } else {
        __m128i half = narrow(a, type, _mm256_castps_si256(unordered));
        _mm_storeu_si128((void *)((uint8_t *)to + 2 * i), half);
    }
}

INLINE void v_store_part(void *to, QuantType type, int64_t i, int count, VF a) {
    uint8_t buffer[4 * LANES];
    size_t item = type == QUANT_F32 ? 4 : 2;
    v_store(buffer, type, 0, a, false);
    memcpy((uint8_t *)to + i * (int64_t)item, buffer, (size_t)count * item);
}

/* Flips the sign of the lanes whose bit in `bits` is set. */
INLINE VF v_negate_where(VF a, uint32_t bits) {
    const VI top = _mm256_setr_epi32(31, 30, 29, 28, 27, 26, 25, 24);
    VI signs = _mm256_and_si256(_mm256_sllv_epi32(_mm256_set1_epi32((int)bits), top), _mm256_set1_epi32(INT32_MIN));
    return _mm256_xor_ps(a, _mm256_castsi256_ps(signs));
}

/* Each lane's neighbour `distance` away, a power of two. */
INLINE VF v_swap(VF a, int distance) {
    if (distance == 1) return _mm256_permute_ps(a, 0xB1);
    return distance == 2 ? _mm256_permute_ps(a, 0x4E) : _mm256_permute2f128_ps(a, a, 1);
}

INLINE VI v_multiply(VI a, VI b) { return _mm256_mul_epu32(a, b); }
INLINE VI v_shift_right64(VI a, int count) { return _mm256_srli_epi64(a, count); }
INLINE VI v_xor3(VI a, VI b, VI c) { return _mm256_xor_si256(_mm256_xor_si256(a, b), c); }

/* `first` and the next three numbers: first through the even 64-bit lanes, then through the odd ones */
INLINE VI v_quads(uint64_t first) {
    return _mm256_add_epi64(_mm256_set1_epi64x((long long)first), _mm256_setr_epi64x(0, 2, 1, 3));
}

/* The low halves of the 64-bit lanes as rows of four words. */
INLINE void v_join(VI c0, VI c1, VI c2, VI c3, VI word[2]) {
    VI low = _mm256_blend_epi32(c0, _mm256_slli_epi64(c1, 32), 0xAA);
    VI high = _mm256_blend_epi32(c2, _mm256_slli_epi64(c3, 32), 0xAA);
    word[0] = _mm256_unpacklo_epi64(low, high);
    word[1] = _mm256_unpackhi_epi64(low, high);
}

/* The bytes 0..bits-1 of each half of a 128-bit lane, side by side. */
INLINE VI squeeze(VI a, int bits) {
    uint8_t pick[16];
    for (int i = 0; i < 16; i++) {
        pick[i] = (uint8_t)(i < bits ? i : i < 2 * bits ? i - bits + 8 : 0x80);
    }
    return _mm256_shuffle_epi8(a, _mm256_broadcastsi128_si256(_mm_loadu_si128((const void *)pick)));
}

/* 32 codes of 32 bits to 4 * bits bytes; up to 10 bytes more are written where bits is not a power of two. */
INLINE void pack_block(const VI code[4], int bits, uint8_t *to) {
    const VI order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    VI bytes = _mm256_packus_epi16(_mm256_packus_epi32(code[0], code[1]), _mm256_packus_epi32(code[2], code[3]));
    bytes = _mm256_permutevar8x32_epi32(bytes, order);
    if (bits == 8) {
        _mm256_storeu_si256((void *)to, bytes);
        return;
    }
    if (bits == 1) {
        store_u32(to, (uint32_t)_mm256_movemask_epi8(_mm256_slli_epi16(bytes, 7)));
        return;
    }
    VI pairs = _mm256_maddubs_epi16(_mm256_set1_epi16((short)(1 | (256 << bits))), bytes);
    if (bits == 4) {
        VI packed = _mm256_permute4x64_epi64(_mm256_packus_epi16(pairs, pairs), 0x88);
        _mm_storeu_si128((void *)to, _mm256_castsi256_si128(packed));
        return;
    }
    VI fours = _mm256_madd_epi16(pairs, _mm256_set1_epi32(1 | (65536 << 2 * bits)));
    VI low = _mm256_and_si256(fours, _mm256_set1_epi64x(0xFFFFFFFF));
    VI eights = _mm256_or_si256(low, _mm256_slli_epi64(_mm256_srli_epi64(fours, 32), 4 * bits));
    eights = squeeze(eights, bits);
    __m128i first = _mm256_castsi256_si128(eights), second = _mm256_extracti128_si256(eights, 1);
    if (bits == 2) {
        _mm_storel_epi64((void *)to, _mm_unpacklo_epi32(first, second));
        return;
    }
    _mm_storeu_si128((void *)to, first);
    _mm_storeu_si128((void *)(to + 2 * bits), second);
}

#define WINDOW_BYTES 8

#define TABLE_BITS 3    /* of codes whose table fits one vector */
#define TABLE_VECTORS 2 /* in a table of QUANT_LEVELS */

/* How a vector's codes are taken from a window of their bytes: each lane gets all of them if they fit a word, else two
 * bytes; then a shift, and a table of the bucket's values or, if that would be too long, the arithmetic. */
typedef struct Unpack {
    VI pick, shift;
    VF table[TABLE_VECTORS], unit, min;
} Unpack;

/* Whether a vector's codes are a word, or come from one that repeats them. */
INLINE bool in_word(int bits) { return bits == 1 || bits == 2 || bits == 4; }

INLINE Unpack unpack_make(int bits) {
    VI lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    VI at = _mm256_mullo_epi32(lane, _mm256_set1_epi32(bits)), byte = _mm256_srli_epi32(at, 3);
    VI next = _mm256_slli_epi32(_mm256_add_epi32(byte, _mm256_set1_epi32(1)), 8);
    VI pick = _mm256_or_si256(_mm256_or_si256(byte, next), _mm256_set1_epi32((int)0x80800000u));
    return (Unpack){.pick = pick, .shift = in_word(bits) ? at : _mm256_and_si256(at, _mm256_set1_epi32(7))};
}

INLINE VI load_window(const uint8_t *from, int bits) {
    if (bits == 1) return _mm256_set1_epi8((char)*from);
    if (bits == 2) return _mm256_set1_epi16((short)load_u16(from));
    if (bits == 4) return _mm256_set1_epi32((int)load_u32(from));
    return _mm256_set1_epi64x((long long)load_u64(from));
}

INLINE VI load_window_part(const uint8_t *from, int bits, int bytes) {
    uint8_t buffer[WINDOW_BYTES] = {0};
    memcpy(buffer, from, (size_t)bytes);
    return load_window(buffer, bits);
}

/* The table's value at the low bits of each code. */
INLINE VF table_look_up(const VF table[TABLE_VECTORS], int bits, VI code) {
    VF low = _mm256_permutevar8x32_ps(table[0], code);
    if (bits <= TABLE_BITS) return low;
    VF fourth_bit = _mm256_castsi256_ps(_mm256_slli_epi32(code, 28));
    return _mm256_blendv_ps(low, _mm256_permutevar8x32_ps(table[1], code), fourth_bit);
}

INLINE VF unpack_values(const Unpack *unpack, int bits, bool lookup, VI window) {
    VI spread = in_word(bits) ? window : _mm256_shuffle_epi8(window, unpack->pick);
    VI code = _mm256_srlv_epi32(spread, unpack->shift);
    if (lookup) return table_look_up(unpack->table, bits, code);
    VF p = v_mul(unpack->unit, v_to_float(_mm256_and_si256(code, _mm256_set1_epi32((1 << bits) - 1))));
    return v_add(unpack->min, p);
}

#include "quant/kernels_vector.h"
#endif
