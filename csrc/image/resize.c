/* Box averages in integers: along an axis of `from` source and `to` output pixels, source pixel j covers
 * [j * to, (j + 1) * to) and output pixel x covers [x * from, (x + 1) * from), so that all overlaps are whole numbers
 * and an average is a sum of overlap * overlap * value over from.width * from.height. Rows are summed horizontally
 * once each, in 32 bits; the vertical sums stay below 2^41 and are exact in double. */
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
    Box *columns;  /* owned, `capacity` */
    uint32_t *row; /* owned, 3 * capacity: the horizontal sums of one source row */
    double *sums;  /* owned, 3 * capacity */
    size_t capacity;
};

Status resizer_create(Resizer **out) { return memory_calloc(1, sizeof **out, out); }

static void release(Resizer *resizer) {
    memory_free(resizer->columns);
    memory_free(resizer->row);
    memory_free(resizer->sums);
    *resizer = (Resizer){0};
}

void resizer_destroy(Resizer *resizer) {
    if (resizer == NULL) return;
    release(resizer);
    memory_free(resizer);
}

static Status reserve(Resizer *resizer, size_t width) {
    if (width <= resizer->capacity) return STATUS_OK;
    release(resizer);
    TRY(memory_alloc(width, sizeof *resizer->columns, &resizer->columns));
    TRY(memory_alloc(width * CHANNELS, sizeof *resizer->row, &resizer->row));
    TRY(memory_alloc(width * CHANNELS, sizeof *resizer->sums, &resizer->sums));
    resizer->capacity = width;
    return STATUS_OK;
}

static Box box_of(uint32_t x, uint32_t from, uint32_t to) {
    uint64_t begin = (uint64_t)x * from, end = begin + from;
    uint32_t first = (uint32_t)(begin / to), last = (uint32_t)((end - 1) / to);
    if (first == last) return (Box){first, last, from, 0};
    return (Box){first, last, (uint32_t)((uint64_t)(first + 1) * to - begin), (uint32_t)(end - (uint64_t)last * to)};
}

static void sum_row(const uint8_t *source, const Box *columns, ImageSize to, uint32_t *row) {
    for (uint32_t x = 0; x < to.width; x++, row += CHANNELS) {
        const Box *box = &columns[x];
        const uint8_t *at = source + (size_t)box->first * CHANNELS, *last = source + (size_t)box->last * CHANNELS;
        uint32_t inner[CHANNELS] = {0};
        for (const uint8_t *p = at + CHANNELS; p < last; p += CHANNELS) {
            for (int c = 0; c < CHANNELS; c++) inner[c] += p[c];
        }
        for (int c = 0; c < CHANNELS; c++) {
            row[c] = box->first_weight * at[c] + to.width * inner[c] + box->last_weight * last[c];
        }
    }
}

static void add_row(double *restrict sums, const uint32_t *restrict row, size_t count, uint32_t weight) {
    double factor = weight;
    for (size_t i = 0; i < count; i++) sums[i] += factor * (double)(int32_t)row[i];
}

/* The nudge is far above the error of the product and far below the distance of any value short of a half. */
static void round_row(const double *sums, size_t count, double inverse, uint8_t *out) {
    const double half = 0.5 + 1e-11;
    for (size_t i = 0; i < count; i++) out[i] = (uint8_t)(int)(sums[i] * inverse + half);
}

static void resize(Resizer *resizer, const uint8_t *rgb, size_t stride, ImageSize from, uint8_t *out, size_t out_stride,
                   ImageSize to) {
    size_t count = (size_t)to.width * CHANNELS;
    double inverse = 1.0 / ((double)from.width * from.height);
    uint32_t summed = UINT32_MAX; /* the source row whose sums stand in resizer->row */
    for (uint32_t x = 0; x < to.width; x++) resizer->columns[x] = box_of(x, from.width, to.width);
    for (uint32_t y = 0; y < to.height; y++) {
        Box box = box_of(y, from.height, to.height);
        memset(resizer->sums, 0, count * sizeof *resizer->sums);
        for (uint32_t j = box.first; j <= box.last; j++) {
            if (j != summed) sum_row(rgb + j * stride, resizer->columns, to, resizer->row);
            summed = j;
            uint32_t weight = j == box.first ? box.first_weight : j == box.last ? box.last_weight : to.height;
            add_row(resizer->sums, resizer->row, count, weight);
        }
        round_row(resizer->sums, count, inverse, out + y * out_stride);
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
    TRY(reserve(resizer, to.width));
    resize(resizer, rgb, stride, from, out, out_stride, to);
    return STATUS_OK;
}
