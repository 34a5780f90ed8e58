/* What image operations draw from, and what they draw: the same for the CPU and for a GPU kernel, so that both give the
 * same pixels. Every random choice is a pure function of (seed, epoch, sample, operation); of
 * one that a batch shares, the sample is the batch's first. */
#ifndef CGXFFCV_AUGMENT_DRAW_H
#define CGXFFCV_AUGMENT_DRAW_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/philox.h"

#define AUGMENT_CHANNELS 3
#define AUGMENT_ONE 65536 /* an amount is in units of 1 / AUGMENT_ONE: whole numbers, the same on every machine */

typedef struct AugmentKey {
    uint64_t seed;
    uint64_t sample; /* index in the file */
    uint64_t batch;  /* that of the first sample of its batch: for choices that a batch shares */
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

/* What an operation does to one image, once its choices are made; what counts depends on its phase (operation.h). */
typedef struct AugmentDrawn {
    bool acts;             /* MOVE: mirrors left to right. Others: false: the image stays as it is */
    int32_t y, x;          /* MOVE that does not mirror: out(y, x) = in(y + this y, x + this x). FILL: the corner */
    int32_t height, width; /* MOVE: of the result. FILL: of what is filled */
    uint32_t amount;       /* COLOUR, MIX, LABEL: how much, AUGMENT_ONE being neutral */
} AugmentDrawn;

typedef struct AugmentPixel {
    uint8_t value[AUGMENT_CHANNELS];
} AugmentPixel;

/* What an operation puts where no pixel is. */
typedef struct AugmentFill {
    double colour[AUGMENT_CHANNELS]; /* 0..255, or normalised */
    bool reflect;                    /* mirrors the image instead, the edge pixel not repeated */
} AugmentFill;

/* The index of a draw within PHILOX_AUGMENT: the operation's number (below 64), how many of that number come before it
 * in the same list of operations (below 16), and the number of the list (below 64; lists that share it share their
 * draws). A list's draws do not depend on operations that draw nothing. */
HOST_DEVICE uint32_t augment_draw_index(uint32_t number, uint32_t occurrence, uint32_t list) {
    return number | (occurrence & 15u) << 6 | (list & 63u) << 10;
}

/* Of this image in this epoch. */
HOST_DEVICE Philox4 augment_words(const AugmentRandom *random) {
    return philox_at(random->key->seed, random->key->epoch, random->key->sample, PHILOX_AUGMENT, random->index);
}

/* Of this image, the same in all epochs. */
HOST_DEVICE Philox4 augment_lasting_words(const AugmentRandom *random) {
    return philox_at(random->key->seed, 0, random->key->sample, PHILOX_AUGMENT, random->index);
}

/* Of this image's batch in this epoch. */
HOST_DEVICE Philox4 augment_batch_words(const AugmentRandom *random) {
    return philox_at(random->key->seed, random->key->epoch, random->key->batch, PHILOX_AUGMENT, random->index);
}

HOST_DEVICE AugmentDrawn augment_mirror(bool acts, AugmentSize size) {
    AugmentDrawn drawn = {acts, 0, 0, size.height, size.width, AUGMENT_ONE};
    return drawn;
}

HOST_DEVICE AugmentDrawn augment_window(int32_t y, int32_t x, AugmentSize size) {
    AugmentDrawn drawn = {false, y, x, size.height, size.width, AUGMENT_ONE};
    return drawn;
}

HOST_DEVICE AugmentDrawn augment_hole(bool acts, int32_t y, int32_t x, AugmentSize size) {
    AugmentDrawn drawn = {acts, y, x, size.height, size.width, AUGMENT_ONE};
    return drawn;
}

HOST_DEVICE AugmentDrawn augment_amount(uint32_t amount) {
    AugmentDrawn drawn = {amount != AUGMENT_ONE, 0, 0, 0, 0, amount};
    return drawn;
}

/* The index that reflection without repeating the edge gives: in -(size-1)..2*(size-1) it lands in 0..size-1. */
HOST_DEVICE int32_t augment_reflect(int32_t index, int32_t size) {
    if (index < 0) return -index;
    return index < size ? index : 2 * (size - 1) - index;
}

#endif
