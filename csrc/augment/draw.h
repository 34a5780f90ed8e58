/* What image operations draw from, and what they draw: the same for the CPU and for GPU kernels, so that both give the
 * same pixels. Every random choice is a pure function of (seed, epoch, sample, operation); for a choice that a batch
 * shares, the sample is the batch's first. */
#ifndef CGXFFCV_AUGMENT_DRAW_H
#define CGXFFCV_AUGMENT_DRAW_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/philox.h"

#define AUGMENT_CHANNELS 3     /* of the images for which there are vector and device kernels */
#define AUGMENT_MAX_CHANNELS 4 /* of any image */
#define AUGMENT_LEVELS 256     /* values of a uint8 channel */
#define AUGMENT_ONE 65536      /* amounts are in units of 1 / AUGMENT_ONE: integers, the same on every machine */

typedef struct AugmentKey {
    uint64_t seed;
    uint64_t sample; /* index in the file */
    uint64_t batch;  /* index of the first sample in its batch: for choices that a batch shares */
    uint32_t epoch;
} AugmentKey;

/* Where an operation's random numbers come from. */
typedef struct AugmentRandom {
    const AugmentKey *key;
    uint32_t index; /* of the operation: augment_draw_index */
} AugmentRandom;

typedef struct AugmentSize {
    int32_t height, width;
} AugmentSize;

/* What an operation does to one image, once its choices are drawn; which members matter depends on its phase
 * (operation.h). */
typedef struct AugmentDrawn {
    bool acts;             /* MOVE: mirrors left to right. Others: if false, the image stays as it is */
    bool flips_vertically; /* MOVE: mirrors top to bottom */
    int32_t y, x; /* MOVE that does not mirror: out(y, x) = in(y + this y, x + this x). FILL, MIX: the corner. WARP: a
                   * shift, in pixels */
    int32_t height, width; /* MOVE: of the result. FILL, MIX: of the rectangle. WARP: the pivot's position, in half
                            * pixels */
    uint32_t amount;       /* COLOUR, LOCAL, BOX, MIX, LABEL: how much; AUGMENT_ONE is neutral */
    uint32_t mean;         /* COLOUR: the image's mean grey (AugmentEntry.mean), known once its pixels are */
    int32_t variant;       /* COLOUR, HISTOGRAM: which of several changes, in the operation's own numbering */
    int32_t matrix[4]; /* WARP: maps places in the result to places in the image, both relative to the pivot, in units
                        * of 1 / AUGMENT_ONE: y from y, y from x, x from y, x from x */
} AugmentDrawn;

/* Two limits, the lower one first. */
typedef struct AugmentLimits {
    double low, high;
} AugmentLimits;

/* Indices of samples, in ascending order. */
typedef struct AugmentSamples {
    const int64_t *ids; /* borrowed */
    size_t count;
} AugmentSamples;

/* One value for each pixel of an image, or for each channel of each pixel. */
typedef struct AugmentPlane {
    const float *values; /* borrowed; row-major */
    AugmentSize size;
} AugmentPlane;

typedef struct AugmentPixel {
    uint8_t value[AUGMENT_CHANNELS];
} AugmentPixel;

/* What an operation puts where the image has no pixel. */
typedef struct AugmentFill {
    double colour[AUGMENT_MAX_CHANNELS]; /* in the image's units, or normalised */
    int count;                           /* of its values; 0: one for each channel, or the same for all */
    bool reflect;                        /* mirror the image instead, without repeating the edge pixel */
} AugmentFill;

#define AUGMENT_MAX_OCCURRENCES 16

/* The index of a draw within PHILOX_AUGMENT: the operation's number (below 64), how many operations of that number come
 * before it in the same list (below 16), and the number of the list (below 64; lists with the same number share their
 * draws). Each operation has its own stream of words, so it may take as many as it likes without affecting the draws of
 * others. */
HOST_DEVICE uint32_t augment_draw_index(uint32_t number, uint32_t occurrence, uint32_t list) {
    return number | (occurrence % AUGMENT_MAX_OCCURRENCES) << 6 | (list & 63u) << 10;
}

/* Random words of this image in this epoch. */
HOST_DEVICE Philox4 augment_words(const AugmentRandom *random) {
    return philox_at(random->key->seed, random->key->epoch, random->key->sample, PHILOX_AUGMENT, random->index);
}

/* Random words of this image, the same in all epochs. */
HOST_DEVICE Philox4 augment_lasting_words(const AugmentRandom *random) {
    return philox_at(random->key->seed, 0, random->key->sample, PHILOX_AUGMENT, random->index);
}

/* Random words of this image's batch in this epoch. */
HOST_DEVICE Philox4 augment_batch_words(const AugmentRandom *random) {
    return philox_at(random->key->seed, random->key->epoch, random->key->batch, PHILOX_AUGMENT, random->index);
}

/* Random words of this image for another attempt, of at most 256: sample indices leave the highest byte free. */
HOST_DEVICE Philox4 augment_try_words(const AugmentRandom *random, uint32_t number) {
    const uint64_t item = random->key->sample ^ (uint64_t)number << 56;
    return philox_at(random->key->seed, random->key->epoch, item, PHILOX_AUGMENT, random->index);
}

/* True with the given probability, to 24 bits. */
HOST_DEVICE bool augment_happens(uint32_t word, double probability) {
    return philox_uniform(word) < (float)probability;
}

HOST_DEVICE bool augment_samples_contain(const AugmentSamples *samples, uint64_t sample) {
    size_t first = 0, end = samples->count;
    while (first < end) {
        const size_t middle = first + (end - first) / 2;
        if ((uint64_t)samples->ids[middle] == sample) return true;
        if ((uint64_t)samples->ids[middle] < sample)
            first = middle + 1;
        else
            end = middle;
    }
    return false;
}

HOST_DEVICE AugmentDrawn augment_mirror(bool acts, AugmentSize size) {
    AugmentDrawn drawn = {acts, false, 0, 0, size.height, size.width, AUGMENT_ONE, 0, 0, {0}};
    return drawn;
}

HOST_DEVICE AugmentDrawn augment_flip_vertically(bool flips_vertically, AugmentSize size) {
    AugmentDrawn drawn = {false, flips_vertically, 0, 0, size.height, size.width, AUGMENT_ONE, 0, 0, {0}};
    return drawn;
}

HOST_DEVICE AugmentDrawn augment_window(int32_t y, int32_t x, AugmentSize size) {
    AugmentDrawn drawn = {false, false, y, x, size.height, size.width, AUGMENT_ONE, 0, 0, {0}};
    return drawn;
}

HOST_DEVICE AugmentDrawn augment_hole(bool acts, int32_t y, int32_t x, AugmentSize size) {
    AugmentDrawn drawn = {acts, false, y, x, size.height, size.width, AUGMENT_ONE, 0, 0, {0}};
    return drawn;
}

/* For the whole image. */
HOST_DEVICE AugmentDrawn augment_amount(uint32_t amount, AugmentSize size) {
    AugmentDrawn drawn = {amount != AUGMENT_ONE, false, 0, 0, size.height, size.width, amount, 0, 0, {0}};
    return drawn;
}

/* Parameters of operations that change an image's colours by a random amount. */
typedef struct AugmentJitter {
    double magnitude, p;
} AugmentJitter;

/* With probability `p` a factor, uniform in max(0, 1 - magnitude)..1 + magnitude, in steps of 1 / AUGMENT_ONE. */
HOST_DEVICE AugmentDrawn augment_factor(const AugmentJitter *op, const AugmentRandom *random, AugmentSize size) {
    if (random == NULL) return augment_amount(AUGMENT_ONE, size);
    const Philox4 words = augment_words(random);
    const double least = op->magnitude < 1 ? 1 - op->magnitude : 0;
    const uint32_t low = (uint32_t)(least * AUGMENT_ONE), high = (uint32_t)((1 + op->magnitude) * AUGMENT_ONE);
    if (!augment_happens(words.word[0], op->p)) return augment_amount(AUGMENT_ONE, size);
    return augment_amount(low + philox_below(words.word[1], high - low + 1), size);
}

/* Replaces the place of a pixel in the result by the nearest one in the image; false if that is outside the image. */
HOST_DEVICE bool augment_warp(const AugmentDrawn *by, AugmentSize size, int32_t *y, int32_t *x) {
    const int64_t down = 2 * (int64_t)*y + 1 - by->height, across = 2 * (int64_t)*x + 1 - by->width;
    const int64_t pivot_y = by->height + 2 * (int64_t)by->y, pivot_x = by->width + 2 * (int64_t)by->x;
    const int64_t row = by->matrix[0] * down + by->matrix[1] * across + pivot_y * AUGMENT_ONE;
    const int64_t column = by->matrix[2] * down + by->matrix[3] * across + pivot_x * AUGMENT_ONE;
    *y = (int32_t)(row >> 17); /* half pixels, and AUGMENT_ONE */
    *x = (int32_t)(column >> 17);
    return *y >= 0 && *y < size.height && *x >= 0 && *x < size.width;
}

/* factor x value + (1 - factor) x other, clamped and rounded down; factor and other in units of 1 / AUGMENT_ONE. */
HOST_DEVICE uint8_t augment_blend(int64_t factor, uint8_t value, int64_t other) {
    const int64_t sum = factor * value * AUGMENT_ONE + (AUGMENT_ONE - factor) * other;
    const int64_t whole = sum < 0 ? 0 : sum / ((int64_t)AUGMENT_ONE * AUGMENT_ONE);
    return (uint8_t)(whole < 255 ? whole : 255);
}

/* A number between the limits. */
HOST_DEVICE double augment_between(uint32_t word, double low, double high) {
    return low + (high - low) * (word * 0x1p-32);
}

HOST_DEVICE uint32_t augment_grey(AugmentPixel pixel) {
    return (2989u * pixel.value[0] + 5870u * pixel.value[1] + 1140u * pixel.value[2]) / 10000u;
}

/* Reflects an index at the edges without repeating the edge: from -(size-1)..2*(size-1) into 0..size-1. */
HOST_DEVICE int32_t augment_reflect(int32_t index, int32_t size) {
    if (index < 0) return -index;
    return index < size ? index : 2 * (size - 1) - index;
}

#endif
