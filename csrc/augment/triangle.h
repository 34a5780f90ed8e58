/* The linear (triangle) filter that shrinks one axis of an image, widened by the ratio of the sizes so that every input
 * pixel counts: one definition for shrink.c and cuda/shrink.cu. */
#ifndef CGXFFCV_AUGMENT_TRIANGLE_H
#define CGXFFCV_AUGMENT_TRIANGLE_H

#include <math.h>
#include <stdint.h>

/* The number of inputs that an output pixel sums when `size` pixels become `side`. */
static inline int triangle_taps(int64_t size, int64_t side) {
    int64_t taps = (int64_t)ceil(2 * ((double)size / (double)side)) + 1;
    return (int)(taps < size ? taps : size);
}

static inline double triangle_height(double distance, double ratio) {
    double height = 1 - fabs(distance) / ratio;
    return height > 0 ? height : 0;
}

/* Output pixel `out`, centred at (out + 1/2) ratio, is the sum over the inputs first, first + 1..., centred at first +
 * 1/2..., with `taps` weights that fall linearly to 0 at the distance `ratio` and add up to 1. Returns first. */
static inline int triangle_weights(int64_t size, int64_t side, int64_t out, int taps, float *weights) {
    double ratio = (double)size / (double)side, centre = ((double)out + 0.5) * ratio, total = 0;
    int64_t first = (int64_t)floor(centre - ratio), last = size - taps;
    first = first < 0 ? 0 : first > last ? last : first;
    for (int i = 0; i < taps; i++) total += triangle_height((double)(first + i) + 0.5 - centre, ratio);
    for (int i = 0; i < taps; i++) {
        weights[i] = (float)(triangle_height((double)(first + i) + 0.5 - centre, ratio) / total);
    }
    return (int)first;
}

#endif
