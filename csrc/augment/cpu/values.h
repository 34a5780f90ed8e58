/* Private to augment/: the formulas of operations on images with any channels, for each value type. Integers are exact:
 * the formulas are those of ops/, in 64 bits. Floats are computed in float64 and rounded once, or for a blur once per
 * pass; they are not clamped. */
#ifndef CGXFFCV_AUGMENT_CPU_VALUES_H
#define CGXFFCV_AUGMENT_CPU_VALUES_H

#include "augment/operation.h"

/* Values of an image: `pixels` times `channels`, aligned to their size. */
typedef struct AugmentValues {
    void *data; /* borrowed */
    size_t pixels;
    int32_t channels;
} AugmentValues;

typedef struct AugmentValueKernels {
    /* Blends values with `other` (AugmentEntry.other) by the drawn factor. */
    void (*colour)(AugmentOther other, uint32_t amount, const AugmentValues *image);
    /* Mixes `count` values of one image with those of another, at the same places. */
    void (*mix)(uint32_t amount, const void *own, const void *previous, size_t count, void *to);
    /* In place. */
    void (*blur)(const AugmentValues *image, AugmentSize size, const uint32_t *weights, int32_t radius, void *scratch);
    double (*load)(const void *value);
} AugmentValueKernels;

/* Scratch memory of a blur for rows of that many values, in bytes, aligned to 8. */
size_t augment_values_blur_bytes(size_t values);

/* For IMAGE_U8, IMAGE_U16, IMAGE_F32. */
const AugmentValueKernels *augment_value_kernels(ImageType type);

#endif
