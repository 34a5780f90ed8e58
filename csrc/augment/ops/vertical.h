#ifndef CGXFFCV_AUGMENT_OPS_VERTICAL_H
#define CGXFFCV_AUGMENT_OPS_VERTICAL_H

#include "augment/draw.h"

typedef struct AugmentVertical {
    double flip_prob; /* to 24 bits */
} AugmentVertical;

HOST_DEVICE AugmentDrawn augment_vertical_draw(const AugmentVertical *op, const AugmentRandom *random,
                                               AugmentSize size) {
    return augment_flip_vertically(random != NULL && augment_happens(augment_words(random).word[0], op->flip_prob),
                                   size);
}

#endif

AUGMENT_OP_MOVE(vertical, AugmentVertical, .name = "RandomVerticalFlip", .number = 8,
                .doc = "Mirrors the image top to bottom with probability `flip_prob`.",
                .parameters = {AUGMENT_PARAMETER(AugmentVertical, flip_prob, NUMBER, .value = 0.5, .most = 1)})
