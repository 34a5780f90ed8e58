#ifndef CGXFFCV_AUGMENT_OPS_FLIP_H
#define CGXFFCV_AUGMENT_OPS_FLIP_H

#include "augment/draw.h"

typedef struct AugmentFlip {
    double flip_prob; /* to 24 bits */
} AugmentFlip;

HOST_DEVICE AugmentDrawn augment_flip_draw(const AugmentFlip *op, const AugmentRandom *random, AugmentSize size) {
    return augment_mirror(random != NULL && augment_happens(augment_words(random).word[0], op->flip_prob), size);
}

#endif

AUGMENT_OP_MOVE(flip, AugmentFlip, .name = "RandomHorizontalFlip", .number = 1,
                .doc = "Mirrors the image left to right with probability `flip_prob`.",
                .parameters = {AUGMENT_PARAMETER(AugmentFlip, flip_prob, NUMBER, .value = 0.5, .most = 1)})
