/* The loops of resampling, which the compiler vectorises: included once for each instruction set. No sum is contracted
 * or reordered, so that all of them give the same values. */
#include <string.h>

#include "image/resize_private.h"

#define INLINE static inline __attribute__((always_inline))

typedef float Floats __attribute__((vector_size(RESIZE_LANES * sizeof(float))));
typedef double Doubles __attribute__((vector_size(RESIZE_LANES * sizeof(double))));

/* `taps` is a compile-time constant at each call, at most 4. */
INLINE void add_rows(float *restrict sums, const uint8_t *rgb, size_t stride, const float *weights, int taps,
                     size_t count, bool add) {
    const uint8_t *restrict row[4];
    float weight[4];
    for (int k = 0; k < taps; k++) {
        row[k] = rgb + (size_t)k * stride;
        weight[k] = weights[k];
    }
    for (size_t i = 0; i < count; i++) {
        float sum = weight[0] * (float)row[0][i];
        if (add) sum = sums[i] + sum;
        for (int k = 1; k < taps; k++) sum += weight[k] * (float)row[k][i];
        sums[i] = sum;
    }
}

INLINE void add_some_rows(float *sums, const uint8_t *rgb, size_t stride, const float *weights, uint32_t taps,
                          size_t count, bool add) {
    switch (taps) {
    case 1:
        add_rows(sums, rgb, stride, weights, 1, count, add);
        return;
    case 2:
        add_rows(sums, rgb, stride, weights, 2, count, add);
        return;
    case 3:
        add_rows(sums, rgb, stride, weights, 3, count, add);
        return;
    default:
        add_rows(sums, rgb, stride, weights, 4, count, add);
        return;
    }
}

static void sum_rows(float *sums, const uint8_t *rgb, size_t stride, const float *weights, uint32_t taps, size_t count,
                     bool add) {
    for (uint32_t k = 0; k < taps; k += 4) {
        const uint32_t some = taps - k < 4 ? taps - k : 4;
        if (add || k > 0)
            add_some_rows(sums, rgb + k * stride, stride, weights + k, some, count, true);
        else
            add_some_rows(sums, rgb, stride, weights, some, count, false);
    }
}

/* The total is passed by address, since not every processor's ABI can return a vector of this width. */
INLINE void add_pixel(Doubles *total, const float *from, double weight, bool first) {
    Floats floats;
    memcpy(&floats, from, sizeof floats);
    Doubles product = weight * __builtin_convertvector(floats, Doubles);
    *total = first ? product : *total + product;
}

/* Each pixel carries a fourth value, which the next pixel overwrites. */
INLINE void add_columns(const float *sums, const ResizeAxis *axis, uint32_t taps, double *totals) {
    const double *weight = axis->weights;
    for (uint32_t x = 0; x < axis->to; x++, weight += taps) {
        const float *from = sums + (size_t)axis->first[x] * RESIZE_CHANNELS;
        Doubles total;
        add_pixel(&total, from, weight[0], true);
        for (uint32_t k = 1; k < taps; k++) add_pixel(&total, from + (size_t)k * RESIZE_CHANNELS, weight[k], false);
        memcpy(totals + (size_t)x * RESIZE_CHANNELS, &total, sizeof total);
    }
}

static void sum_columns(const float *sums, const ResizeColumns *columns, uint8_t *restrict out) {
    const ResizeAxis *axis = &columns->axis;
    const size_t count = (size_t)axis->to * RESIZE_CHANNELS;
    const double factor = columns->factor, half = columns->half;
    double *restrict totals = columns->totals;
    switch (axis->taps) {
    case 2:
        add_columns(sums, axis, 2, totals);
        break;
    case 3:
        add_columns(sums, axis, 3, totals);
        break;
    case 4:
        add_columns(sums, axis, 4, totals);
        break;
    case 5:
        add_columns(sums, axis, 5, totals);
        break;
    default:
        add_columns(sums, axis, axis->taps, totals);
        break;
    }
    for (size_t i = 0; i < count; i++) out[i] = (uint8_t)(int32_t)(totals[i] * factor + half);
}
