#ifndef CGXFFCV_AUGMENT_OPS_BRIGHTNESS_H
#define CGXFFCV_AUGMENT_OPS_BRIGHTNESS_H

#include "augment/draw.h"

typedef struct AugmentBrightness {
    double magnitude, p;
} AugmentBrightness;

HOST_DEVICE AugmentDrawn augment_brightness_draw(const AugmentBrightness *op, const AugmentRandom *random,
                                                 AugmentSize size) {
    return augment_factor(random, op->magnitude, op->p, size);
}

HOST_DEVICE AugmentPixel augment_brightness_pixel(const AugmentBrightness *op, const AugmentDrawn *drawn,
                                                  AugmentPixel pixel) {
    (void)op;
    for (int c = 0; c < AUGMENT_CHANNELS; c++) {
        const uint32_t value = pixel.value[c] * drawn->amount / AUGMENT_ONE;
        pixel.value[c] = (uint8_t)(value < 255 ? value : 255);
    }
    return pixel;
}

#endif

AUGMENT_OP_COLOUR(brightness, AugmentBrightness, .name = "RandomBrightness", .number = 6, .levels = true,
                  .other = AUGMENT_BLACK,
                  .doc = "With probability `p` multiplies each image by a factor that is uniform in\n"
                         "max(0, 1 - magnitude)..1 + magnitude, cut off at 255 (65,535 of uint16) and rounded down;\n"
                         "float32 is neither cut off nor made whole.",
                  .parameters = {AUGMENT_PARAMETER(AugmentBrightness, magnitude, NUMBER, .required = true, .most = 100),
                                 AUGMENT_PARAMETER(AugmentBrightness, p, NUMBER, .value = 0.5, .most = 1)})
