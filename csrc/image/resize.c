/* Box averages in whole numbers: along an axis of `from` source and `to` output pixels, source pixel j covers
 * [j * to, (j + 1) * to) and output pixel x covers [x * from, (x + 1) * from), so that all overlaps are integers and an
 * average is a sum of overlap * overlap * value over from.width * from.height. The rows of a box are added first, in
 * float: those sums stay below 2^24. Then its columns, in double: below 2^40. So every sum is exact. */
#include "image/resize.h"

#include <stdbool.h>
#include <string.h>

#include "base/memory.h"

#define CHANNELS 3

/* The source pixels [first, last] of an output pixel; those in between weigh `to`. */
typedef struct Box {
    uint32_t first, last, first_weight, last_weight;
} Box;

struct Resizer {
    Box *columns; /* owned, `out_width` of them fit */
    float *rows;  /* owned, 3 * in_width: the rows of a box added up */
    size_t in_width, out_width;
};

Status resizer_create(Resizer **out) { return memory_calloc(1, sizeof **out, out); }

void resizer_destroy(Resizer *resizer) {
    if (resizer == NULL) return;
    memory_free(resizer->columns);
    memory_free(resizer->rows);
    memory_free(resizer);
}

static Status reserve(Resizer *resizer, uint32_t in_width, uint32_t out_width) {
    if (in_width > resizer->in_width) {
        memory_free(resizer->rows);
        resizer->rows = NULL;
        resizer->in_width = 0;
        TRY(memory_alloc((size_t)in_width * CHANNELS, sizeof *resizer->rows, &resizer->rows));
        resizer->in_width = in_width;
    }
    if (out_width > resizer->out_width) {
        memory_free(resizer->columns);
        resizer->columns = NULL;
        resizer->out_width = 0;
        TRY(memory_alloc(out_width, sizeof *resizer->columns, &resizer->columns));
        resizer->out_width = out_width;
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
    for (uint32_t x = 0; x < width; x++, out += CHANNELS) {
        const Box *box = &columns[x];
        const float *first = rows + (size_t)box->first * CHANNELS, *last = rows + (size_t)box->last * CHANNELS;
        double inner[CHANNELS] = {0};
        for (const float *p = first + CHANNELS; p < last; p += CHANNELS) {
            for (int c = 0; c < CHANNELS; c++) inner[c] += (double)p[c];
        }
        for (int c = 0; c < CHANNELS; c++) {
            double sum = box->first_weight * (double)first[c] + width * inner[c] + box->last_weight * (double)last[c];
            out[c] = (uint8_t)(int)(sum * inverse + half);
        }
    }
}

static void resize(Resizer *resizer, const uint8_t *rgb, size_t stride, ImageSize from, uint8_t *out, size_t out_stride,
                   ImageSize to) {
    size_t count = (size_t)from.width * CHANNELS;
    double inverse = 1.0 / ((double)from.width * from.height);
    for (uint32_t x = 0; x < to.width; x++) resizer->columns[x] = box_of(x, from.width, to.width);
    for (uint32_t y = 0; y < to.height; y++) {
        Box box = box_of(y, from.height, to.height);
        set_row(resizer->rows, rgb + box.first * stride, count, box.first_weight);
        for (uint32_t j = box.first + 1; j < box.last; j++) {
            add_row(resizer->rows, rgb + j * stride, count, to.height);
        }
        if (box.last != box.first) add_row(resizer->rows, rgb + box.last * stride, count, box.last_weight);
        sum_columns(resizer->rows, resizer->columns, to.width, inverse, out + y * out_stride);
    }
}

static bool is_size(ImageSize size) {
    return size.width >= 1 && size.height >= 1 && size.width <= RESIZE_MAX_SIDE && size.height <= RESIZE_MAX_SIDE;
}

Status resize_area(Resizer *resizer, const uint8_t *rgb, size_t stride, ImageSize from, uint8_t *out, size_t out_stride,
                   ImageSize to) {
    if (!is_size(from) || !is_size(to)) {
        FAIL(STATUS_ARGUMENT, "cannot resize %u x %u pixels to %u x %u; sides are 1 to %d", from.width, from.height,
             to.width, to.height, RESIZE_MAX_SIDE);
    }
    if (from.width == to.width && from.height == to.height) {
        for (uint32_t y = 0; y < to.height; y++) {
            memcpy(out + y * out_stride, rgb + y * stride, (size_t)to.width * CHANNELS);
        }
        return STATUS_OK;
    }
    TRY(reserve(resizer, from.width, to.width));
    resize(resizer, rgb, stride, from, out, out_stride, to);
    return STATUS_OK;
}
