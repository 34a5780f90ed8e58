/* Private to the filters: rows of sums, with the best instruction set. */
#ifndef CGXFFCV_AUGMENT_CPU_FILTER_PRIVATE_H
#define CGXFFCV_AUGMENT_CPU_FILTER_PRIVATE_H

#include "augment/operation.h"

/* Weights by distance, for rows of `values` values. */
typedef struct FilterTaps {
    uint32_t weights[AUGMENT_MAX_RADIUS + 1];
    int32_t radius;
    size_t values;
} FilterTaps;

typedef struct FilterKernels {
    /* Along a row that is extended by `radius` pixels on either side; `row` is its first value without them. */
    void (*across)(const FilterTaps *taps, const uint8_t *row, uint32_t *sums, uint16_t *to);
    /* Along columns: rows[0] is the output's row, followed by pairs, one above and one below, from near to far. */
    void (*down)(const FilterTaps *taps, const uint16_t *const *rows, uint32_t *sums, uint8_t *to);
} FilterKernels;

extern const FilterKernels augment_filter_scalar;
#if defined(__x86_64__)
extern const FilterKernels augment_filter_avx2;
#endif

#endif
