#ifndef CGXFFCV_AUGMENT_OPS_RANDAUGMENT_H
#define CGXFFCV_AUGMENT_OPS_RANDAUGMENT_H

#include <math.h>

#include "augment/draw.h"
#include "base/status.h"

/* "RandAugment: practical automated data augmentation with a reduced search space" (Cubuk et al., 2019), with
 * torchvision's fourteen changes and their ranges. A round has four parts, one per kind of formula; they all make the
 * same draw, and at most one of them acts. */
typedef struct AugmentRandAugment {
    int32_t num_ops, magnitude, num_magnitude_bins;
    AugmentFill fill;
} AugmentRandAugment;

typedef enum AugmentRandChange {
    AUGMENT_RAND_IDENTITY,
    AUGMENT_RAND_SHEAR_X,
    AUGMENT_RAND_SHEAR_Y,
    AUGMENT_RAND_TRANSLATE_X,
    AUGMENT_RAND_TRANSLATE_Y,
    AUGMENT_RAND_ROTATE,
    AUGMENT_RAND_BRIGHTNESS,
    AUGMENT_RAND_COLOUR,
    AUGMENT_RAND_CONTRAST,
    AUGMENT_RAND_SHARPNESS,
    AUGMENT_RAND_POSTERIZE,
    AUGMENT_RAND_SOLARIZE,
    AUGMENT_RAND_AUTOCONTRAST,
    AUGMENT_RAND_EQUALIZE,
    AUGMENT_RAND_CHANGES
} AugmentRandChange;

/* The round's change, and the direction of a change that has two. */
HOST_DEVICE AugmentRandChange augment_rand_change(const AugmentRandom *random, int32_t *sign) {
    *sign = 1;
    if (random == NULL) return AUGMENT_RAND_IDENTITY;
    const Philox4 words = augment_words(random);
    if (words.word[1] >> 31) *sign = -1;
    return (AugmentRandChange)philox_below(words.word[0], AUGMENT_RAND_CHANGES);
}

/* The number of steps from no change to the largest; `magnitude` is in these steps. */
HOST_DEVICE int64_t augment_rand_steps(const AugmentRandAugment *op) { return op->num_magnitude_bins - 1; }

HOST_DEVICE void augment_rand_rotate(const AugmentRandAugment *op, int32_t sign, AugmentSize size,
                                     AugmentDrawn *drawn) {
    const double angle = 0.5235987755982988 * op->magnitude / (double)augment_rand_steps(op); /* 30 degrees */
    const int32_t sine = sign * (int32_t)(sin(angle) * AUGMENT_ONE + 0.5);
    const int32_t cosine = (int32_t)(cos(angle) * AUGMENT_ONE + 0.5);
    drawn->height = size.height; /* about the image's centre */
    drawn->width = size.width;
    drawn->matrix[0] = drawn->matrix[3] = cosine;
    drawn->matrix[1] = sine;
    drawn->matrix[2] = -sine;
}

/* Shears are at most 0.3 and keep the upper left corner in place. Shifts are at most 150 / 331 of the image. */
HOST_DEVICE AugmentDrawn augment_randaugment_draw(const AugmentRandAugment *op, const AugmentRandom *random,
                                                  AugmentSize size) {
    AugmentDrawn drawn = {true, false, 0, 0, 0, 0, AUGMENT_ONE, 0, 0, {AUGMENT_ONE, 0, 0, AUGMENT_ONE}};
    const int64_t steps = augment_rand_steps(op);
    int32_t sign;
    const AugmentRandChange change = augment_rand_change(random, &sign);
    const int32_t shear = sign * (int32_t)(3 * (int64_t)op->magnitude * AUGMENT_ONE / (10 * steps));
    switch (change) {
    case AUGMENT_RAND_SHEAR_X:
        drawn.matrix[2] = shear;
        break;
    case AUGMENT_RAND_SHEAR_Y:
        drawn.matrix[1] = shear;
        break;
    case AUGMENT_RAND_TRANSLATE_X:
        drawn.x = -sign * (int32_t)(150 * (int64_t)op->magnitude * size.width / (331 * steps));
        break;
    case AUGMENT_RAND_TRANSLATE_Y:
        drawn.y = -sign * (int32_t)(150 * (int64_t)op->magnitude * size.height / (331 * steps));
        break;
    case AUGMENT_RAND_ROTATE:
        augment_rand_rotate(op, sign, size, &drawn);
        break;
    default:
        drawn.acts = false;
    }
    return drawn;
}

/* A factor of 1 plus or minus up to 0.9. */
HOST_DEVICE uint32_t augment_rand_factor(const AugmentRandAugment *op, int32_t sign) {
    return (uint32_t)(AUGMENT_ONE +
                      sign * (int32_t)(9 * (int64_t)op->magnitude * AUGMENT_ONE / (10 * augment_rand_steps(op))));
}

HOST_DEVICE AugmentDrawn augment_randaugment_near_draw(const AugmentRandAugment *op, const AugmentRandom *random,
                                                       AugmentSize size) {
    int32_t sign;
    const bool acts = augment_rand_change(random, &sign) == AUGMENT_RAND_SHARPNESS;
    return augment_amount(acts ? augment_rand_factor(op, sign) : AUGMENT_ONE, size);
}

/* Moves away from, or towards, the image smoothed by the weights 1 and, in the centre, 5. */
HOST_DEVICE AugmentPixel augment_randaugment_near_box(const AugmentRandAugment *op, const AugmentDrawn *drawn,
                                                      AugmentPixel pixel, const uint32_t sums[AUGMENT_CHANNELS]) {
    (void)op;
    for (int c = 0; c < AUGMENT_CHANNELS; c++) {
        const uint32_t smooth = (2 * (sums[c] + 4u * pixel.value[c]) + 13) / 26;
        pixel.value[c] = augment_blend(drawn->amount, pixel.value[c], (int64_t)smooth * AUGMENT_ONE);
    }
    return pixel;
}

/* The bits that posterisation keeps: 8 minus up to 4, rounded to nearest, halves to even. */
HOST_DEVICE uint32_t augment_rand_bits(const AugmentRandAugment *op) {
    const int64_t steps = augment_rand_steps(op), eighths = 8 * (int64_t)op->magnitude + steps;
    const int64_t nearest = eighths / (2 * steps);
    return (uint32_t)(8 - (eighths % (2 * steps) == 0 && nearest % 2 == 1 ? nearest - 1 : nearest));
}

HOST_DEVICE AugmentDrawn augment_randaugment_colour_draw(const AugmentRandAugment *op, const AugmentRandom *random,
                                                         AugmentSize size) {
    int32_t sign;
    const AugmentRandChange change = augment_rand_change(random, &sign);
    AugmentDrawn drawn = augment_amount(AUGMENT_ONE, size);
    if (change == AUGMENT_RAND_POSTERIZE) {
        drawn = augment_amount(augment_rand_bits(op), size);
    } else if (change == AUGMENT_RAND_SOLARIZE) {
        drawn = augment_amount((uint32_t)(255 * (augment_rand_steps(op) - op->magnitude)), size);
        drawn.acts = true; /* whatever the amount */
    } else if (change >= AUGMENT_RAND_BRIGHTNESS && change <= AUGMENT_RAND_CONTRAST) {
        drawn = augment_amount(augment_rand_factor(op, sign), size);
    }
    drawn.variant = (int32_t)change;
    return drawn;
}

HOST_DEVICE AugmentPixel augment_randaugment_colour_pixel(const AugmentRandAugment *op, const AugmentDrawn *drawn,
                                                          AugmentPixel pixel) {
    const int64_t other = drawn->variant == AUGMENT_RAND_COLOUR     ? (int64_t)augment_grey(pixel) * AUGMENT_ONE
                          : drawn->variant == AUGMENT_RAND_CONTRAST ? (int64_t)drawn->mean
                                                                    : 0;
    for (int c = 0; c < AUGMENT_CHANNELS; c++) {
        const uint8_t value = pixel.value[c];
        if (drawn->variant == AUGMENT_RAND_POSTERIZE) {
            pixel.value[c] = (uint8_t)(value & 0xff00u >> drawn->amount);
        } else if (drawn->variant == AUGMENT_RAND_SOLARIZE) {
            const bool inverts = value * augment_rand_steps(op) >= drawn->amount;
            pixel.value[c] = inverts ? (uint8_t)(255 - value) : value;
        } else {
            pixel.value[c] = augment_blend(drawn->amount, value, other);
        }
    }
    return pixel;
}

HOST_DEVICE AugmentDrawn augment_randaugment_levels_draw(const AugmentRandAugment *op, const AugmentRandom *random,
                                                         AugmentSize size) {
    int32_t sign;
    const AugmentRandChange change = augment_rand_change(random, &sign);
    AugmentDrawn drawn = augment_amount(AUGMENT_ONE, size);
    (void)op;
    drawn.acts = change == AUGMENT_RAND_AUTOCONTRAST || change == AUGMENT_RAND_EQUALIZE;
    drawn.variant = (int32_t)change;
    return drawn;
}

/* The smallest and the largest value in the image become 0 and 255, those between them in proportion. */
HOST_DEVICE uint8_t augment_rand_stretched(int32_t value, int32_t low, int32_t high) {
    if (high <= low) return (uint8_t)value;
    const int32_t inside = value < low ? low : value > high ? high : value;
    return (uint8_t)(255 * (inside - low) / (high - low));
}

/* Equalising maps a value to the share of pixels with smaller values, so that all values become equally frequent. */
HOST_DEVICE void augment_randaugment_levels_table(const AugmentRandAugment *op, const AugmentDrawn *drawn,
                                                  const uint32_t *counts, uint8_t *table) {
    int32_t low = 0, high = AUGMENT_LEVELS - 1;
    uint64_t pixels = 0, less = 0;
    (void)op;
    while (low < high && counts[low] == 0) low++;
    while (high > low && counts[high] == 0) high--;
    for (int32_t v = low; v < high; v++) pixels += counts[v]; /* without the largest */
    const uint64_t step = pixels / 255;
    for (int32_t v = 0; v < AUGMENT_LEVELS; v++) {
        if (drawn->variant == AUGMENT_RAND_AUTOCONTRAST) {
            table[v] = augment_rand_stretched(v, low, high);
        } else {
            const uint64_t even = step == 0 ? (uint64_t)v : (less + step / 2) / step;
            table[v] = (uint8_t)(even < 255 ? even : 255);
        }
        less += counts[v];
    }
}

static inline Status augment_randaugment_check_parameters(const void *parameters) {
    const AugmentRandAugment *op = (const AugmentRandAugment *)parameters;
    if (op->magnitude < op->num_magnitude_bins) return STATUS_OK;
    FAIL(STATUS_ARGUMENT, "magnitude must be below num_magnitude_bins (%d), not %d", op->num_magnitude_bins,
         op->magnitude);
}

#define AUGMENT_RANDAUGMENT_PARAMETERS                                                                                 \
    {                                                                                                                  \
        AUGMENT_PARAMETER(AugmentRandAugment, num_ops, ROUNDS, .value = 2, .least = 1, .most = 4),                     \
            AUGMENT_PARAMETER(AugmentRandAugment, magnitude, COUNT, .value = 9, .least = 0, .most = 1000),             \
            AUGMENT_PARAMETER(AugmentRandAugment, num_magnitude_bins, COUNT, .value = 31, .least = 2, .most = 1001),   \
            AUGMENT_PARAMETER(AugmentRandAugment, fill, RGB)                                                           \
    }

#endif

AUGMENT_OP_WARP(randaugment, AugmentRandAugment, .name = "RandAugment", .number = 19, .then = AUGMENT_randaugment_near,
                .check_parameters = augment_randaugment_check_parameters,
                .doc = "Applies `num_ops` changes, each drawn from fourteen: none; shear (up to 0.3) and shift (up to\n"
                       "45 %), each along rows or columns; rotation (up to 30 degrees); brightness, colour, contrast\n"
                       "and sharpness (factors of 1 plus or minus up to 0.9); posterisation (down to 4 bits);\n"
                       "solarisation; autocontrast; histogram equalisation (Cubuk et al., 2019, with torchvision's\n"
                       "ranges). Moved pixels are interpolated by nearest neighbour.\n\n"
                       "Args:\n"
                       "    num_ops: 1 to 4.\n"
                       "    magnitude: how much, in steps of the largest change / (num_magnitude_bins - 1).\n"
                       "    num_magnitude_bins: 2 to 1,001.\n"
                       "    fill: value of uncovered pixels, 0..255 per channel.",
                .parameters = AUGMENT_RANDAUGMENT_PARAMETERS)

AUGMENT_OP_BOX(randaugment_near, AugmentRandAugment, .name = "RandAugment", .number = 19,
               .then = AUGMENT_randaugment_colour, .parameters = AUGMENT_RANDAUGMENT_PARAMETERS)

AUGMENT_OP_COLOUR(randaugment_colour, AugmentRandAugment, .name = "RandAugment", .number = 19, .mean = true,
                  .then = AUGMENT_randaugment_levels, .parameters = AUGMENT_RANDAUGMENT_PARAMETERS)

AUGMENT_OP_HISTOGRAM(randaugment_levels, AugmentRandAugment, .name = "RandAugment", .number = 19,
                     .parameters = AUGMENT_RANDAUGMENT_PARAMETERS)
