/* Pixels from other places, from their neighbours, and through tables made from the image's histograms. The image is
 * copied to scratch memory if it must be read after it has been overwritten. */
#include "augment/cpu/whole.h"

#include <string.h>

static size_t pixels_of(AugmentSize size) { return (size_t)size.height * (size_t)size.width; }

/* The copy, and sums of three values of a column. */
size_t augment_whole_bytes(AugmentSize size) {
    const size_t copy = (pixels_of(size) * sizeof(AugmentPixel) + 3) & ~(size_t)3;
    return copy + (size_t)size.width * AUGMENT_CHANNELS * sizeof(uint16_t);
}

void augment_whole_warp(const AugmentOp *op, const AugmentDrawn *drawn, AugmentSize size, AugmentPixel *pixels,
                        void *scratch) {
    AugmentPixel fill = {{0}};
    const AugmentFill *filled = augment_op_fill(op);
    const AugmentPixel *copy = scratch;
    for (int c = 0; filled != NULL && c < AUGMENT_CHANNELS; c++) fill.value[c] = (uint8_t)filled->colour[c];
    memcpy(scratch, pixels, pixels_of(size) * sizeof *pixels);
    for (int32_t y = 0; y < size.height; y++) {
        for (int32_t x = 0; x < size.width; x++, pixels++) {
            int32_t row = y, column = x;
            const bool inside = augment_warp(drawn, size, &row, &column);
            *pixels = inside ? copy[(size_t)row * (size_t)size.width + (size_t)column] : fill;
        }
    }
}

static void sum_columns(const uint8_t *above, const uint8_t *own, const uint8_t *below, size_t values, uint16_t *sums) {
    for (size_t i = 0; i < values; i++) sums[i] = (uint16_t)(above[i] + own[i] + below[i]);
}

void augment_whole_box(const AugmentOp *op, const AugmentDrawn *drawn, AugmentSize size, AugmentPixel *pixels,
                       void *scratch) {
    const size_t values = (size_t)size.width * AUGMENT_CHANNELS, bytes = pixels_of(size) * sizeof *pixels;
    const uint8_t *copy = scratch;
    uint16_t *columns = (uint16_t *)(void *)((unsigned char *)scratch + ((bytes + 3) & ~(size_t)3));
    memcpy(scratch, pixels, bytes);
    for (int32_t y = 1; y < size.height - 1; y++) {
        const uint8_t *row = copy + (size_t)y * values;
        sum_columns(row - values, row, row + values, values, columns);
        for (int32_t x = 1; x < size.width - 1; x++) {
            const uint16_t *at = columns + (size_t)x * AUGMENT_CHANNELS;
            AugmentPixel *pixel = &pixels[(size_t)y * (size_t)size.width + (size_t)x];
            uint32_t sums[AUGMENT_CHANNELS];
            for (int c = 0; c < AUGMENT_CHANNELS; c++) {
                sums[c] = (uint32_t)at[c - AUGMENT_CHANNELS] + at[c] + at[c + AUGMENT_CHANNELS];
            }
            *pixel = augment_op_box(op, drawn, *pixel, sums);
        }
    }
}

void augment_whole_histogram(const AugmentOp *op, const AugmentDrawn *drawn, AugmentSize size, AugmentPixel *pixels) {
    const size_t count = pixels_of(size);
    uint32_t counts[AUGMENT_CHANNELS][AUGMENT_LEVELS] = {{0}};
    uint8_t tables[AUGMENT_CHANNELS][AUGMENT_LEVELS];
    for (size_t i = 0; i < count; i++) {
        for (int c = 0; c < AUGMENT_CHANNELS; c++) counts[c][pixels[i].value[c]]++;
    }
    for (int c = 0; c < AUGMENT_CHANNELS; c++) augment_op_table(op, drawn, counts[c], tables[c]);
    for (size_t i = 0; i < count; i++) {
        for (int c = 0; c < AUGMENT_CHANNELS; c++) pixels[i].value[c] = tables[c][pixels[i].value[c]];
    }
}
