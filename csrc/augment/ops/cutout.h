#ifndef CGXFFCV_AUGMENT_OPS_CUTOUT_H
#define CGXFFCV_AUGMENT_OPS_CUTOUT_H

#include "augment/draw.h"
#include "base/status.h"

typedef struct AugmentCutout {
    AugmentSize crop_size;
    AugmentFill fill;
} AugmentCutout;

HOST_DEVICE AugmentDrawn augment_cutout_draw(const AugmentCutout *op, const AugmentRandom *random, AugmentSize size) {
    if (random == NULL) return augment_hole(false, 0, 0, op->crop_size);
    const Philox4 words = augment_words(random);
    return augment_hole(true, (int32_t)philox_below(words.word[0], (uint32_t)(size.height - op->crop_size.height) + 1u),
                        (int32_t)philox_below(words.word[1], (uint32_t)(size.width - op->crop_size.width) + 1u),
                        op->crop_size);
}

static inline Status augment_cutout_fits(const void *parameters, AugmentSize size) {
    const AugmentCutout *op = (const AugmentCutout *)parameters;
    if (op->crop_size.height <= size.height && op->crop_size.width <= size.width) return STATUS_OK;
    FAIL(STATUS_ARGUMENT, "a hole of %dx%d does not fit into an image of %dx%d", op->crop_size.height,
         op->crop_size.width, size.height, size.width);
}

#endif

AUGMENT_OP_FILL(cutout, AugmentCutout, .name = "Cutout", .number = 5, .fits = augment_cutout_fits,
                .doc = "Fills a hole of `crop_size` (side, or (height, width)), fully inside the image and uniform\n"
                       "over all positions.\n\n"
                       "`fill` is in the units of its place in the pipeline: 0..255 before NormalizeImage, normalised\n"
                       "after it.",
                .parameters = {AUGMENT_PARAMETER(AugmentCutout, crop_size, SIZE, .required = true),
                               AUGMENT_PARAMETER(AugmentCutout, fill, RGB)})
