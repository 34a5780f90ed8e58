/* The order of an epoch, and the part of it that a rank's batch takes: pure functions that need no open file. */
#ifndef CGXFFCV_LOADER_ORDER_H
#define CGXFFCV_LOADER_ORDER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* What is shuffled; each has its own sequence of draws. */
typedef enum LoaderShuffle {
    LOADER_SHUFFLE_SAMPLES, /* the samples in use: LOADER_RANDOM's order of an epoch */
    LOADER_SHUFFLE_PAGES,
    LOADER_SHUFFLE_WINDOWS
} LoaderShuffle;

/* Shuffles items [first, last) into an order that is a function of the other arguments alone. */
void loader_shuffle(uint64_t *items, uint64_t first, uint64_t last, uint64_t seed, uint32_t epoch, LoaderShuffle what);

/* How an order is cut into batches: global batch g is its slice [g * batch_size * world_size, (g + 1) * batch_size *
 * world_size), of which rank r takes the r-th part. What is left at the end is dropped, or shared evenly, to within one
 * sample. */
typedef struct LoaderSplit {
    uint64_t batch_size, world_size, rank;
    bool drop_last;
} LoaderSplit;

/* Positions [first, first + count) of the order. */
typedef struct LoaderPart {
    uint64_t first;
    size_t count;
} LoaderPart;

/* The number of batches in a pass over `samples` samples, the same on every rank. */
uint64_t loader_split_batches(const LoaderSplit *split, uint64_t samples);

/* This rank's part of batch `index`. */
LoaderPart loader_split_part(const LoaderSplit *split, uint64_t samples, uint64_t index);

#endif
