/* What quantisation has lost, kept in 8 bits: a code for each element, and for each bucket the exponent of a unit that
 * is a power of two (docs/WIRE.md). So a code stands for its number exactly, and what codes stand for becomes the same
 * codes again, wherever it has been meanwhile. One definition for host and device. */
#ifndef CGXFFCV_QUANT_RESIDUAL_H
#define CGXFFCV_QUANT_RESIDUAL_H

#include "quant/formula.h"

#define QUANT_RESIDUAL_MOST 127 /* the greatest code; the least is its negative */
#define QUANT_RESIDUAL_LEAST_EXPONENT 1u
#define QUANT_RESIDUAL_MOST_EXPONENT 248u /* 127 * 2^121 is finite, and so is what codes stand for */
#define QUANT_RESIDUAL_ONES 0x1.8p23f     /* whose last bit counts ones, below zero, too */

/* As in float32's bits, of a bucket whose greatest magnitude has these bits. */
HOST_DEVICE uint8_t quant_residual_exponent(uint32_t magnitude) {
    const uint32_t carry = 0x007FFFFFu - 0x007E0000u; /* above 127 / 64 the next power of two */
    uint32_t exponent = (magnitude + carry) >> 23;
    if (exponent < 6 + QUANT_RESIDUAL_LEAST_EXPONENT) return QUANT_RESIDUAL_LEAST_EXPONENT;
    if (exponent > 6 + QUANT_RESIDUAL_MOST_EXPONENT) return QUANT_RESIDUAL_MOST_EXPONENT;
    return (uint8_t)(exponent - 6);
}

/* 0 of an exponent of 0, as memory has it at first. */
HOST_DEVICE float quant_residual_unit(uint8_t exponent) { return float_of_bits((uint32_t)exponent << 23); }

/* By which is multiplied what `quant_residual_code` takes; of an exponent from the function above. */
HOST_DEVICE float quant_residual_inverse(uint8_t exponent) { return float_of_bits((254u - exponent) << 23); }

/* Of a finite number. */
HOST_DEVICE int8_t quant_residual_code(float lost, float inverse) {
    float rounded = QUANT_ADD(QUANT_MUL(lost, inverse), QUANT_RESIDUAL_ONES);
    int32_t code = (int32_t)float_bits(rounded) - (int32_t)float_bits(QUANT_RESIDUAL_ONES);
    if (code > QUANT_RESIDUAL_MOST) code = QUANT_RESIDUAL_MOST;
    return (int8_t)(code < -QUANT_RESIDUAL_MOST ? -QUANT_RESIDUAL_MOST : code);
}

HOST_DEVICE float quant_residual_value(int8_t code, float unit) { return QUANT_MUL((float)code, unit); }

/* In place of what is no finite number. */
HOST_DEVICE float quant_residual_kept(float lost) { return quant_is_finite(lost) ? lost : 0.0f; }

/* Codes and exponents of a run of buckets, of finite numbers; and back. */
void quant_residual_pack(const float *lost, int64_t elems, int64_t bucket_size, int8_t *codes, uint8_t *exponents);
void quant_residual_unpack(const int8_t *codes, const uint8_t *exponents, int64_t elems, int64_t bucket_size,
                           float *lost);

#endif
