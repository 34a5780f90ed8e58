/* The residual (what quantisation has lost), kept in 8 bits: a code per element, and per bucket the exponent of a unit
 * that is a power of two (docs/WIRE.md). So decoding a code is exact, and decoded values become the same codes again,
 * wherever they have been in between. One definition for host and device. */
#ifndef CGXFFCV_QUANT_RESIDUAL_H
#define CGXFFCV_QUANT_RESIDUAL_H

#include "quant/formula.h"

#define QUANT_RESIDUAL_MOST 127 /* the greatest code; the least is its negative */
#define QUANT_RESIDUAL_LEAST_EXPONENT 1u
#define QUANT_RESIDUAL_MOST_EXPONENT 248u /* 127 * 2^121 is finite, and so are all decoded values */
#define QUANT_RESIDUAL_ONES 0x1.8p23f     /* its last bit is worth 1: adding it rounds, negative numbers, too */

/* The exponent, biased as in float32, for a bucket whose greatest magnitude has these bits. */
HOST_DEVICE uint8_t quant_residual_exponent(uint32_t magnitude) {
    const uint32_t carry = 0x007FFFFFu - 0x007E0000u; /* above 127 / 64 the next power of two */
    uint32_t exponent = (magnitude + carry) >> 23;
    if (exponent < 6 + QUANT_RESIDUAL_LEAST_EXPONENT) return QUANT_RESIDUAL_LEAST_EXPONENT;
    if (exponent > 6 + QUANT_RESIDUAL_MOST_EXPONENT) return QUANT_RESIDUAL_MOST_EXPONENT;
    return (uint8_t)(exponent - 6);
}

/* 0 for an exponent of 0, which is what zeroed memory holds. */
HOST_DEVICE float quant_residual_unit(uint8_t exponent) { return float_of_bits((uint32_t)exponent << 23); }

/* 1 / unit, for `quant_residual_code`; takes an exponent that quant_residual_exponent has given. */
HOST_DEVICE float quant_residual_inverse(uint8_t exponent) { return float_of_bits((254u - exponent) << 23); }

/* The code of a finite number. */
HOST_DEVICE int8_t quant_residual_code(float lost, float inverse) {
    float rounded = QUANT_ADD(QUANT_MUL(lost, inverse), QUANT_RESIDUAL_ONES);
    int32_t code = (int32_t)float_bits(rounded) - (int32_t)float_bits(QUANT_RESIDUAL_ONES);
    if (code > QUANT_RESIDUAL_MOST) code = QUANT_RESIDUAL_MOST;
    return (int8_t)(code < -QUANT_RESIDUAL_MOST ? -QUANT_RESIDUAL_MOST : code);
}

HOST_DEVICE float quant_residual_value(int8_t code, float unit) { return QUANT_MUL((float)code, unit); }

/* 0 in place of a number that is not finite. */
HOST_DEVICE float quant_residual_kept(float lost) { return quant_is_finite(lost) ? lost : 0.0f; }

/* Finite numbers of a run of buckets to codes and exponents, and back. */
void quant_residual_pack(const float *lost, int64_t elems, int64_t bucket_size, int8_t *codes, uint8_t *exponents);
void quant_residual_unpack(const int8_t *codes, const uint8_t *exponents, int64_t elems, int64_t bucket_size,
                           float *lost);

#endif
