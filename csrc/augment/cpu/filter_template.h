/* The loops of filters, which the compiler vectorises: included once for each instruction set. */
#include "augment/cpu/filter_private.h"

static void sum_across(const FilterTaps *taps, const uint8_t *row, uint32_t *restrict sums, uint16_t *restrict to) {
    const size_t values = taps->values;
    for (size_t k = 0; k < values; k++) sums[k] = taps->weights[0] * row[k];
    for (int32_t i = 1; i <= taps->radius; i++) {
        const uint8_t *left = row - i * AUGMENT_CHANNELS, *right = row + i * AUGMENT_CHANNELS;
        const uint32_t weight = taps->weights[i];
        for (size_t k = 0; k < values; k++) sums[k] += weight * ((uint32_t)left[k] + right[k]);
    }
    for (size_t k = 0; k < values; k++) to[k] = (uint16_t)augment_local_row(sums[k]);
}

static void sum_down(const FilterTaps *taps, const uint16_t *const *rows, uint32_t *restrict sums,
                     uint8_t *restrict to) {
    const size_t values = taps->values;
    const uint16_t *own = rows[0];
    for (size_t k = 0; k < values; k++) sums[k] = taps->weights[0] * own[k];
    for (int32_t i = 1; i <= taps->radius; i++) {
        const uint16_t *above = rows[2 * i - 1], *below = rows[2 * i];
        const uint32_t weight = taps->weights[i];
        for (size_t k = 0; k < values; k++) sums[k] += weight * ((uint32_t)above[k] + below[k]);
    }
    for (size_t k = 0; k < values; k++) to[k] = augment_local_value(sums[k]);
}
