/* Antialiased bilinear resampling: a triangle as wide as two source pixels, or two output pixels where those are
 * larger, cut off at the image's edges. First the rows of an output row are added, then the columns of each pixel, in
 * float. */
#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "image/resize_private.h"

/* The source pixels of an output pixel, and where its weights, which add up to 1, begin. */
typedef struct Taps {
    uint32_t first, count;
    size_t at;
} Taps;

static uint32_t most_taps(uint32_t from, uint32_t to) {
    double support = from > to ? (double)from / to : 1.0;
    return (uint32_t)(2 * support) + 2;
}

/* Fills `weights` for output pixel x; at most most_taps of them. */
static Taps taps_of(uint32_t x, uint32_t from, uint32_t to, float *weights) {
    double scale = (double)from / to, support = scale > 1 ? scale : 1, center = (x + 0.5) * scale, sum = 0;
    double begin = floor(center - support + 0.5), end = floor(center + support + 0.5);
    Taps taps = {.first = begin > 0 ? (uint32_t)begin : 0};
    taps.count = (end < from ? (uint32_t)end : from) - taps.first;
    for (uint32_t k = 0; k < taps.count; k++) sum += fmax(0, 1 - fabs((taps.first + k + 0.5 - center) / support));
    for (uint32_t k = 0; k < taps.count; k++) {
        weights[k] = (float)(fmax(0, 1 - fabs((taps.first + k + 0.5 - center) / support)) / sum);
    }
    return taps;
}

static void add_rows(float *restrict sums, const uint8_t *rgb, size_t stride, Taps taps, const float *weights,
                     size_t count) {
    memset(sums, 0, count * sizeof *sums);
    for (uint32_t k = 0; k < taps.count; k++) {
        const uint8_t *restrict row = rgb + (taps.first + k) * stride;
        const float weight = weights[k];
        for (size_t i = 0; i < count; i++) sums[i] += weight * (float)row[i];
    }
}

static void add_columns(const float *sums, const Taps *columns, const float *weights, uint32_t width, uint8_t *out) {
    for (uint32_t x = 0; x < width; x++, out += RESIZE_CHANNELS) {
        const float *from = sums + (size_t)columns[x].first * RESIZE_CHANNELS, *weight = weights + columns[x].at;
        float total[RESIZE_CHANNELS] = {0.5f, 0.5f, 0.5f};
        for (uint32_t k = 0; k < columns[x].count; k++, from += RESIZE_CHANNELS) {
            for (int c = 0; c < RESIZE_CHANNELS; c++) total[c] += weight[k] * from[c];
        }
        for (int c = 0; c < RESIZE_CHANNELS; c++) out[c] = (uint8_t)fminf(total[c], 255.0f);
    }
}

Status resize_bilinear(Resizer *resizer, const uint8_t *rgb, size_t stride, ImageSize from, uint8_t *out,
                       size_t out_stride, ImageSize to) {
    const uint32_t across = most_taps(from.width, to.width), down = most_taps(from.height, to.height);
    const size_t sums = (size_t)from.width * RESIZE_CHANNELS, weights = (size_t)to.width * across;
    bool done;
    TRY(resizer_begin(rgb, stride, from, out, out_stride, to, &done));
    if (done) return STATUS_OK;
    TRY(resizer_reserve(resizer, (sums + weights + down) * sizeof(float), to.width * sizeof(Taps)));
    float *rows = resizer->floats, *row_weights = rows + sums, *column_weights = row_weights + down;
    Taps *columns = resizer->boxes;
    for (uint32_t x = 0; x < to.width; x++) {
        columns[x] = taps_of(x, from.width, to.width, column_weights + (size_t)x * across);
        columns[x].at = (size_t)x * across;
    }
    for (uint32_t y = 0; y < to.height; y++) {
        Taps taps = taps_of(y, from.height, to.height, row_weights);
        add_rows(rows, rgb, stride, taps, row_weights, sums);
        add_columns(rows, columns, column_weights, to.width, out + y * out_stride);
    }
    return STATUS_OK;
}
