/* The 16-bit floating-point types, one definition for host and device: widening is exact; narrowing rounds once, to
 * nearest, ties to even, and every NaN becomes the canonical one of its type. For tables, references and results that
 * must be the same everywhere: most kernels use the processor's conversion instructions. */
#ifndef CGXFFCV_BASE_HALF_H
#define CGXFFCV_BASE_HALF_H

#include <stdint.h>
#include <string.h>

#include "base/host_device.h"

#define HALF_NAN 0x7E00u     /* IEEE binary16 */
#define BFLOAT16_NAN 0x7FC0u /* the upper half of a float32 */

#ifdef __CUDA_ARCH__
#define HALF_LEADING_ZEROS(x) __clz((int)(x))
#else
#define HALF_LEADING_ZEROS(x) __builtin_clz(x)
#endif

HOST_DEVICE uint32_t float_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

HOST_DEVICE float float_of_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

HOST_DEVICE float half_to_float(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000u) << 16, magnitude = half & 0x7FFFu;
    if (magnitude >= 0x7C00u) return float_of_bits(sign | 0x7F800000u | ((magnitude & 0x3FFu) << 13));
    if (magnitude >= 0x0400u) return float_of_bits(sign | ((magnitude << 13) + 0x38000000u));
    if (magnitude == 0) return float_of_bits(sign);
    int shift = HALF_LEADING_ZEROS(magnitude) - 21; /* brings the leading one to bit 10 */
    return float_of_bits(sign | ((uint32_t)(113 - shift) << 23) | (((magnitude << shift) & 0x3FFu) << 13));
}

HOST_DEVICE uint16_t half_from_float(float value) {
    uint32_t bits = float_bits(value), sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7FFFFFFFu;
    if (magnitude > 0x7F800000u) return HALF_NAN;
    if (magnitude >= 0x477FF000u) return (uint16_t)(sign | 0x7C00u); /* 65520 and above */
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

HOST_DEVICE float bfloat16_to_float(uint16_t value) { return float_of_bits((uint32_t)value << 16); }

HOST_DEVICE uint16_t bfloat16_from_float(float value) {
    uint32_t bits = float_bits(value);
    if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return BFLOAT16_NAN;
    return (uint16_t)((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}

/* Rounds to odd: a value that float32 cannot represent becomes the neighbour whose last bit is 1, which is on the same
 * side of every 16-bit number and of every midpoint between two, so rounding it again rounds the float64 correctly. */
static inline float float_odd_(double value) {
    float nearest = (float)value;
    double back = (double)nearest;
    uint32_t bits = float_bits(nearest);
    if (back == value || value != value || (bits & 1u) != 0) return nearest;
    return float_of_bits((back < value) == (value > 0) ? bits + 1u : bits - 1u);
}

static inline uint16_t half_from_double(double value) { return half_from_float(float_odd_(value)); }
static inline uint16_t bfloat16_from_double(double value) { return bfloat16_from_float(float_odd_(value)); }

#endif
