/* The inner loops of the quantiser, one table per instruction set. A kernel works on one bucket; what differs between
 * codecs is in their own files. */
#ifndef CGXFFCV_QUANT_KERNELS_H
#define CGXFFCV_QUANT_KERNELS_H

#include "quant/formula.h"

/* `min` and `max` are meaningful only if `magnitude`, the greatest bits(x) & 0x7FFFFFFF, is below infinity's; the
 * sign of a zero among them is unspecified. */
typedef struct QuantRange {
    uint32_t magnitude;
    float min, max;
} QuantRange;

static inline float quant_load(QuantInput input, int64_t i) {
    return QUANT_MUL(element_load(input.x, input.type, i), input.scale);
}

/* The range of the scaled elements from that of the unscaled ones: rounding keeps their order. */
static inline QuantRange quant_range_scaled(QuantRange range, float scale) {
    if (scale == 1.0f) return range;
    uint32_t magnitude = float_bits(QUANT_MUL(float_of_bits(range.magnitude), scale)) & 0x7FFFFFFFu;
    return (QuantRange){magnitude, QUANT_MUL(range.min, scale), QUANT_MUL(range.max, scale)};
}

/* Adds up 32 partial sums. */
static inline float quant_fold(float partial[QUANT_PARTIALS]) {
    for (int width = QUANT_PARTIALS / 2; width >= 1; width /= 2) {
        for (int i = 0; i < width; i++) partial[i] += partial[i + width];
    }
    return partial[0];
}

#define QUANT_LEVELS 16 /* at most in a table of levels that codes stand for */

typedef struct QuantEncode {
    int bits;
    float min, inverse;        /* 1 / unit */
    const QuantRandom *random; /* NULL: nearest */
} QuantEncode;

/* An input is a part of one bucket, of at least one element. */
typedef struct QuantKernels {
    const char *name;
    QuantRange (*range)(QuantInput input);
    /* The sum of magnitudes in 32 partial sums (element i to partial i mod 32), folded 16, 8, 4, 2, 1. */
    float (*magnitude_sum)(QuantInput input);
    /* Writes ceil(elems * bits / 8) bytes and nothing beyond. */
    void (*encode)(QuantInput input, const QuantEncode *encode, uint8_t *codes);
    void (*encode_sign)(QuantInput input, uint8_t *codes);
    /* Reads ceil(elems * bits / 8) bytes and nothing beyond; `unit` and `min` are finite. */
    void (*decode)(const uint8_t *codes, int bits, float unit, float min, int64_t elems, const QuantTarget *target);
    void (*pass)(QuantInput input, const QuantTarget *target);

    /* ---- of rotated buckets: `count` values, a power of two that is at least QUANT_PARTIALS ---- */

    /* Flips the sign of value i if bit i % 32 of word i / 32 is set. */
    void (*turn_signs)(float *values, const uint32_t *words, int64_t count);
    /* The Hadamard transform, times count^-1/2. */
    void (*rotate)(float *values, int64_t count);
    /* The sum of products in 32 partial sums, as in magnitude_sum. */
    float (*dot)(const float *a, const float *b, int64_t count);
    /* A value's code is the number of thresholds below value * `inverse`; up to 4 bits. */
    void (*encode_levels)(const float *values, int bits, float inverse, int64_t count, uint8_t *codes);
    /* levels[code], none of which is NaN, into a target of float32. */
    void (*decode_levels)(const uint8_t *codes, int bits, const float *levels, int64_t count,
                          const QuantTarget *target);
} QuantKernels;

extern const QuantKernels quant_kernels_scalar;
#if defined(__x86_64__)
extern const QuantKernels quant_kernels_avx2, quant_kernels_avx512;
#endif

#endif
