#ifndef CGXFFCV_AUGMENT_OPS_CROP_H
#define CGXFFCV_AUGMENT_OPS_CROP_H

#include "augment/draw.h"
#include "base/status.h"

typedef struct AugmentCrop {
    AugmentSize size;
    int32_t padding;
    AugmentFill fill;
} AugmentCrop;

/* A window fully inside the padded image; the central one in the neutral form. */
HOST_DEVICE AugmentDrawn augment_crop_draw(const AugmentCrop *op, const AugmentRandom *random, AugmentSize size) {
    const int32_t rows = size.height + 2 * op->padding - op->size.height;
    const int32_t columns = size.width + 2 * op->padding - op->size.width;
    if (random == NULL) return augment_window(rows / 2 - op->padding, columns / 2 - op->padding, op->size);
    const Philox4 words = augment_words(random);
    return augment_window((int32_t)philox_below(words.word[0], (uint32_t)rows + 1u) - op->padding,
                          (int32_t)philox_below(words.word[1], (uint32_t)columns + 1u) - op->padding, op->size);
}

static inline Status augment_crop_fits(const void *parameters, AugmentSize size) {
    const AugmentCrop *op = (const AugmentCrop *)parameters;
    const int32_t shorter = size.height < size.width ? size.height : size.width;
    if (op->fill.reflect && op->padding >= shorter) {
        FAIL(STATUS_ARGUMENT, "padding must be in 0..%d for images of %dx%d, not %d", shorter - 1, size.height,
             size.width, op->padding);
    }
    if (op->size.height <= size.height + 2 * op->padding && op->size.width <= size.width + 2 * op->padding) {
        return STATUS_OK;
    }
    FAIL(STATUS_ARGUMENT, "a crop of %dx%d does not fit into an image of %dx%d padded by %d", op->size.height,
         op->size.width, size.height, size.width, op->padding);
}

#endif

AUGMENT_OP_MOVE(crop, AugmentCrop, .name = "RandomCrop", .number = 4, .fits = augment_crop_fits,
                .doc = "Pads the image by `padding` on all sides, then cuts out a window of `size`, uniform over all\n"
                       "positions.\n\n"
                       "Args:\n"
                       "    size: side, or (height, width), in pixels.\n"
                       "    padding: in pixels; for \"reflect\", less than the shorter side.\n"
                       "    fill: content of the padding: 0..255 per channel, or \"reflect\" (mirrors the image\n"
                       "        without repeating the edge pixel).",
                .parameters = {AUGMENT_PARAMETER(AugmentCrop, size, SIZE, .required = true),
                               AUGMENT_PARAMETER(AugmentCrop, padding, PADDING),
                               AUGMENT_PARAMETER(AugmentCrop, fill, BORDER)})
