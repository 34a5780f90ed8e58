/* Patch moments, by at most AUGMENT_MOMENT_PARTS blocks of 256 threads: each thread sums its share of the patches of
 * images (count, height, width, 3), bytes, in registers; a block's sums are a row of the result (parts,
 * AUGMENT_MOMENTS), uint64. */
#include "device/kernel.cuh"

extern "C" {
#include "augment/moments.h"
}

#define BLOCK 256
#define CHANNELS 3

/* The bytes are integers, so the sums are exact in any order. A thread's sums fit 32 bits up to 66,051 patches. */
#define MOST_OF_THREAD 65536
#define FEW_OF_THREAD 16 /* patches per thread before another block is worth the cost of its final sums */

static __global__ void augment_moments_kernel(const uint8_t *images, int64_t count, int height, int width,
                                              uint64_t *to) {
    grid_begin();
    uint32_t sums[AUGMENT_MOMENTS];
#pragma unroll
    for (int i = 0; i < AUGMENT_MOMENTS; i++) sums[i] = 0;
    const size_t columns = (size_t)(width - 1), in_image = (size_t)(height - 1) * columns;
    GRID_LOOP(patch, (size_t)count * in_image) {
        size_t image = patch / in_image, y = (patch - image * in_image) / columns;
        size_t x = patch - image * in_image - y * columns;
        const uint8_t *corner = images + ((image * (size_t)height + y) * (size_t)width + x) * CHANNELS;
        uint32_t values[AUGMENT_PATCH];
#pragma unroll
        for (int e = 0; e < AUGMENT_PATCH; e++) {
            values[e] = corner[(size_t)(e / 2 % 2 * width + e % 2) * CHANNELS + (size_t)(e / 4)];
        }
        int at = 0;
#pragma unroll
        for (int i = 0; i < AUGMENT_PATCH; i++) {
#pragma unroll
            for (int j = i; j < AUGMENT_PATCH; j++) sums[at++] += values[i] * values[j];
        }
#pragma unroll
        for (int e = 0; e < AUGMENT_PATCH; e++) sums[at++] += values[e];
    }
#pragma unroll
    for (int i = 0; i < AUGMENT_MOMENTS; i++) {
        unsigned long long total = block_sum((unsigned long long)sums[i]);
        if (threadIdx.x == 0) to[(size_t)blockIdx.x * AUGMENT_MOMENTS + i] = total;
    }
}

extern "C" Status augment_moments_on_device(const GatherSet *set, int64_t count, uint64_t *to, int *parts,
                                            DeviceStream *stream) {
    int64_t patches = count * (set->height - 1) * (set->width - 1);
    if (count < 1 || count > set->count || patches > (int64_t)MOST_OF_THREAD * AUGMENT_MOMENT_PARTS * BLOCK) {
        FAIL(STATUS_ARGUMENT, "moments can be computed of 1 to %lld images, not of %lld", (long long)set->count,
             (long long)count);
    }
    size_t blocks = ceil_div((size_t)patches, BLOCK * FEW_OF_THREAD);
    *parts = blocks < AUGMENT_MOMENT_PARTS ? (int)blocks : AUGMENT_MOMENT_PARTS;
    return LAUNCH_AFTER(augment_moments_kernel, (unsigned)*parts, BLOCK, 0, stream, set->images, count, set->height,
                        set->width, to);
}
