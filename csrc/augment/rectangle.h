/* Random rectangles within an image: the share of its area and the logarithm of the ratio of width to height are
 * uniform, as in torchvision's RandomResizedCrop and RandomErasing. Sides are rounded to integers, so machines can
 * differ only if a side is within 1e-10 of a half. */
#ifndef CGXFFCV_AUGMENT_RECTANGLE_H
#define CGXFFCV_AUGMENT_RECTANGLE_H

#include <math.h>

#include "augment/draw.h"

#define AUGMENT_RECTANGLE_TRIES 10u

typedef struct AugmentRectangle {
    int32_t y, x;
    AugmentSize size;
} AugmentRectangle;

/* One attempt; false if the drawn rectangle does not fit into `size`. */
HOST_DEVICE bool augment_rectangle(Philox4 words, const AugmentLimits *scale, const AugmentLimits *ratio,
                                   AugmentSize size, AugmentRectangle *to) {
    const double area = (double)size.height * size.width * augment_between(words.word[0], scale->low, scale->high);
    const double shape = exp(augment_between(words.word[1], log(ratio->low), log(ratio->high)));
    const double width = nearbyint(sqrt(area * shape)), height = nearbyint(sqrt(area / shape));
    if (width < 1 || width > size.width || height < 1 || height > size.height) return false;
    to->size.height = (int32_t)height;
    to->size.width = (int32_t)width;
    to->y = (int32_t)philox_below(words.word[2], (uint32_t)(size.height - to->size.height) + 1u);
    to->x = (int32_t)philox_below(words.word[3], (uint32_t)(size.width - to->size.width) + 1u);
    return true;
}

#endif
