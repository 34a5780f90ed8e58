#ifndef CGXFFCV_AUGMENT_OPS_ERASING_H
#define CGXFFCV_AUGMENT_OPS_ERASING_H

#include "augment/rectangle.h"

typedef struct AugmentErasing {
    double p;
    AugmentLimits scale, ratio;
    AugmentFill fill;
} AugmentErasing;

/* The first word of the image's stream decides whether; attempts count from 1. */
HOST_DEVICE AugmentDrawn augment_erasing_draw(const AugmentErasing *op, const AugmentRandom *random, AugmentSize size) {
    const AugmentDrawn none = augment_hole(false, 0, 0, size);
    if (random == NULL || !augment_happens(augment_words(random).word[0], op->p)) return none;
    for (uint32_t attempt = 1; attempt <= AUGMENT_RECTANGLE_TRIES; attempt++) {
        AugmentRectangle found;
        if (!augment_rectangle(augment_try_words(random, attempt), &op->scale, &op->ratio, size, &found)) continue;
        return augment_hole(true, found.y, found.x, found.size);
    }
    return none;
}

#endif

AUGMENT_OP_FILL(erasing, AugmentErasing, .name = "RandomErasing", .number = 14,
                .doc = "With probability `p` fills a rectangle fully inside the image.\n\n"
                       "Args:\n"
                       "    scale: limits of its share of the image's area.\n"
                       "    ratio: limits of its width divided by its height; the logarithm is uniform.\n"
                       "    fill: in the units of its place in the pipeline, like Cutout's.\n\n"
                       "If none of ten random rectangles fits, nothing is filled.",
                .parameters = {
                    AUGMENT_PARAMETER(AugmentErasing, p, NUMBER, .value = 0.5, .most = 1),
                    AUGMENT_PARAMETER(AugmentErasing, scale, LIMITS, .value = 0.02, .other = 0.33, .most = 1),
                    AUGMENT_PARAMETER(AugmentErasing, ratio, LIMITS, .value = 0.3, .other = 3.3, .least = 1e-3,
                                      .most = 1e3),
                    AUGMENT_PARAMETER(AugmentErasing, fill, RGB)})
