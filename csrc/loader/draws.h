/* Private to order.c: the random numbers that orders are made from, many at a time. */
#ifndef CGXFFCV_LOADER_DRAWS_H
#define CGXFFCV_LOADER_DRAWS_H

#include <stdint.h>

#define LOADER_DRAWS_GROUP 8 /* counters that a vector kernel takes at once */

/* A sequence of draws: each Philox counter gives two, of 64 bits each. */
typedef struct LoaderDraws {
    uint64_t seed;
    uint32_t epoch, index;
} LoaderDraws;

/* The draws of counters [first, first + groups * LOADER_DRAWS_GROUP): draw i is out[i - 2 * first]. */
typedef void (*LoaderDrawsKernel)(const LoaderDraws *draws, uint64_t first, uint64_t groups, uint64_t *out);

#if defined(__x86_64__)
void loader_draws_avx2(const LoaderDraws *draws, uint64_t first, uint64_t groups, uint64_t *out);
#endif

#endif
