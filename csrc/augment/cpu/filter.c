/* Separable filters in place: each row is summed horizontally once and kept, in a circular buffer as high as the
 * filter, until the vertical sums have used it. */
#include "augment/cpu/filter.h"

#include <string.h>

#include "augment/cpu/filter_private.h"
#include "base/cpu.h"

#define MOST_ROWS (2 * AUGMENT_MAX_RADIUS + 1)

typedef struct Filter {
    FilterTaps taps;
    const FilterKernels *kernels;
    AugmentSize size;
    uint8_t *pixels;
    uint32_t *sums;
    uint16_t *summed; /* circular, MOST_ROWS rows */
    uint8_t *row;     /* one row, with its mirrored ends */
} Filter;

static size_t values_of(int32_t width) { return (size_t)width * AUGMENT_CHANNELS; }

size_t augment_filter_bytes(int32_t width) {
    const size_t values = values_of(width);
    return values * sizeof(uint32_t) + MOST_ROWS * values * sizeof(uint16_t) + values_of(width + MOST_ROWS);
}

static uint16_t *summed_row(const Filter *f, int32_t y) { return f->summed + (size_t)(y % MOST_ROWS) * f->taps.values; }

static void sum_row(const Filter *f, int32_t y) {
    const int32_t radius = f->taps.radius, width = f->size.width;
    uint8_t *own = f->row + radius * AUGMENT_CHANNELS;
    memcpy(own, f->pixels + (size_t)y * f->taps.values, f->taps.values);
    for (int32_t i = 1; i <= radius; i++) {
        memcpy(own - i * AUGMENT_CHANNELS, own + i * AUGMENT_CHANNELS, AUGMENT_CHANNELS);
        memcpy(own + (width - 1 + i) * AUGMENT_CHANNELS, own + (width - 1 - i) * AUGMENT_CHANNELS, AUGMENT_CHANNELS);
    }
    f->kernels->across(&f->taps, own, f->sums, summed_row(f, y));
}

static void sum_columns(const Filter *f, int32_t y) {
    const uint16_t *rows[MOST_ROWS] = {summed_row(f, y)};
    for (int32_t i = 1; i <= f->taps.radius; i++) {
        rows[2 * i - 1] = summed_row(f, augment_reflect(y - i, f->size.height));
        rows[2 * i] = summed_row(f, augment_reflect(y + i, f->size.height));
    }
    f->kernels->down(&f->taps, rows, f->sums, f->pixels + (size_t)y * f->taps.values);
}

static const FilterKernels *best_kernels(void) {
#if defined(__x86_64__)
    if (cpu_features()->avx2) return &augment_filter_avx2;
#endif
    return &augment_filter_scalar;
}

void augment_filter(const AugmentOp *op, const AugmentDrawn *drawn, AugmentSize size, uint8_t *pixels, void *scratch) {
    const size_t values = values_of(size.width);
    Filter f = {.taps.values = values, .kernels = best_kernels(), .size = size, .pixels = pixels, .sums = scratch};
    f.summed = (uint16_t *)(void *)(f.sums + values);
    f.row = (uint8_t *)(void *)(f.summed + MOST_ROWS * values);
    f.taps.radius = augment_op_taps(op, drawn, f.taps.weights);
    for (int32_t y = 0, summed = 0; y < size.height; y++) {
        const int32_t last = y + f.taps.radius < size.height ? y + f.taps.radius : size.height - 1;
        while (summed <= last) sum_row(&f, summed++);
        sum_columns(&f, y);
    }
}
