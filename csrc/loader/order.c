/* Shuffles, and where the batches of an order begin; nothing here depends on a file. */
#include "loader/order.h"

#include "base/cpu.h"
#include "base/philox.h"
#include "loader/draws.h"

static void draw_scalar(const LoaderDraws *draws, uint64_t first, uint64_t groups, uint64_t *out) {
    for (uint64_t i = first; i < first + groups * LOADER_DRAWS_GROUP; i++, out += 2) {
        const Philox4 random = philox_at(draws->seed, draws->epoch, i, PHILOX_ORDER, draws->index);
        out[0] = (uint64_t)random.word[1] << 32 | random.word[0];
        out[1] = (uint64_t)random.word[3] << 32 | random.word[2];
    }
}

static LoaderDrawsKernel best_kernel(void) {
#if defined(__x86_64__)
    if (cpu_features()->avx2) return loader_draws_avx2;
#endif
    return draw_scalar;
}

/* Uniform in [0, n), bias below n / 2^64. */
static uint64_t below(uint64_t draw, uint64_t n) { return (uint64_t)(((unsigned __int128)draw * n) >> 64); }

/* Fisher-Yates, from the end; item i takes draw i. The positions to swap with do not depend on the items, so they are
 * drawn in blocks and prefetched, which hides memory latency. */
void loader_shuffle(uint64_t *items, uint64_t first, uint64_t last, uint64_t seed, uint32_t epoch, LoaderShuffle what) {
    enum { GROUPS = 9, DRAWS = GROUPS * 2 * LOADER_DRAWS_GROUP, BLOCK = DRAWS - 2 };
    const LoaderDraws draws = {seed, epoch, (uint32_t)what};
    const LoaderDrawsKernel draw = best_kernel();
    uint64_t drawn[DRAWS], other[BLOCK];
    while (last > first + 1) {
        const uint64_t count = last - first - 1 < BLOCK ? last - first - 1 : BLOCK;
        const uint64_t counter = (last - count) / 2, end = (last - 1) / 2 + 1;
        draw(&draws, counter, (end - counter + LOADER_DRAWS_GROUP - 1) / LOADER_DRAWS_GROUP, drawn);
        for (uint64_t k = 0; k < count; k++) {
            other[k] = first + below(drawn[last - 1 - k - 2 * counter], last - k - first);
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
