/* Conversions between float32 and the 16-bit types, one element at a time: exact upwards, to nearest even
 * downwards, every NaN the canonical one of its type. Integer arithmetic only. */
#ifndef CGXFFCV_QUANT_CONVERT_H
#define CGXFFCV_QUANT_CONVERT_H

#include "base/bytes.h"
#include "quant/kernels.h"

static inline uint32_t float_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline float float_of_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline float float_of_half(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000u) << 16, magnitude = half & 0x7FFFu;
    if (magnitude >= 0x7C00u) return float_of_bits(sign | 0x7F800000u | ((magnitude & 0x3FFu) << 13));
    if (magnitude >= 0x0400u) return float_of_bits(sign | ((magnitude << 13) + 0x38000000u));
    if (magnitude == 0) return float_of_bits(sign);
    int shift = __builtin_clz(magnitude) - 21; /* brings the leading one to bit 10 */
    return float_of_bits(sign | ((uint32_t)(113 - shift) << 23) | (((magnitude << shift) & 0x3FFu) << 13));
}

static inline uint16_t half_of_float(float value) {
    uint32_t bits = float_bits(value), sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7FFFFFFFu;
    if (magnitude > 0x7F800000u) return QUANT_NAN_F16;
    if (magnitude >= 0x477FF000u) return (uint16_t)(sign | 0x7C00u); /* from 65520 upwards */
    if (magnitude >= 0x38800000u) {                                  /* normal: rebias, drop 13 bits */
        uint32_t odd = (magnitude >> 13) & 1u;
        return (uint16_t)(sign | ((magnitude - 0x38000000u + 0xFFFu + odd) >> 13));
    }
    if (magnitude < 0x33000000u) return (uint16_t)sign; /* below 2^-25 */
    uint32_t shift = 126u - (magnitude >> 23), fraction = (magnitude & 0x7FFFFFu) | 0x800000u;
    uint32_t kept = fraction >> shift, rest = fraction & ((1u << shift) - 1u), half = 1u << (shift - 1u);
    kept += rest > half || (rest == half && (kept & 1u) != 0);
    return (uint16_t)(sign | kept);
}

static inline float float_of_bfloat(uint16_t value) { return float_of_bits((uint32_t)value << 16); }

static inline uint16_t bfloat_of_float(float value) {
    uint32_t bits = float_bits(value);
    if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return QUANT_NAN_BF16;
    return (uint16_t)((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}

static inline float element_load(const void *x, QuantType type, int64_t i) {
    const uint8_t *bytes = x;
    if (type == QUANT_F32) return load_f32(bytes + 4 * i);
    uint16_t half = load_u16(bytes + 2 * i);
    return type == QUANT_F16 ? float_of_half(half) : float_of_bfloat(half);
}

static inline void element_store(void *x, QuantType type, int64_t i, float value) {
    uint8_t *bytes = x;
    if (type == QUANT_F32) {
        uint32_t bits = float_bits(value);
        store_u32(bytes + 4 * i, (bits & 0x7FFFFFFFu) > 0x7F800000u ? QUANT_NAN_F32 : bits);
    } else {
        store_u16(bytes + 2 * i, type == QUANT_F16 ? half_of_float(value) : bfloat_of_float(value));
    }
}

#endif
