/* Incoming rows are added to the output rows that they belong to, in float32; once an output row has all of its source
 * rows, it is summed along its columns, in float64, and rounded (resize_avx512.c gets the same values by float32 where
 * that is safe). For AREA all of these sums are exact: weights and values are whole numbers, sums of rows stay below
 * 2^24 and totals below 2^40. */
#include <string.h>

#include "base/cpu.h"
#include "base/memory.h"
#include "base/names.h"
#include "image/resize_private.h"

#define ALIGN_FLOATS 16 /* a row of sums is aligned to 64 bytes */
#define SPREAD 256      /* fractions */

NAMES_DEFINE(resize_filter_name, "area", "bilinear_antialias", "nearest")

typedef struct Block {
    void *memory; /* owned */
    size_t bytes;
} Block;

struct Resizer {
    Block places, weights, sums; /* the memory that the pointers below point into */
    const ResizeKernels *kernels;
    ImageSize from, to;
    uint8_t *out; /* borrowed until the last row */
    size_t out_stride;
    bool copies; /* the size does not change: rows are copied, or mirrored */
    bool mirrored;
    ResizeAxis rows;
    float *row_weights; /* those of `rows`, as float32 */
    ResizeColumns columns;
    uint32_t given, done; /* source rows received, output rows finished */
    /* Rows of sums: one for output rows that are completed at once, `live` for those that wait for more. */
    float *passing, *waiting;
    size_t sums_floats;
    uint32_t live;
};

static const ResizeKernels *kernels_here(void) {
#if defined(__x86_64__)
    const CpuFeatures *cpu = cpu_features();
    if (cpu->avx512) return &resize_kernels_avx512;
    if (cpu->avx2) return &resize_kernels_avx2;
#endif
    return &resize_kernels_scalar;
}

Status resizer_create(Resizer **out) {
    TRY(memory_calloc(1, sizeof **out, out));
    (*out)->kernels = kernels_here();
    return STATUS_OK;
}

void resizer_destroy(Resizer *resizer) {
    if (resizer == NULL) return;
    memory_free(resizer->places.memory);
    memory_free(resizer->weights.memory);
    memory_free(resizer->sums.memory);
    memory_free(resizer);
}

size_t resizer_bytes(const Resizer *resizer) {
    return sizeof *resizer + resizer->places.bytes + resizer->weights.bytes + resizer->sums.bytes;
}

static Status resizer_reserve(Block *block, size_t count, size_t size) {
    if (count * size <= block->bytes) return STATUS_OK;
    memory_free(block->memory);
    *block = (Block){0};
    TRY(memory_alloc(count, size, &block->memory));
    block->bytes = count * size;
    return STATUS_OK;
}

static bool is_size(ImageSize size) {
    return size.width >= 1 && size.height >= 1 && size.width <= RESIZE_MAX_SIDE && size.height <= RESIZE_MAX_SIDE;
}

static Status place_axes(Resizer *resizer, ResizeFilter filter, ResizeGrid grid) {
    const uint32_t height = resizer->to.height, width = resizer->to.width;
    TRY(resizer_reserve(&resizer->places, 2 * ((size_t)height + width), sizeof(uint32_t)));
    uint32_t *places = resizer->places.memory;
    resizer->rows = (ResizeAxis){.from = resizer->from.height,
                                 .to = height,
                                 .unit = grid.unit,
                                 .offset = grid.y,
                                 .first = places,
                                 .count = places + height};
    places += 2 * (size_t)height;
    ResizeAxis *columns = &resizer->columns.axis;
    *columns = (ResizeAxis){.from = resizer->from.width,
                            .to = width,
                            .unit = grid.unit,
                            .offset = grid.x,
                            .first = places,
                            .count = places + width};
    resize_axis_place(&resizer->rows, filter);
    resize_axis_place(columns, filter);
    return STATUS_OK;
}

static Status resizer_weigh(Resizer *resizer, ResizeFilter filter) {
    const ResizeKernels *kernels = resizer->kernels;
    ResizeColumns *columns = &resizer->columns;
    const size_t of_rows = (size_t)resizer->to.height * resizer->rows.taps;
    const size_t of_columns = (size_t)resizer->to.width * columns->axis.taps;
    const size_t most = of_rows > of_columns ? of_rows : of_columns;
    const size_t totals = (size_t)resizer->to.width * RESIZE_CHANNELS + RESIZE_LANES;
    const size_t lanes = kernels->lanes_bytes == NULL ? 0 : kernels->lanes_bytes(&columns->axis);
    TRY(resizer_reserve(&resizer->weights, lanes + (most + totals) * sizeof(double) + of_rows * sizeof(float), 1));
    double *weights = (double *)(void *)((uint8_t *)resizer->weights.memory + lanes);
    columns->lanes = lanes > 0 ? resizer->weights.memory : NULL;
    columns->totals = weights + most;
    resizer->row_weights = (float *)(columns->totals + totals);
    resizer->rows.weights = weights;
    resize_axis_weigh(&resizer->rows, filter);
    for (size_t i = 0; i < of_rows; i++) resizer->row_weights[i] = (float)weights[i];
    columns->axis.weights = weights;
    resize_axis_weigh(&columns->axis, filter);
    if (resizer->mirrored) {
        resize_axis_reverse(&columns->axis);
        /* Blocks of lanes now begin at other pixels, and may need more sums than a window has. */
        if (lanes > 0 && kernels->lanes_bytes(&columns->axis) == 0) columns->lanes = NULL;
    }
    if (columns->lanes != NULL) kernels->make_lanes(columns);
    return STATUS_OK;
}

static uint64_t divisor(uint64_t one, uint64_t other) {
    while (other != 0) {
        const uint64_t rest = one % other;
        one = other;
        other = rest;
    }
    return one;
}

/* The number of different fractions that averages along the axis can have. */
static uint64_t fractions(const ResizeAxis *axis) {
    const uint64_t pixel = (uint64_t)axis->unit * axis->to, offset = (uint64_t)axis->offset * axis->to;
    return axis->from / divisor(axis->from, divisor(pixel, offset));
}

/* The largest number of output rows that can be unfinished at the same time. */
static uint32_t count_live(const ResizeAxis *rows) {
    uint32_t most = 0;
    for (uint32_t y = 0, next = 0; y < rows->to; y++) {
        while (next < rows->to && rows->first[next] < rows->first[y] + rows->count[y]) next++;
        if (next - y > most) most = next - y;
    }
    return most;
}

static Status resizer_make_room(Resizer *resizer) {
    const size_t row = (size_t)resize_axis_pixels(&resizer->columns.axis) * RESIZE_CHANNELS;
    const size_t taps = (size_t)resizer->columns.axis.taps * RESIZE_CHANNELS + RESIZE_LANES;
    const size_t floats =
        (row + (taps > RESIZE_BEYOND ? taps : RESIZE_BEYOND) + ALIGN_FLOATS - 1) / ALIGN_FLOATS * ALIGN_FLOATS;
    resizer->live = count_live(&resizer->rows);
    TRY(resizer_reserve(&resizer->sums, floats * ((size_t)resizer->live + 1), sizeof(float)));
    resizer->sums_floats = floats;
    resizer->passing = resizer->sums.memory;
    resizer->waiting = resizer->passing + floats;
    for (uint32_t i = 0; i <= resizer->live; i++) {
        memset(resizer->passing + i * floats + row, 0, (floats - row) * sizeof(float));
    }
    return STATUS_OK;
}

Status resizer_begin_reduced(Resizer *resizer, ResizeFilter filter, ResizeGrid grid, ImageSize from, ImageSize to,
                             bool mirrored, uint8_t *out, size_t out_stride) {
    if (!is_size(from) || !is_size(to)) {
        FAIL(STATUS_ARGUMENT, "cannot resize %u x %u pixels to %u x %u; sides are 1 to %d", from.width, from.height,
             to.width, to.height, RESIZE_MAX_SIDE);
    }
    resizer->from = from;
    resizer->to = to;
    resizer->out = out;
    resizer->out_stride = out_stride;
    resizer->mirrored = mirrored;
    resizer->given = resizer->done = 0;
    resizer->copies = grid.unit == 1 && from.width == to.width && from.height == to.height;
    if (resizer->copies) return STATUS_OK;
    /* The 1e-11 is far above the rounding error of the product, and far below the distance from one half of any smaller
     * exact average. */
    resizer->columns.exact = filter == RESIZE_AREA;
    resizer->columns.factor = filter == RESIZE_AREA ? 1.0 / ((double)from.width * from.height) : 1.0;
    resizer->columns.half = filter == RESIZE_AREA ? 0.5 + 1e-11 : 0.5;
    TRY(place_axes(resizer, filter, grid));
    const uint64_t all = fractions(&resizer->rows) * fractions(&resizer->columns.axis);
    resizer->columns.spread = all >= SPREAD || all % 2 != 0; /* with an odd number, none is one half */
    TRY(resizer_weigh(resizer, filter));
    return resizer_make_room(resizer);
}

Status resizer_begin(Resizer *resizer, ResizeFilter filter, ImageSize from, ImageSize to, uint8_t *out,
                     size_t out_stride) {
    return resizer_begin_reduced(resizer, filter, (ResizeGrid){1, 0, 0}, from, to, false, out, out_stride);
}

static void copy_mirrored(const uint8_t *from, uint32_t width, uint8_t *to) {
    for (to += (size_t)width * RESIZE_CHANNELS; width > 0; width--, from += RESIZE_CHANNELS) {
        to -= RESIZE_CHANNELS;
        memcpy(to, from, RESIZE_CHANNELS);
    }
}

static void resizer_copy_rows(const Resizer *resizer, const uint8_t *rgb, size_t stride, uint32_t count) {
    for (uint32_t y = 0; y < count; y++, rgb += stride) {
        uint8_t *to = resizer->out + (resizer->given + y) * resizer->out_stride;
        if (resizer->mirrored) {
            copy_mirrored(rgb, resizer->to.width, to);
        } else {
            memcpy(to, rgb, (size_t)resizer->to.width * RESIZE_CHANNELS);
        }
    }
}

/* Rows of a raw image come from the file's mapping, and the processor does not foresee the next one. */
static void prefetch_row(const uint8_t *rgb, size_t pixels) {
    for (size_t i = 0; i < pixels * RESIZE_CHANNELS; i += MEMORY_ALIGNMENT) __builtin_prefetch(rgb + i);
}

/* Adds the part of output row y that is in source rows [given, end), the first of which is at `rgb`; returns whether
 * the output row is finished. */
static bool resizer_add_part(Resizer *resizer, uint32_t y, uint32_t end, const uint8_t *rgb, size_t stride) {
    const ResizeAxis *rows = &resizer->rows;
    const uint32_t first = rows->first[y], last = first + rows->count[y], given = resizer->given;
    const uint32_t from = first > given ? first : given, until = last < end ? last : end;
    const bool begun = first < given, all = last <= end;
    float *sums = resizer->passing;
    if (begun || !all) sums = resizer->waiting + (y % resizer->live) * resizer->sums_floats;
    if (until < end) prefetch_row(rgb + (size_t)(until - given) * stride, resize_axis_pixels(&resizer->columns.axis));
    resizer->kernels->rows(sums, rgb + (size_t)(from - given) * stride, stride,
                           resizer->row_weights + (size_t)y * rows->taps + (from - first), until - from,
                           (size_t)resize_axis_pixels(&resizer->columns.axis) * RESIZE_CHANNELS, begun);
    if (!all) return false;
    resizer->kernels->columns(sums, &resizer->columns, resizer->out + y * resizer->out_stride);
    return true;
}

void resizer_push(Resizer *resizer, const uint8_t *rgb, size_t stride, uint32_t count) {
    const uint32_t end = resizer->given + count;
    if (resizer->copies) {
        resizer_copy_rows(resizer, rgb, stride, count);
    } else {
        for (uint32_t y = resizer->done; y < resizer->to.height && resizer->rows.first[y] < end; y++) {
            if (resizer_add_part(resizer, y, end, rgb, stride)) resizer->done = y + 1;
        }
    }
    resizer->given = end;
}
