/* Separable filters in place: each row is summed along itself once and waits, in a ring as high as the filter, until
 * the sums along the columns have used it. */
#include "augment/cpu/filter.h"

#define RING (2 * AUGMENT_MAX_RADIUS + 1)

typedef struct Filter {
    uint32_t weights[AUGMENT_MAX_RADIUS + 1];
    int32_t radius, height, width;
    size_t values; /* of a row */
    uint8_t *pixels;
    uint16_t *ring;
} Filter;

size_t augment_filter_bytes(int32_t width) { return RING * (size_t)width * AUGMENT_CHANNELS * sizeof(uint16_t); }

static uint16_t *ring_row(const Filter *f, int32_t y) { return f->ring + (size_t)(y % RING) * f->values; }

static uint32_t sum_at(const Filter *f, const uint8_t *row, int32_t x, int c) {
    uint32_t sum = f->weights[0] * row[x * AUGMENT_CHANNELS + c];
    for (int32_t i = 1; i <= f->radius; i++) {
        const int32_t left = augment_reflect(x - i, f->width), right = augment_reflect(x + i, f->width);
        const uint32_t pair = (uint32_t)row[left * AUGMENT_CHANNELS + c] + row[right * AUGMENT_CHANNELS + c];
        sum += f->weights[i] * pair;
    }
    return sum;
}

/* Columns whose neighbours all exist: no edges, so that the loops are plain. */
static void sum_inner(const Filter *f, const uint8_t *row, uint16_t *to) {
    const size_t first = (size_t)f->radius * AUGMENT_CHANNELS, last = f->values - first;
    for (size_t k = first; k < last; k++) {
        uint32_t sum = f->weights[0] * row[k];
        for (size_t i = 1; i <= (size_t)f->radius; i++) {
            sum += f->weights[i] * ((uint32_t)row[k - i * AUGMENT_CHANNELS] + row[k + i * AUGMENT_CHANNELS]);
        }
        to[k] = (uint16_t)augment_local_row(sum);
    }
}

static void sum_row(const Filter *f, int32_t y) {
    const uint8_t *row = f->pixels + (size_t)y * f->values;
    uint16_t *to = ring_row(f, y);
    const int32_t inner = f->width - 2 * f->radius > 0 ? f->width - 2 * f->radius : 0;
    for (int32_t x = 0; x < f->width; x++) {
        if (x == f->radius && inner > 0) x += inner;
        for (int c = 0; x < f->width && c < AUGMENT_CHANNELS; c++) {
            to[x * AUGMENT_CHANNELS + c] = (uint16_t)augment_local_row(sum_at(f, row, x, c));
        }
    }
    if (inner > 0) sum_inner(f, row, to);
}

static void sum_columns(const Filter *f, int32_t y) {
    const uint16_t *above[AUGMENT_MAX_RADIUS + 1], *below[AUGMENT_MAX_RADIUS + 1], *own = ring_row(f, y);
    uint8_t *to = f->pixels + (size_t)y * f->values;
    for (int32_t i = 1; i <= f->radius; i++) {
        above[i] = ring_row(f, augment_reflect(y - i, f->height));
        below[i] = ring_row(f, augment_reflect(y + i, f->height));
    }
    for (size_t k = 0; k < f->values; k++) {
        uint32_t sum = f->weights[0] * own[k];
        for (int32_t i = 1; i <= f->radius; i++) sum += f->weights[i] * ((uint32_t)above[i][k] + below[i][k]);
        to[k] = augment_local_value(sum);
    }
}

void augment_filter(const AugmentOp *op, const AugmentDrawn *drawn, AugmentSize size, uint8_t *pixels, uint8_t *rows) {
    Filter f = {.height = size.height,
                .width = size.width,
                .values = (size_t)size.width * AUGMENT_CHANNELS,
                .pixels = pixels,
                .ring = (uint16_t *)(void *)rows};
    f.radius = augment_op_taps(op, drawn, f.weights);
    int32_t summed = 0;
    for (int32_t y = 0; y < f.height; y++) {
        const int32_t last = y + f.radius < f.height ? y + f.radius : f.height - 1;
        while (summed <= last) sum_row(&f, summed++);
        sum_columns(&f, y);
    }
}
