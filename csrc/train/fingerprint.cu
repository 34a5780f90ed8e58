/* The hash of a replica on the GPU: every word is mixed with its index, and the results are summed in any order.
 *
 * Blocks of 256 threads, at most 1,024 of them. A thread mixes the words (count, uint32: the bits of the values) at its
 * index in the grid and at every grid's size from there; a block adds up its threads' results, and thread 0 adds that
 * to the global sum (uint64). */
#include "device/kernel.cuh"

extern "C" {
#include "train/fingerprint.h"
}

#define BLOCK 256
#define MOST_BLOCKS 1024
#define MOST_WORDS ((uint64_t)1 << 32)

typedef unsigned long long Word; /* the type that atomicAdd takes */

__device__ static __forceinline__ Word mix(Word x) {
    x += 0x9e3779b97f4a7c15ull;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ x >> 27) * 0x94d049bb133111ebull;
    return x ^ x >> 31;
}

static __global__ void train_fingerprint_kernel(const uint32_t *words, size_t count, Word first, Word *sum) {
    grid_begin();
    Word mine = 0;
    GRID_LOOP(i, count) { mine += mix((first + i) << 32 | words[i]); }
    mine = block_sum(mine);
    if (threadIdx.x == 0) atomicAdd(sum, mine);
}

extern "C" Status train_fingerprint_add(const float *values, size_t count, uint64_t first, uint64_t *sum,
                                        DeviceStream *stream) {
    if (first > MOST_WORDS || count > MOST_WORDS - first) FAIL(STATUS_ARGUMENT, "more than 2^32 values in one hash");
    size_t blocks = ceil_div(count, BLOCK);
    return LAUNCH_AFTER(train_fingerprint_kernel, blocks < MOST_BLOCKS ? blocks : MOST_BLOCKS, BLOCK, 0, stream,
                        (const uint32_t *)values, count, (Word)first, (Word *)sum);
}
