#ifndef CGXFFCV_AUGMENT_OPS_ALTERNATE_H
#define CGXFFCV_AUGMENT_OPS_ALTERNATE_H

#include "augment/draw.h"

typedef struct AugmentAlternate {
    int none;
} AugmentAlternate;

/* A bit fixed for the run, xor the epoch's parity: each image is seen both ways in any two successive epochs. */
HOST_DEVICE AugmentDrawn augment_alternate_draw(const AugmentAlternate *op, const AugmentRandom *random,
                                                AugmentSize size) {
    (void)op;
    return augment_mirror(random != NULL && ((augment_lasting_words(random).word[0] >> 31) ^ (random->key->epoch & 1u)),
                          size);
}

#endif

AUGMENT_OP_MOVE(alternate, AugmentAlternate, .name = "AlternatingFlip", .number = 2,
                .doc = "Mirrors each image in every other epoch: images whose random bit (fixed by the seed) is 0 in\n"
                       "odd epochs, the others in even epochs. Source: Jordan, \"94% on CIFAR-10 in 3.29 Seconds on a\n"
                       "Single GPU\" (2024), section 3.6.")
