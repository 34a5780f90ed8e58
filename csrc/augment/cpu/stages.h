/* Private to augment/: the draw of one operation, and the plain path that performs the operations one by one. */
#ifndef CGXFFCV_AUGMENT_CPU_STAGES_H
#define CGXFFCV_AUGMENT_CPU_STAGES_H

#include "augment/augment.h"

/* What an operation does to one image. */
typedef struct AugmentDraw {
    bool mirror;
    bool hole;
    CropOffset offset; /* of a shift, or the hole's corner */
} AugmentDraw;

AugmentDraw augment_draw(const AugmentOp *op, CropKey key, bool evaluate, int32_t height, int32_t width);

/* "flip", "cutout"... */
const char *augment_kind_name(AugmentKind kind);

/* Scratch memory that augment_stages needs. */
size_t augment_stages_bytes(const AugmentSpec *spec);

/* Performs all operations on 0..255 units in order; the result (uint8, HWC) lies in scratch or is `pixels`. */
const uint8_t *augment_stages(const AugmentSpec *spec, const uint8_t *pixels, CropKey key, bool evaluate,
                              void *scratch);

#endif
