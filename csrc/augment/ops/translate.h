#ifndef CGXFFCV_AUGMENT_OPS_TRANSLATE_H
#define CGXFFCV_AUGMENT_OPS_TRANSLATE_H

#include "augment/draw.h"

typedef struct AugmentTranslate {
    int32_t padding;
    AugmentFill fill;
} AugmentTranslate;

HOST_DEVICE AugmentDrawn augment_translate_draw(const AugmentTranslate *op, const AugmentRandom *random,
                                                AugmentSize size) {
    if (random == NULL) return augment_window(0, 0, size);
    const Philox4 words = augment_words(random);
    const uint32_t choices = 2u * (uint32_t)op->padding + 1u;
    return augment_window((int32_t)philox_below(words.word[0], choices) - op->padding,
                          (int32_t)philox_below(words.word[1], choices) - op->padding, size);
}

#endif

AUGMENT_OP_MOVE(translate, AugmentTranslate, .name = "RandomTranslate", .number = 3,
                .doc = "Shifts the image by whole pixels, uniform in -padding..padding in both directions; uncovered\n"
                       "pixels are set to `fill` (0..255 per channel).",
                .parameters = {AUGMENT_PARAMETER(AugmentTranslate, padding, PADDING, .required = true),
                               AUGMENT_PARAMETER(AugmentTranslate, fill, RGB)})
