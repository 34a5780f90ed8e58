#ifndef CGXFFCV_AUGMENT_OPS_SOLARIZATION_H
#define CGXFFCV_AUGMENT_OPS_SOLARIZATION_H

#include "augment/draw.h"

typedef struct AugmentSolarization {
    double threshold, p;
} AugmentSolarization;

HOST_DEVICE AugmentDrawn augment_solarization_draw(const AugmentSolarization *op, const AugmentRandom *random,
                                                   AugmentSize size) {
    const bool acts = random != NULL && augment_happens(augment_words(random).word[0], op->p);
    return augment_amount(acts ? 0 : AUGMENT_ONE, size);
}

HOST_DEVICE AugmentPixel augment_solarization_pixel(const AugmentSolarization *op, const AugmentDrawn *drawn,
                                                    AugmentPixel pixel) {
    (void)drawn;
    for (int c = 0; c < AUGMENT_CHANNELS; c++) {
        if (pixel.value[c] >= op->threshold) pixel.value[c] = (uint8_t)(255 - pixel.value[c]);
    }
    return pixel;
}

#endif

AUGMENT_OP_COLOUR(solarization, AugmentSolarization, .name = "Solarization", .number = 13, .levels = true,
                  .doc = "With probability `p` inverts all values of an image that are at least `threshold`.",
                  .parameters = {AUGMENT_PARAMETER(AugmentSolarization, threshold, NUMBER, .value = 128, .most = 256),
                                 AUGMENT_PARAMETER(AugmentSolarization, p, NUMBER, .value = 0.5, .most = 1)})
