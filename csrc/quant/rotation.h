/* The arithmetic of the codec "rotated", one definition for host and device: docs/WIRE.md in code. */
#ifndef CGXFFCV_QUANT_ROTATION_H
#define CGXFFCV_QUANT_ROTATION_H

#include <math.h>

#include "quant/formula.h"

#ifdef __CUDA_ARCH__
#define QUANT_SQRT(a) __fsqrt_rn(a)
#else
#define QUANT_SQRT(a) sqrtf(a)
#endif

#define QUANT_ROTATED_MAX_BITS 4
#define QUANT_ROTATED_MIN_BUCKET 64
#define QUANT_ROTATED_MAX_BUCKET 4096
#define QUANT_ROTATED_MIN_VALUES 32
#define QUANT_ROTATED_LIMIT 0x5D800000u /* 2^60: from here on squares may overflow */
#define QUANT_SIGNS 128                 /* per draw of Philox */

/* The optimal levels for a unit Gaussian (Lloyd-Max), ascending. */
HOST_DEVICE float quant_level(int bits, int code) {
    static const float positive[] = {/* 1 bit */ 0.7978846f,
                                     /* 2 */ 0.45278004f,
                                     1.5104176f,
                                     /* 3 */ 0.24509418f,
                                     0.7560053f,
                                     1.3439093f,
                                     2.1519456f,
                                     /* 4 */ 0.12839504f,
                                     0.3880483f,
                                     0.65675914f,
                                     0.94234043f,
                                     1.2562312f,
                                     1.6180464f,
                                     2.0690172f,
                                     2.7325895f};
    int half = 1 << (bits - 1), first = half - 1;
    return code >= half ? positive[first + code - half] : -positive[first + half - 1 - code];
}

/* The threshold between the levels `code` and `code` + 1. */
HOST_DEVICE float quant_threshold(int bits, int code) {
    return QUANT_MUL(QUANT_ADD(quant_level(bits, code), quant_level(bits, code + 1)), 0.5f);
}

/* How many values a bucket of that many elements has: a power of two. */
HOST_DEVICE int64_t quant_rotated_values(int64_t elems) {
    int64_t values = QUANT_ROTATED_MIN_VALUES;
    while (values < elems) values *= 2;
    return values;
}

/* values^-1/2, with which the rotation preserves lengths. */
HOST_DEVICE float quant_rotation_factor(int64_t values) {
    float factor = 1.0f;
    for (; values >= 4; values /= 4) factor = QUANT_MUL(factor, 0.5f);
    return values == 2 ? QUANT_MUL(factor, 0.70710678f) : factor;
}

/* Four words of signs, for the values from `group` * QUANT_SIGNS on; a set bit flips a value's sign. */
HOST_DEVICE Philox4 quant_signs(const QuantRandom *random, int64_t group) {
    return philox_at(random->seed, random->call, random->quad + (uint64_t)group, PHILOX_ROTATE, 0);
}

/* The root mean square of a bucket's values from the sum of their squares; if NaN or 0, all codes are 0. */
HOST_DEVICE float quant_rotated_rms(float squares, int64_t values) {
    if (!quant_is_finite(squares)) return float_of_bits(QUANT_NAN_F32);
    float rms = QUANT_SQRT(QUANT_DIV(squares, (float)values));
    return rms < 0x1p-100f ? 0.0f : rms;
}

#endif
