/* Shuffles, and where the batches of an order begin: nothing here knows a file. */
#include "loader/order.h"

#include "base/philox.h"

/* One list of draws: draw i takes half of a counter's four words, so that two draws cost one counter. */
typedef struct Draws {
    uint64_t seed;
    uint32_t epoch, index;
    uint64_t counter; /* that `random` holds; UINT64_MAX: none */
    Philox4 random;
} Draws;

/* Uniform in [0, n), bias below n / 2^64. */
static uint64_t draw_below(Draws *draws, uint64_t i, uint64_t n) {
    if (draws->counter != i / 2) {
        draws->counter = i / 2;
        draws->random = philox_at(draws->seed, draws->epoch, i / 2, PHILOX_ORDER, draws->index);
    }
    const uint32_t *word = draws->random.word + 2 * (i % 2);
    uint64_t wide = (uint64_t)word[1] << 32 | word[0];
    return (uint64_t)(((unsigned __int128)wide * n) >> 64);
}

/* Fisher and Yates, from the end. The places to swap with do not depend on what lies there: they are
 * drawn in blocks and fetched ahead, which hides the memory's latency. */
void loader_shuffle(uint64_t *items, uint64_t first, uint64_t last, uint64_t seed, uint32_t epoch, LoaderShuffle what) {
    enum { BLOCK = 128 };
    Draws draws = {.seed = seed, .epoch = epoch, .index = (uint32_t)what, .counter = UINT64_MAX};
    uint64_t other[BLOCK];
    while (last > first + 1) {
        uint64_t count = last - first - 1 < BLOCK ? last - first - 1 : BLOCK;
        for (uint64_t k = 0; k < count; k++) {
            other[k] = first + draw_below(&draws, last - 1 - k, last - k - first);
            __builtin_prefetch(&items[other[k]], 1);
        }
        for (uint64_t k = 0; k < count; k++, last--) {
            uint64_t moved = items[last - 1];
            items[last - 1] = items[other[k]];
            items[other[k]] = moved;
        }
    }
}

/* ---- slices ---- */

uint64_t loader_split_batches(const LoaderSplit *split, uint64_t samples) {
    uint64_t global = split->batch_size * split->world_size;
    return samples / global + (!split->drop_last && samples % global != 0);
}

LoaderPart loader_split_part(const LoaderSplit *split, uint64_t samples, uint64_t index) {
    uint64_t global = split->batch_size * split->world_size, first = index * global;
    if (samples - first >= global) {
        return (LoaderPart){first + split->rank * split->batch_size, (size_t)split->batch_size};
    }
    uint64_t rest = samples - first, share = rest / split->world_size, larger = rest % split->world_size;
    uint64_t before = split->rank * share + (split->rank < larger ? split->rank : larger);
    return (LoaderPart){first + before, (size_t)(share + (split->rank < larger))};
}
