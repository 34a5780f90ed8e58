/* float64 to the 16-bit floating types in one rounding, to nearest, ties to even; and back. For tables and
 * references: kernels use the processor's own instructions. */
#ifndef CGXFFCV_BASE_HALF_H
#define CGXFFCV_BASE_HALF_H

#include <math.h>
#include <stdint.h>
#include <string.h>

/* A format of `digits` stored fraction bits and an exponent of bias `bias`, sign above them; exact in `uint16_t`. */
static inline uint16_t half_round_(double value, int digits, int bias) {
    uint16_t sign = signbit(value) ? 0x8000u : 0;
    uint16_t infinity = (uint16_t)((2 * bias + 1) << digits);
    if (isnan(value)) return (uint16_t)(sign | infinity | (1u << (digits - 1)));
    double size = fabs(value);
    if (isinf(value)) return (uint16_t)(sign | infinity);
    if (size == 0) return sign;
    int exponent = ilogb(size);
    if (exponent < 1 - bias) exponent = 1 - bias;
    if (exponent > bias) return (uint16_t)(sign | infinity);
    /* Units of the last place: below 1 << digits for a subnormal number, a carry moves on to the next exponent. */
    double units = nearbyint(scalbn(size, digits - exponent));
    uint32_t bits = (uint32_t)units + ((uint32_t)(exponent + bias - 1) << digits);
    return (uint16_t)(sign | (bits > infinity ? infinity : bits));
}

static inline double half_widen_(uint16_t bits, int digits, int bias) {
    int exponent = (bits & 0x7FFF) >> digits;
    int fraction = bits & ((1 << digits) - 1);
    double size;
    if (exponent == 2 * bias + 1) {
        size = fraction == 0 ? (double)INFINITY : (double)NAN;
    } else if (exponent == 0) {
        size = scalbn(fraction, 1 - bias - digits);
    } else {
        size = scalbn(fraction + (1 << digits), exponent - bias - digits);
    }
    return (bits & 0x8000) != 0 ? -size : size;
}

/* IEEE binary16. */
static inline uint16_t half_from_double(double value) { return half_round_(value, 10, 15); }
static inline double half_to_double(uint16_t bits) { return half_widen_(bits, 10, 15); }

/* bfloat16: the upper half of a float32. */
static inline uint16_t bfloat16_from_double(double value) { return half_round_(value, 7, 127); }
static inline double bfloat16_to_double(uint16_t bits) { return half_widen_(bits, 7, 127); }

#endif
