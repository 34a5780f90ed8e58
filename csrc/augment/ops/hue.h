#ifndef CGXFFCV_AUGMENT_OPS_HUE_H
#define CGXFFCV_AUGMENT_OPS_HUE_H

#include "augment/draw.h"

/* The amount is AUGMENT_ONE plus the share of a full turn. */
HOST_DEVICE AugmentDrawn augment_hue_draw(const AugmentJitter *op, const AugmentRandom *random, AugmentSize size) {
    if (random == NULL) return augment_amount(AUGMENT_ONE, size);
    const Philox4 words = augment_words(random);
    const uint32_t most = (uint32_t)(op->magnitude * AUGMENT_ONE);
    if (!augment_happens(words.word[0], op->p)) return augment_amount(AUGMENT_ONE, size);
    return augment_amount(AUGMENT_ONE - most + philox_below(words.word[1], 2 * most + 1), size);
}

/* In sixths of a turn from red, in units of 1 / AUGMENT_ONE; `range` is the largest value minus the smallest. */
HOST_DEVICE uint32_t augment_hue_of(AugmentPixel pixel, uint32_t largest, uint32_t range) {
    const uint32_t r = pixel.value[0], g = pixel.value[1], b = pixel.value[2];
    if (r == largest) return (6 * range + g - b) * AUGMENT_ONE / range % (6 * AUGMENT_ONE);
    if (g == largest) return (2 * range + b - r) * AUGMENT_ONE / range;
    return (4 * range + r - g) * AUGMENT_ONE / range;
}

/* In HSV, the largest and the smallest value stay; the hue determines which channels have them, and where the third one
 * is between them. */
HOST_DEVICE AugmentPixel augment_hue_pixel(const AugmentJitter *op, const AugmentDrawn *drawn, AugmentPixel pixel) {
    const uint8_t *v = pixel.value;
    const uint32_t largest = v[0] > v[1] ? (v[0] > v[2] ? v[0] : v[2]) : (v[1] > v[2] ? v[1] : v[2]);
    const uint32_t smallest = v[0] < v[1] ? (v[0] < v[2] ? v[0] : v[2]) : (v[1] < v[2] ? v[1] : v[2]);
    const uint32_t range = largest - smallest;
    (void)op;
    if (range == 0) return pixel;
    const uint32_t hue = (augment_hue_of(pixel, largest, range) + 6 * drawn->amount) % (6 * AUGMENT_ONE);
    const uint32_t sixth = hue / AUGMENT_ONE, part = (range * (hue % AUGMENT_ONE) + AUGMENT_ONE / 2) / AUGMENT_ONE;
    const uint32_t third = sixth % 2 == 0 ? smallest + part : largest - part;
    const uint32_t at_largest = (sixth + 1) / 2 % 3, at_smallest = (sixth / 2 + 2) % 3;
    for (uint32_t c = 0; c < AUGMENT_CHANNELS; c++) {
        pixel.value[c] = (uint8_t)(c == at_largest ? largest : c == at_smallest ? smallest : third);
    }
    return pixel;
}

#endif

AUGMENT_OP_COLOUR(hue, AugmentJitter, .name = "RandomHue", .number = 11, .other = AUGMENT_ROTATE_HUE,
                  .doc = "With probability `p` rotates the hue (HSV) of an image by a fraction of a full turn that is\n"
                         "uniform in -magnitude..magnitude; each pixel keeps its largest and smallest value.",
                  .parameters = {AUGMENT_PARAMETER(AugmentJitter, magnitude, NUMBER, .required = true, .most = 0.5),
                                 AUGMENT_PARAMETER(AugmentJitter, p, NUMBER, .value = 0.5, .most = 1)})
