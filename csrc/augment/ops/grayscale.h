#ifndef CGXFFCV_AUGMENT_OPS_GRAYSCALE_H
#define CGXFFCV_AUGMENT_OPS_GRAYSCALE_H

#include "augment/draw.h"

typedef struct AugmentGrayscale {
    double p;
} AugmentGrayscale;

HOST_DEVICE AugmentDrawn augment_grayscale_draw(const AugmentGrayscale *op, const AugmentRandom *random,
                                                AugmentSize size) {
    const bool acts = random != NULL && augment_happens(augment_words(random).word[0], op->p);
    return augment_amount(acts ? 0 : AUGMENT_ONE, size);
}

HOST_DEVICE AugmentPixel augment_grayscale_pixel(const AugmentGrayscale *op, const AugmentDrawn *drawn,
                                                 AugmentPixel pixel) {
    const uint8_t grey = (uint8_t)augment_grey(pixel);
    (void)op, (void)drawn;
    for (int c = 0; c < AUGMENT_CHANNELS; c++) pixel.value[c] = grey;
    return pixel;
}

#endif

AUGMENT_OP_COLOUR(grayscale, AugmentGrayscale, .name = "RandomGrayscale", .number = 12, .other = AUGMENT_GREY,
                  .doc = "With probability `p` sets all three channels of an image to 0.2989 R + 0.587 G + 0.114 B,\n"
                         "rounded down.",
                  .parameters = {AUGMENT_PARAMETER(AugmentGrayscale, p, NUMBER, .value = 0.1, .most = 1)})
