/* The inner loops of the quantiser, one table for each instruction set. A kernel works on one bucket; what differs
 * between codecs stands in their own files. */
#ifndef CGXFFCV_QUANT_KERNELS_H
#define CGXFFCV_QUANT_KERNELS_H

#include "quant/formula.h"

/* `min` and `max` are meaningful only while `magnitude`, the greatest bits(x) & 0x7FFFFFFF, is below infinity's; the
 * sign of a zero among them is unspecified. */
typedef struct QuantRange {
    uint32_t magnitude;
    float min, max;
} QuantRange;

static inline float quant_load(QuantInput input, int64_t i) {
    return QUANT_MUL(element_load(input.x, input.type, i), input.scale);
}

/* The range of scaled elements from that of the others: rounding keeps their order. */
static inline QuantRange quant_range_scaled(QuantRange range, float scale) {
    uint32_t magnitude = float_bits(QUANT_MUL(float_of_bits(range.magnitude), scale)) & 0x7FFFFFFFu;
    return (QuantRange){magnitude, QUANT_MUL(range.min, scale), QUANT_MUL(range.max, scale)};
}

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
    /* Reads ceil(elems * bits / 8) bytes and nothing beyond. */
    void (*decode)(const uint8_t *codes, int bits, float unit, float min, int64_t elems, const QuantTarget *target);
    void (*pass)(QuantInput input, const QuantTarget *target);
} QuantKernels;

extern const QuantKernels quant_kernels_scalar;
#if defined(__x86_64__)
extern const QuantKernels quant_kernels_avx2, quant_kernels_avx512;
#endif

#endif
