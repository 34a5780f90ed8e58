/* Which source pixels an output pixel is made of, and their weights. */
#include <math.h>

#include "image/resize_private.h"

/* For AREA, source pixel j covers [j, j + 1) * unit * to and output pixel x covers offset * to + [x, x + 1) * from, so
 * that all overlaps are whole numbers. */
static uint64_t pixel_of(const ResizeAxis *axis) { return (uint64_t)axis->unit * axis->to; }

static uint64_t begin_of(const ResizeAxis *axis, uint32_t x) {
    return (uint64_t)axis->offset * axis->to + (uint64_t)x * axis->from;
}

static void place_box(const ResizeAxis *axis, uint32_t x) {
    const uint64_t begin = begin_of(axis, x), last = begin + axis->from - 1;
    axis->first[x] = (uint32_t)(begin / pixel_of(axis));
    axis->count[x] = (uint32_t)(last / pixel_of(axis)) - axis->first[x] + 1;
}

static void weigh_box(const ResizeAxis *axis, uint32_t x, double *weights) {
    const uint64_t begin = begin_of(axis, x), end = begin + axis->from;
    for (uint32_t k = 0; k < axis->count[x]; k++) {
        const uint64_t low = (axis->first[x] + k) * pixel_of(axis), high = low + pixel_of(axis);
        weights[k] = (double)((high < end ? high : end) - (low > begin ? low : begin));
    }
}

/* In source pixels. */
static double scale_of(const ResizeAxis *axis) { return (double)axis->from / ((double)axis->to * axis->unit); }
static double support_of(const ResizeAxis *axis) { return fmax(scale_of(axis), 1.0); }

static double center_of(const ResizeAxis *axis, uint32_t x) {
    return (double)axis->offset / axis->unit + (x + 0.5) * scale_of(axis);
}

static void place_triangle(const ResizeAxis *axis, uint32_t x) {
    const double center = center_of(axis, x), support = support_of(axis), pixels = resize_axis_pixels(axis);
    const double begin = floor(center - support + 0.5), end = floor(center + support + 0.5);
    axis->first[x] = begin > 0 ? (uint32_t)begin : 0;
    axis->count[x] = (uint32_t)(end < pixels ? end : pixels) - axis->first[x];
}

static void weigh_triangle(const ResizeAxis *axis, uint32_t x, double *weights) {
    const double center = center_of(axis, x), inverse = 1 / support_of(axis);
    double sum = 0;
    for (uint32_t k = 0; k < axis->count[x]; k++) {
        weights[k] = fmax(0, 1 - fabs((axis->first[x] + k + 0.5 - center) * inverse));
        sum += weights[k];
    }
    for (uint32_t k = 0; k < axis->count[x]; k++) weights[k] /= sum;
}

static void place_nearest(const ResizeAxis *axis, uint32_t x) {
    const uint64_t at = axis->offset + (2 * (uint64_t)x + 1) * axis->from / (2 * (uint64_t)axis->to);
    axis->first[x] = (uint32_t)(at / axis->unit);
    axis->count[x] = 1;
}

static void weigh_nearest(const ResizeAxis *axis, uint32_t x, double *weights) {
    (void)axis, (void)x;
    weights[0] = 1;
}

static const struct {
    void (*place)(const ResizeAxis *axis, uint32_t x);
    void (*weigh)(const ResizeAxis *axis, uint32_t x, double *weights);
} filters[] = {[RESIZE_AREA] = {place_box, weigh_box},
               [RESIZE_BILINEAR] = {place_triangle, weigh_triangle},
               [RESIZE_NEAREST] = {place_nearest, weigh_nearest}};

void resize_axis_place(ResizeAxis *axis, ResizeFilter filter) {
    axis->taps = 0;
    for (uint32_t x = 0; x < axis->to; x++) {
        filters[filter].place(axis, x);
        if (axis->count[x] > axis->taps) axis->taps = axis->count[x];
    }
}

void resize_axis_weigh(const ResizeAxis *axis, ResizeFilter filter) {
    for (uint32_t x = 0; x < axis->to; x++) {
        double *weights = axis->weights + (size_t)x * axis->taps;
        filters[filter].weigh(axis, x, weights);
        for (uint32_t k = axis->count[x]; k < axis->taps; k++) weights[k] = 0;
    }
}

static void swap(uint32_t *one, uint32_t *other) {
    const uint32_t kept = *one;
    *one = *other;
    *other = kept;
}

void resize_axis_reverse(const ResizeAxis *axis) {
    for (uint32_t x = 0, y = axis->to - 1; x < y; x++, y--) {
        swap(&axis->first[x], &axis->first[y]);
        swap(&axis->count[x], &axis->count[y]);
        double *one = axis->weights + (size_t)x * axis->taps, *other = axis->weights + (size_t)y * axis->taps;
        for (uint32_t k = 0; k < axis->taps; k++) {
            const double kept = one[k];
            one[k] = other[k];
            other[k] = kept;
        }
    }
}
