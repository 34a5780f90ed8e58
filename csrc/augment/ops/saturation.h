#ifndef CGXFFCV_AUGMENT_OPS_SATURATION_H
#define CGXFFCV_AUGMENT_OPS_SATURATION_H

#include "augment/draw.h"

HOST_DEVICE AugmentDrawn augment_saturation_draw(const AugmentJitter *op, const AugmentRandom *random,
                                                 AugmentSize size) {
    return augment_factor(op, random, size);
}

HOST_DEVICE AugmentPixel augment_saturation_pixel(const AugmentJitter *op, const AugmentDrawn *drawn,
                                                  AugmentPixel pixel) {
    const int32_t factor = (int32_t)drawn->amount; /* at most 101 x AUGMENT_ONE, so that the products fit 32 bits */
    const int32_t rest = (AUGMENT_ONE - factor) * (int32_t)augment_grey(pixel);
    (void)op;
    for (int c = 0; c < AUGMENT_CHANNELS; c++) {
        const int32_t sum = factor * pixel.value[c] + rest, whole = sum < 0 ? 0 : sum / AUGMENT_ONE;
        pixel.value[c] = (uint8_t)(whole < 255 ? whole : 255);
    }
    return pixel;
}

#endif

AUGMENT_OP_COLOUR(saturation, AugmentJitter, .name = "RandomSaturation", .number = 10, .other = AUGMENT_GREY,
                  .doc = "With probability `p` moves each pixel away from its grey, or towards it:\n"
                         "factor x value + (1 - factor) x grey, clipped to 0..255 and rounded down. The factor is\n"
                         "uniform in max(0, 1 - magnitude)..1 + magnitude; grey is 0.2989 R + 0.587 G + 0.114 B,\n"
                         "rounded down. Other types as in RandomBrightness.",
                  .parameters = {AUGMENT_PARAMETER(AugmentJitter, magnitude, NUMBER, .required = true, .most = 100),
                                 AUGMENT_PARAMETER(AugmentJitter, p, NUMBER, .value = 0.5, .most = 1)})
