#ifndef CGXFFCV_AUGMENT_OPS_MIXUP_H
#define CGXFFCV_AUGMENT_OPS_MIXUP_H

#include "augment/beta.h"

typedef struct AugmentMixup {
    double alpha;
    bool same_lambda;
} AugmentMixup;

/* The share of an image's own pixels, and of its own label. Steps are so coarse that machines can differ only if a
 * share is within 1e-10 of the middle between two steps. */
HOST_DEVICE AugmentDrawn augment_image_mixup_draw(const AugmentMixup *op, const AugmentRandom *random,
                                                  AugmentSize size) {
    if (random == NULL) return augment_amount(AUGMENT_ONE, size);
    return augment_amount(
        (uint32_t)(augment_beta(augment_mix_words(random, op->same_lambda), op->alpha) * AUGMENT_ONE + 0.5), size);
}

HOST_DEVICE AugmentPixel augment_image_mixup_mix(const AugmentMixup *op, const AugmentDrawn *drawn, AugmentPixel own,
                                                 AugmentPixel previous) {
    const uint32_t rest = AUGMENT_ONE - drawn->amount;
    (void)op;
    for (int c = 0; c < AUGMENT_CHANNELS; c++) {
        own.value[c] = (uint8_t)((own.value[c] * drawn->amount + previous.value[c] * rest) / AUGMENT_ONE);
    }
    return own;
}

HOST_DEVICE AugmentDrawn augment_label_mixup_draw(const AugmentMixup *op, const AugmentRandom *random,
                                                  AugmentSize size) {
    return augment_image_mixup_draw(op, random, size);
}

HOST_DEVICE void augment_label_mixup_label(const AugmentMixup *op, const AugmentDrawn *drawn, int64_t own,
                                           int64_t previous, float *to) {
    (void)op;
    to[0] = (float)own;
    to[1] = (float)previous;
    to[2] = (float)drawn->amount / AUGMENT_ONE;
}

#endif

AUGMENT_OP_MIX(image_mixup, AugmentMixup, .name = "ImageMixup", .number = 7,
               .doc = "Mixes each image with the previous one in the batch (the first with the last):\n"
                      "lambda x own + (1 - lambda) x previous, rounded down. Lambda is drawn from Beta(alpha, alpha),\n"
                      "in steps of 1 / 65,536.\n\n"
                      "Args:\n"
                      "    alpha: 0.001 to 1,000.\n"
                      "    same_lambda: one lambda for the whole batch, else one per image.",
               .parameters = {
                   AUGMENT_PARAMETER(AugmentMixup, alpha, NUMBER, .required = true, .least = 1e-3, .most = 1e3),
                   AUGMENT_PARAMETER(AugmentMixup, same_lambda, FLAG, .required = true)})

AUGMENT_OP_LABEL(label_mixup, AugmentMixup, .name = "LabelMixup", .number = 7, .columns = 3,
                 .doc = "Turns integer labels (N, 1) into float32 (N, 3): the label, the previous label in the batch,\n"
                        "and the lambda that ImageMixup with the same arguments draws for it.\n\n"
                        "Args:\n"
                        "    alpha: 0.001 to 1,000.\n"
                        "    same_lambda: one lambda for the whole batch, else one per label.",
                 .parameters = {
                     AUGMENT_PARAMETER(AugmentMixup, alpha, NUMBER, .required = true, .least = 1e-3, .most = 1e3),
                     AUGMENT_PARAMETER(AugmentMixup, same_lambda, FLAG, .required = true)})
