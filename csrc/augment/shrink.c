/* Resampling with separable filters, image by image in parallel: rows are summed first, then columns. Owns its scratch
 * memory during a call. */
#include "augment/shrink.h"

#include <string.h>

#include "augment/triangle.h"
#include "base/memory.h"

#define CHANNELS 3

/* Along one axis: output pixel o is the weighted sum of `taps` inputs starting at first[o]. */
typedef struct Filter {
    int taps;
    int *first;     /* owned */
    float *weights; /* owned: `taps` per output pixel */
} Filter;

typedef struct Shrink {
    const AugmentShrunk *images; /* borrowed */
    int64_t height, width, side;
    float scale[CHANNELS], offset[CHANNELS]; /* output = mean * scale + offset */
    float *lines;                            /* owned: per thread, a line of sums and an image as floats */
    Filter down, across;
    float *to; /* borrowed */
} Shrink;

/* Reads line y of an image as floats, channels last. */
static void read_line(const Shrink *s, int64_t image, int64_t y, float *line) {
    int64_t width = s->width, plane = s->height * width;
    bool planes = s->images->planes;
    int64_t at = image * CHANNELS * plane + y * width * (planes ? 1 : CHANNELS);
    int64_t column = planes ? 1 : CHANNELS, channel = planes ? plane : 1;
    for (int64_t x = 0; x < width; x++) {
        for (int c = 0; c < CHANNELS; c++) {
            int64_t index = at + x * column + c * channel;
            line[x * CHANNELS + c] = s->images->floats ? ((const float *)s->images->data)[index]
                                                       : (float)((const uint8_t *)s->images->data)[index];
        }
    }
}

static void shrink_line(const Shrink *s, const float *sums, float *to) {
    const Filter *f = &s->across;
    for (int64_t x = 0; x < s->side; x++, to += CHANNELS) {
        float sum[CHANNELS] = {0};
        const float *from = sums + f->first[x] * CHANNELS, *weights = f->weights + x * f->taps;
        for (int i = 0; i < f->taps; i++) {
            for (int c = 0; c < CHANNELS; c++) sum[c] += weights[i] * from[i * CHANNELS + c];
        }
        for (int c = 0; c < CHANNELS; c++) to[c] = sum[c] * s->scale[c] + s->offset[c];
    }
}

static Status shrink_image(void *context, size_t item, int thread) {
    const Shrink *s = context;
    const Filter *f = &s->down;
    int64_t elems = s->width * CHANNELS;
    float *sums = s->lines + (s->height + 1) * thread * elems, *lines = sums + elems;
    for (int64_t y = 0; y < s->height; y++) read_line(s, (int64_t)item, y, lines + y * elems);
    for (int64_t y = 0; y < s->side; y++) {
        memset(sums, 0, (size_t)elems * sizeof *sums);
        for (int i = 0; i < f->taps; i++) {
            float weight = f->weights[y * f->taps + i];
            if (weight == 0) continue;
            const float *line = lines + (f->first[y] + i) * elems;
            for (int64_t k = 0; k < elems; k++) sums[k] += weight * line[k];
        }
        shrink_line(s, sums, s->to + ((int64_t)item * s->side + y) * s->side * CHANNELS);
    }
    return STATUS_OK;
}

static Status filter_create(int64_t size, int64_t side, Filter *f) {
    f->taps = triangle_taps(size, side);
    TRY(memory_calloc((size_t)side, sizeof *f->first, &f->first));
    TRY(memory_calloc((size_t)(side * f->taps), sizeof *f->weights, &f->weights));
    for (int64_t o = 0; o < side; o++) {
        f->first[o] = triangle_weights(size, side, o, f->taps, f->weights + o * f->taps);
    }
    return STATUS_OK;
}

static void filter_destroy(Filter *f) {
    memory_free(f->first);
    memory_free(f->weights);
}

Status augment_shrink(const AugmentShrunk *images, int64_t count, int64_t height, int64_t width, int64_t side,
                      Pool *pool, float *to) {
    Status status = STATUS_OK;
    Shrink s = {.images = images, .height = height, .width = width, .side = side, .to = to};
    if (side < 1 || side > height || side > width) {
        FAIL(STATUS_ARGUMENT, "cannot shrink images of %lld x %lld to %lld x %lld", (long long)height, (long long)width,
             (long long)side, (long long)side);
    }
    for (int c = 0; c < CHANNELS; c++) {
        s.scale[c] = images->floats ? 1.0f : 1.0f / images->std[c];
        s.offset[c] = images->floats ? 0.0f : -images->mean[c] / images->std[c];
    }
    TRY_GOTO(filter_create(height, side, &s.down));
    TRY_GOTO(filter_create(width, side, &s.across));
    TRY_GOTO(memory_alloc((size_t)((height + 1) * pool_threads(pool) * width * CHANNELS), sizeof(float), &s.lines));
    TRY_GOTO(pool_run(pool, (size_t)count, shrink_image, &s));
done:
    memory_free(s.lines);
    filter_destroy(&s.across);
    filter_destroy(&s.down);
    return status;
}
