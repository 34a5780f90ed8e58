#ifndef CGXFFCV_AUGMENT_OPS_CONTRAST_H
#define CGXFFCV_AUGMENT_OPS_CONTRAST_H

#include "augment/draw.h"

HOST_DEVICE AugmentDrawn augment_contrast_draw(const AugmentJitter *op, const AugmentRandom *random, AugmentSize size) {
    return augment_factor(op, random, size);
}

HOST_DEVICE AugmentPixel augment_contrast_pixel(const AugmentJitter *op, const AugmentDrawn *drawn,
                                                AugmentPixel pixel) {
    (void)op;
    for (int c = 0; c < AUGMENT_CHANNELS; c++) {
        pixel.value[c] = augment_blend(drawn->amount, pixel.value[c], drawn->mean);
    }
    return pixel;
}

#endif

AUGMENT_OP_COLOUR(contrast, AugmentJitter, .name = "RandomContrast", .number = 9, .mean = true, .levels = true,
                  .other = AUGMENT_MEAN,
                  .doc = "With probability `p` moves an image away from its mean grey, or towards it:\n"
                         "factor x value + (1 - factor) x mean, clipped to 0..255 and rounded down. The factor is\n"
                         "uniform in max(0, 1 - magnitude)..1 + magnitude; grey is 0.2989 R + 0.587 G + 0.114 B,\n"
                         "rounded down. Images with one channel are grey. Other types as in RandomBrightness.",
                  .parameters = {AUGMENT_PARAMETER(AugmentJitter, magnitude, NUMBER, .required = true, .most = 100),
                                 AUGMENT_PARAMETER(AugmentJitter, p, NUMBER, .value = 0.5, .most = 1)})
