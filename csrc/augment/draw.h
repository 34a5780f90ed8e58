/* The draws of augmentation: pure functions of (seed, epoch, sample, operation), the same for the CPU and for a
 * GPU kernel, so that both give the same pixels. An image operation reads out(y, x) from in(y + dy, x + dx). */
#ifndef CGXFFCV_AUGMENT_DRAW_H
#define CGXFFCV_AUGMENT_DRAW_H

#include <stdint.h>

#include "base/philox.h"

/* Whose draw it is. Numbers are part of what a seed means: never change one. */
typedef enum CropDraw {
    CROP_DRAW_FLIP = 1,
    CROP_DRAW_ALTERNATE = 2,
    CROP_DRAW_TRANSLATE = 3,
    CROP_DRAW_WINDOW = 4,
    CROP_DRAW_CUTOUT = 5
} CropDraw;

typedef struct CropKey {
    uint64_t seed;
    uint64_t sample; /* index in the file */
    uint32_t epoch;
} CropKey;

typedef struct CropOffset {
    int32_t y, x;
} CropOffset;

/* The index of a draw within PHILOX_AUGMENT: the kind (below 64), how many of that kind come before it in the same
 * list of operations (below 16), and the number of the list (below 64; lists that share it share their draws).
 * A list's draws do not depend on operations that draw nothing. */
HOST_DEVICE uint32_t crop_draw_index(CropDraw kind, uint32_t occurrence, uint32_t list) {
    return (uint32_t)kind | (occurrence & 15u) << 6 | (list & 63u) << 10;
}

HOST_DEVICE Philox4 crop_draw_(CropKey key, uint32_t epoch, uint32_t index) {
    return philox_at(key.seed, epoch, key.sample, PHILOX_AUGMENT, index);
}

/* Whether to mirror: true with `probability`, to 24 bits. */
HOST_DEVICE int crop_flip(CropKey key, uint32_t index, float probability) {
    return philox_uniform(crop_draw_(key, key.epoch, index).word[0]) < probability;
}

/* The alternating flip: a bit fixed for the run, xor the epoch's parity; each image is seen both ways in any two
 * epochs (Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU", section 3.6). */
HOST_DEVICE int crop_alternate(CropKey key, uint32_t index) {
    return (int)((crop_draw_(key, 0, index).word[0] >> 31) ^ (key.epoch & 1u));
}

/* An offset, each part uniform in -padding..padding. */
HOST_DEVICE CropOffset crop_translate(CropKey key, uint32_t index, int32_t padding) {
    Philox4 random = crop_draw_(key, key.epoch, index);
    uint32_t choices = 2u * (uint32_t)padding + 1u;
    CropOffset out = {(int32_t)philox_below(random.word[0], choices) - padding,
                      (int32_t)philox_below(random.word[1], choices) - padding};
    return out;
}

/* The corner of a window that lies fully inside: uniform in 0..rows-height and 0..columns-width. */
HOST_DEVICE CropOffset crop_window(CropKey key, uint32_t index, int32_t rows, int32_t columns, int32_t height,
                                   int32_t width) {
    Philox4 random = crop_draw_(key, key.epoch, index);
    CropOffset out = {(int32_t)philox_below(random.word[0], (uint32_t)(rows - height) + 1u),
                      (int32_t)philox_below(random.word[1], (uint32_t)(columns - width) + 1u)};
    return out;
}

/* The index that reflection without repeating the edge gives: in -(size-1)..2*(size-1) it lands in 0..size-1. */
HOST_DEVICE int32_t crop_reflect(int32_t index, int32_t size) {
    if (index < 0) return -index;
    return index < size ? index : 2 * (size - 1) - index;
}

#endif
