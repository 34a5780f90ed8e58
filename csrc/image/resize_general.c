/* Resampling of other formats, one output row at a time, by plain loops in float64: first the source rows are added up,
 * then their sums along the row. */
#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "image/resize_private.h"

/* The state of one image's resampling; the pointers point into the memory at the end. */
typedef struct General {
    const ResizeImage *image;
    ResizeFilter filter;
    ResizeAxis rows, columns;
    double whole; /* the sum of all weights of an output pixel */
    double *sums; /* a row of the source's width, and the values of one pixel */
    uint8_t *out;
    void *places, *weights, *memory; /* owned */
} General;

static size_t value_bytes(ResizeValue type) { return type == RESIZE_U8 ? 1 : type == RESIZE_U16 ? 2 : 4; }

static double load(ResizeValue type, const uint8_t *at) {
    uint16_t word;
    float number;
    if (type == RESIZE_U8) return *at;
    if (type == RESIZE_U16) {
        memcpy(&word, at, sizeof word);
        return word;
    }
    memcpy(&number, at, sizeof number);
    return (double)number;
}

/* Stores the rounded average, given the weighted total. */
static void store(const General *general, double total, uint8_t *at) {
    const ResizeValue type = general->image->type;
    const double mean = total / general->whole;
    const float number = (float)mean;
    /* Totals of whole numbers are exact, and so is this comparison with one half. */
    double rounded = floor(mean);
    if (2 * (total - rounded * general->whole) >= general->whole) rounded += 1;
    if (general->filter != RESIZE_AREA) rounded = floor(mean + 0.5);
    const uint16_t word = type == RESIZE_F32 ? 0 : (uint16_t)rounded;
    if (type == RESIZE_U8) *at = (uint8_t)word;
    if (type == RESIZE_U16) memcpy(at, &word, sizeof word);
    if (type == RESIZE_F32) memcpy(at, &number, sizeof number);
}

static Status general_prepare(General *general, ImageSize to) {
    const ImageSize from = general->image->size;
    const size_t sides = (size_t)to.height + to.width;
    TRY(memory_alloc(2 * sides, sizeof(uint32_t), &general->places));
    uint32_t *places = general->places;
    general->rows = (ResizeAxis){from.height, to.height, 1, 0, 0, places, places + to.height, NULL};
    places += 2 * (size_t)to.height;
    general->columns = (ResizeAxis){from.width, to.width, 1, 0, 0, places, places + to.width, NULL};
    resize_axis_place(&general->rows, general->filter);
    resize_axis_place(&general->columns, general->filter);
    const size_t of_rows = (size_t)to.height * general->rows.taps,
                 of_columns = (size_t)to.width * general->columns.taps;
    TRY(memory_alloc(of_rows + of_columns, sizeof(double), &general->weights));
    general->rows.weights = general->weights;
    general->columns.weights = general->rows.weights + of_rows;
    resize_axis_weigh(&general->rows, general->filter);
    resize_axis_weigh(&general->columns, general->filter);
    TRY(memory_alloc((size_t)from.width * general->image->channels, sizeof(double), &general->memory));
    general->sums = general->memory;
    general->whole = general->filter == RESIZE_AREA ? (double)from.width * from.height : 1;
    return STATUS_OK;
}

static void sum_rows(const General *general, uint32_t y) {
    const ResizeImage *image = general->image;
    const ResizeAxis *rows = &general->rows;
    const size_t values = (size_t)image->size.width * image->channels, bytes = value_bytes(image->type);
    for (uint32_t k = 0; k < rows->count[y]; k++) {
        const uint8_t *row = (const uint8_t *)image->pixels + (rows->first[y] + k) * image->stride;
        const double weight = rows->weights[(size_t)y * rows->taps + k];
        for (size_t i = 0; i < values; i++) {
            const double part = weight * load(image->type, row + i * bytes);
            general->sums[i] = k == 0 ? part : general->sums[i] + part;
        }
    }
}

static void sum_columns(const General *general, uint32_t y) {
    const ResizeAxis *columns = &general->columns;
    const uint32_t channels = general->image->channels;
    const size_t bytes = value_bytes(general->image->type);
    uint8_t *out = general->out + (size_t)y * columns->to * channels * bytes;
    for (uint32_t x = 0; x < columns->to; x++) {
        for (uint32_t c = 0; c < channels; c++, out += bytes) {
            double total = 0;
            for (uint32_t k = 0; k < columns->count[x]; k++) {
                total += columns->weights[(size_t)x * columns->taps + k] *
                         general->sums[((size_t)columns->first[x] + k) * channels + c];
            }
            store(general, total, out);
        }
    }
}

Status resize_general(const ResizeImage *image, ResizeFilter filter, ImageSize to, void *out) {
    General general = {.image = image, .filter = filter, .out = out};
    Status status = general_prepare(&general, to);
    for (uint32_t y = 0; status == STATUS_OK && y < to.height; y++) {
        sum_rows(&general, y);
        sum_columns(&general, y);
    }
    memory_free(general.places);
    memory_free(general.weights);
    memory_free(general.memory);
    return status;
}
