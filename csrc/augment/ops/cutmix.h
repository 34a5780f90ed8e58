#ifndef CGXFFCV_AUGMENT_OPS_CUTMIX_H
#define CGXFFCV_AUGMENT_OPS_CUTMIX_H

#include "augment/beta.h"

typedef struct AugmentCutmix {
    double alpha;
    bool same_lambda;
    AugmentSize size; /* for labels: of their images; unused for images */
} AugmentCutmix;

/* A rectangle with the image's aspect ratio, fully inside it, whose share of the area is about 1 - lambda. */
HOST_DEVICE AugmentDrawn augment_image_cutmix_draw(const AugmentCutmix *op, const AugmentRandom *random,
                                                   AugmentSize size) {
    if (random == NULL) return augment_amount(AUGMENT_ONE, size);
    const Philox4 words = augment_mix_words(random, op->same_lambda);
    const double side = sqrt(1 - augment_beta(words, op->alpha));
    const AugmentSize cut = {(int32_t)(side * size.height + 0.5), (int32_t)(side * size.width + 0.5)};
    AugmentDrawn drawn = augment_amount(0, cut);
    drawn.acts = cut.height > 0 && cut.width > 0;
    drawn.y = (int32_t)philox_below(words.word[2], (uint32_t)(size.height - cut.height) + 1u);
    drawn.x = (int32_t)philox_below(words.word[3], (uint32_t)(size.width - cut.width) + 1u);
    return drawn;
}

HOST_DEVICE AugmentPixel augment_image_cutmix_mix(const AugmentCutmix *op, const AugmentDrawn *drawn, AugmentPixel own,
                                                  AugmentPixel previous) {
    (void)op, (void)drawn, (void)own;
    return previous;
}

HOST_DEVICE AugmentDrawn augment_label_cutmix_draw(const AugmentCutmix *op, const AugmentRandom *random,
                                                   AugmentSize size) {
    (void)size;
    return augment_image_cutmix_draw(op, random, op->size);
}

HOST_DEVICE void augment_label_cutmix_label(const AugmentCutmix *op, const AugmentDrawn *drawn, int64_t own,
                                            int64_t previous, float *to) {
    const double whole = (double)op->size.height * op->size.width;
    to[0] = (float)own;
    to[1] = (float)previous;
    to[2] = drawn->acts ? (float)((whole - (double)drawn->height * drawn->width) / whole) : 1;
}

#endif

AUGMENT_OP_MIX(
    image_cutmix, AugmentCutmix, .name = "CutMix", .number = 16,
    .doc = "Replaces a rectangle of each image by that of the previous image in the batch (of the last one, for\n"
           "the first), fully inside and uniform over all positions. It has the image's aspect ratio and\n"
           "1 - lambda of its area, rounded to whole pixels; lambda is drawn from Beta(alpha, alpha). Source: Yun\n"
           "et al., \"CutMix\" (ICCV 2019).\n\n"
           "Args:\n"
           "    alpha: 0.001 to 1,000.\n"
           "    same_lambda: one rectangle for the whole batch, else one per image.",
    .parameters = {AUGMENT_PARAMETER(AugmentCutmix, alpha, NUMBER, .value = 1, .least = 1e-3, .most = 1e3),
                   AUGMENT_PARAMETER(AugmentCutmix, same_lambda, FLAG, .value = 1)})

AUGMENT_OP_LABEL(
    label_cutmix, AugmentCutmix, .name = "LabelCutMix", .number = 16, .columns = 3,
    .doc = "Turns integer labels (N, 1) into float32 (N, 3): the label, the previous label in the batch, and\n"
           "the share of its own pixels that the image keeps in CutMix with the same arguments.\n\n"
           "Args:\n"
           "    size: side, or (height, width), of the images at CutMix's place in their pipeline.\n"
           "    alpha: 0.001 to 1,000.\n"
           "    same_lambda: one rectangle for the whole batch, else one per image.",
    .parameters = {AUGMENT_PARAMETER(AugmentCutmix, size, SIZE, .required = true),
                   AUGMENT_PARAMETER(AugmentCutmix, alpha, NUMBER, .value = 1, .least = 1e-3, .most = 1e3),
                   AUGMENT_PARAMETER(AugmentCutmix, same_lambda, FLAG, .value = 1)})
