#ifndef CGXFFCV_AUGMENT_OPS_BRIGHTNESS_H
#define CGXFFCV_AUGMENT_OPS_BRIGHTNESS_H

#include "augment/draw.h"

HOST_DEVICE AugmentDrawn augment_brightness_draw(const AugmentJitter *op, const AugmentRandom *random,
                                                 AugmentSize size) {
    return augment_factor(op, random, size);
}

HOST_DEVICE AugmentPixel augment_brightness_pixel(const AugmentJitter *op, const AugmentDrawn *drawn,
                                                  AugmentPixel pixel) {
    (void)op;
    for (int c = 0; c < AUGMENT_CHANNELS; c++) {
        const uint32_t value = pixel.value[c] * drawn->amount / AUGMENT_ONE;
        pixel.value[c] = (uint8_t)(value < 255 ? value : 255);
    }
    return pixel;
}

#endif

AUGMENT_OP_COLOUR(brightness, AugmentJitter, .name = "RandomBrightness", .number = 6, .levels = true,
                  .other = AUGMENT_BLACK,
                  .doc = "With probability `p` multiplies an image by a factor that is uniform in\n"
                         "max(0, 1 - magnitude)..1 + magnitude. Values are clipped to 255 (65,535 for uint16) and\n"
                         "rounded down; float32 is neither clipped nor rounded.",
                  .parameters = {AUGMENT_PARAMETER(AugmentJitter, magnitude, NUMBER, .required = true, .most = 100),
                                 AUGMENT_PARAMETER(AugmentJitter, p, NUMBER, .value = 0.5, .most = 1)})
