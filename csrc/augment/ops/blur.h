#ifndef CGXFFCV_AUGMENT_OPS_BLUR_H
#define CGXFFCV_AUGMENT_OPS_BLUR_H

#include <math.h>

#include "augment/draw.h"
#include "base/status.h"

typedef struct AugmentBlur {
    int32_t kernel_size; /* odd */
    AugmentLimits sigma;
    double p;
} AugmentBlur;

/* The amount is the standard deviation, in units of 1 / AUGMENT_ONE, plus AUGMENT_ONE. */
HOST_DEVICE AugmentDrawn augment_blur_draw(const AugmentBlur *op, const AugmentRandom *random, AugmentSize size) {
    AugmentDrawn drawn = augment_amount(AUGMENT_ONE, size);
    if (random == NULL) return drawn;
    const Philox4 words = augment_words(random);
    if (!augment_happens(words.word[0], op->p)) return drawn;
    const double sigma = augment_between(words.word[1], op->sigma.low, op->sigma.high);
    return augment_amount(AUGMENT_ONE + 1u + (uint32_t)(sigma * AUGMENT_ONE), size);
}

/* Weights are multiples of 1 / AUGMENT_ONE that add up to 1, so machines can differ only if a weight is within 1e-10 of
 * the middle between two multiples. */
HOST_DEVICE int32_t augment_blur_taps(const AugmentBlur *op, const AugmentDrawn *drawn, uint32_t *weights) {
    const int32_t radius = op->kernel_size / 2;
    const double sigma = (double)(drawn->amount - AUGMENT_ONE) / AUGMENT_ONE;
    double total = 1;
    uint32_t rest = 0;
    for (int32_t i = 1; i <= radius; i++) total += 2 * exp(-0.5 * i * i / (sigma * sigma));
    for (int32_t i = 1; i <= radius; i++) {
        weights[i] = (uint32_t)(exp(-0.5 * i * i / (sigma * sigma)) / total * AUGMENT_ONE + 0.5);
        rest += 2 * weights[i];
    }
    weights[0] = AUGMENT_ONE - rest;
    return radius;
}

static inline Status augment_blur_fits(const void *parameters, AugmentSize size) {
    const AugmentBlur *op = (const AugmentBlur *)parameters;
    const int32_t shorter = size.height < size.width ? size.height : size.width;
    if (op->kernel_size / 2 < shorter) return STATUS_OK;
    FAIL(STATUS_ARGUMENT, "a kernel of %d needs images with sides of at least %d pixels, not %dx%d", op->kernel_size,
         op->kernel_size / 2 + 1, size.height, size.width);
}

#endif

AUGMENT_OP_LOCAL(
    blur, AugmentBlur, .name = "GaussianBlur", .number = 15, .fits = augment_blur_fits,
    .doc = "With probability `p` blurs an image with a Gaussian whose standard deviation is uniform in `sigma`;\n"
           "at the edges the image is mirrored without repeating the edge pixel. Sums are rounded to nearest:\n"
           "along the rows to 1 / 256, then along the columns to whole values.\n\n"
           "Args:\n"
           "    kernel_size: size of the kernel in both directions, in pixels: odd, 1 to 31.\n"
           "    sigma: limits of the standard deviation, in pixels.",
    .parameters = {AUGMENT_PARAMETER(AugmentBlur, kernel_size, ODD, .required = true, .least = 1, .most = 31),
                   AUGMENT_PARAMETER(AugmentBlur, sigma, LIMITS, .value = 0.1, .other = 2, .least = 1e-2, .most = 100),
                   AUGMENT_PARAMETER(AugmentBlur, p, NUMBER, .value = 0.5, .most = 1)})
