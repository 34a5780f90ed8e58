/* Box averages in whole numbers: along an axis of `from` source and `to` output pixels, source pixel j covers
 * [j * to, (j + 1) * to) and output pixel x covers [x * from, (x + 1) * from), so that all overlaps are integers and an
 * average is a sum of overlap * overlap * value over from.width * from.height. The rows of a box are added first, in
 * float: those sums stay below 2^24. Then its columns, in double: below 2^40. So every sum is exact. */
#include <string.h>

#include "base/memory.h"
#include "image/resize_private.h"

/* The source pixels [first, last] of an output pixel; those in between weigh `to`. */
typedef struct Box {
    uint32_t first, last, first_weight, last_weight;
} Box;

Status resizer_create(Resizer **out) { return memory_calloc(1, sizeof **out, out); }

void resizer_destroy(Resizer *resizer) {
    if (resizer == NULL) return;
    memory_free(resizer->boxes);
    memory_free(resizer->floats);
    memory_free(resizer);
}

Status resizer_reserve(Resizer *resizer, size_t float_bytes, size_t box_bytes) {
    if (float_bytes > resizer->float_bytes) {
        memory_free(resizer->floats);
        resizer->floats = NULL;
        resizer->float_bytes = 0;
        TRY(memory_alloc(float_bytes, 1, &resizer->floats));
        resizer->float_bytes = float_bytes;
    }
    if (box_bytes > resizer->box_bytes) {
        memory_free(resizer->boxes);
        resizer->boxes = NULL;
        resizer->box_bytes = 0;
        TRY(memory_alloc(box_bytes, 1, &resizer->boxes));
        resizer->box_bytes = box_bytes;
    }
    return STATUS_OK;
}

static Box box_of(uint32_t x, uint32_t from, uint32_t to) {
    uint64_t begin = (uint64_t)x * from, end = begin + from;
    uint32_t first = (uint32_t)(begin / to), last = (uint32_t)((end - 1) / to);
    if (first == last) return (Box){first, last, from, 0};
    return (Box){first, last, (uint32_t)((uint64_t)(first + 1) * to - begin), (uint32_t)(end - (uint64_t)last * to)};
}

static void add_row(float *restrict sums, const uint8_t *restrict row, size_t count, uint32_t weight) {
    float factor = (float)weight;
    for (size_t i = 0; i < count; i++) sums[i] += factor * (float)row[i];
}

static void set_row(float *restrict sums, const uint8_t *restrict row, size_t count, uint32_t weight) {
    float factor = (float)weight;
    for (size_t i = 0; i < count; i++) sums[i] = factor * (float)row[i];
}

/* Adds up the columns of each box and divides. The nudge is far above the error of the product and far below the
 * distance of any value short of a half. */
static void sum_columns(const float *rows, const Box *columns, uint32_t width, double inverse, uint8_t *out) {
    const double half = 0.5 + 1e-11;
    for (uint32_t x = 0; x < width; x++, out += RESIZE_CHANNELS) {
        const Box *box = &columns[x];
        const float *first = rows + (size_t)box->first * RESIZE_CHANNELS,
                    *last = rows + (size_t)box->last * RESIZE_CHANNELS;
        double inner[RESIZE_CHANNELS] = {0};
        for (const float *p = first + RESIZE_CHANNELS; p < last; p += RESIZE_CHANNELS) {
            for (int c = 0; c < RESIZE_CHANNELS; c++) inner[c] += (double)p[c];
        }
        for (int c = 0; c < RESIZE_CHANNELS; c++) {
            double sum = box->first_weight * (double)first[c] + width * inner[c] + box->last_weight * (double)last[c];
            out[c] = (uint8_t)(int)(sum * inverse + half);
        }
    }
}

static void resize(Resizer *resizer, const uint8_t *rgb, size_t stride, ImageSize from, uint8_t *out, size_t out_stride,
                   ImageSize to) {
    size_t count = (size_t)from.width * RESIZE_CHANNELS;
    double inverse = 1.0 / ((double)from.width * from.height);
    float *rows = resizer->floats;
    Box *columns = resizer->boxes;
    for (uint32_t x = 0; x < to.width; x++) columns[x] = box_of(x, from.width, to.width);
    for (uint32_t y = 0; y < to.height; y++) {
        Box box = box_of(y, from.height, to.height);
        set_row(rows, rgb + box.first * stride, count, box.first_weight);
        for (uint32_t j = box.first + 1; j < box.last; j++) {
            add_row(rows, rgb + j * stride, count, to.height);
        }
        if (box.last != box.first) add_row(rows, rgb + box.last * stride, count, box.last_weight);
        sum_columns(rows, columns, to.width, inverse, out + y * out_stride);
    }
}

static bool is_size(ImageSize size) {
    return size.width >= 1 && size.height >= 1 && size.width <= RESIZE_MAX_SIDE && size.height <= RESIZE_MAX_SIDE;
}

Status resizer_begin(const uint8_t *rgb, size_t stride, ImageSize from, uint8_t *out, size_t out_stride, ImageSize to,
                     bool *done) {
    if (!is_size(from) || !is_size(to)) {
        FAIL(STATUS_ARGUMENT, "cannot resize %u x %u pixels to %u x %u; sides are 1 to %d", from.width, from.height,
             to.width, to.height, RESIZE_MAX_SIDE);
    }
    *done = from.width == to.width && from.height == to.height;
    for (uint32_t y = 0; *done && y < to.height; y++) {
        memcpy(out + y * out_stride, rgb + y * stride, (size_t)to.width * RESIZE_CHANNELS);
    }
    return STATUS_OK;
}

Status resize_area(Resizer *resizer, const uint8_t *rgb, size_t stride, ImageSize from, uint8_t *out, size_t out_stride,
                   ImageSize to) {
    bool done;
    TRY(resizer_begin(rgb, stride, from, out, out_stride, to, &done));
    if (done) return STATUS_OK;
    TRY(resizer_reserve(resizer, (size_t)from.width * RESIZE_CHANNELS * sizeof(float), to.width * sizeof(Box)));
    resize(resizer, rgb, stride, from, out, out_stride, to);
    return STATUS_OK;
}
