#ifndef CGXFFCV_AUGMENT_OPS_POISON_H
#define CGXFFCV_AUGMENT_OPS_POISON_H

#include "augment/draw.h"
#include "base/status.h"

typedef struct AugmentPoison {
    AugmentPlane mask, alpha;
    AugmentSamples indices;
    AugmentLimits clamp;
} AugmentPoison;

HOST_DEVICE bool augment_poison_chosen(const AugmentPoison *op, uint64_t sample) {
    return augment_samples_contain(&op->indices, sample);
}

/* The 2e-5 makes sums that are integers except for rounding errors come out as those integers, on every machine. */
HOST_DEVICE AugmentPixel augment_poison_pixel_at(const AugmentPoison *op, size_t at, AugmentPixel pixel) {
    const double alpha = (double)op->alpha.values[at];
    for (size_t c = 0; c < AUGMENT_CHANNELS; c++) {
        const double mask = (double)op->mask.values[at * AUGMENT_CHANNELS + c];
        double value = pixel.value[c] * (1 - alpha) + mask * alpha + 2e-5;
        value = value > op->clamp.low ? value : op->clamp.low;
        pixel.value[c] = (uint8_t)(value < op->clamp.high ? value : op->clamp.high);
    }
    return pixel;
}

static inline Status augment_poison_fits(const void *parameters, AugmentSize size) {
    const AugmentPoison *op = (const AugmentPoison *)parameters;
    const AugmentSize mask = op->mask.size, alpha = op->alpha.size;
    if (mask.height == size.height && mask.width == size.width && alpha.height == size.height &&
        alpha.width == size.width) {
        return STATUS_OK;
    }
    FAIL(STATUS_ARGUMENT, "mask (%dx%d) and alpha (%dx%d) must have the size of the images, %dx%d", mask.height,
         mask.width, alpha.height, alpha.width, size.height, size.width);
}

#endif

AUGMENT_OP_POSITIONAL(poison, AugmentPoison, .name = "Poison", .number = 17, .fits = augment_poison_fits,
                      .doc = "Blends a picture into some samples, the same in every epoch and in evaluation:\n"
                             "value x (1 - alpha) + mask x alpha, clipped to the limits `clamp` and rounded down.\n\n"
                             "Args:\n"
                             "    mask: (height, width, 3), in units of 0..255.\n"
                             "    alpha: (height, width).\n"
                             "    indices: indices of the samples in the file.",
                      .parameters = {
                          AUGMENT_PARAMETER(AugmentPoison, mask, IMAGE, .required = true),
                          AUGMENT_PARAMETER(AugmentPoison, alpha, PLANE, .required = true),
                          AUGMENT_PARAMETER(AugmentPoison, indices, SAMPLES, .required = true),
                          AUGMENT_PARAMETER(AugmentPoison, clamp, LIMITS, .value = 0, .other = 255, .most = 255)})
