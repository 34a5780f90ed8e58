/* Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11): a counter-based generator, one
 * definition for host and device. Every random choice in the project is a pure function of (seed, epoch, item, stream),
 * so that workers, ranks and a resumed run agree. */
#ifndef CGXFFCV_BASE_PHILOX_H
#define CGXFFCV_BASE_PHILOX_H

#include <stdint.h>

#include "base/host_device.h"

#define PHILOX_M0 0xD2511F53u
#define PHILOX_M1 0xCD9E8D57u
#define PHILOX_W0 0x9E3779B9u
#define PHILOX_W1 0xBB67AE85u
#define PHILOX_ROUNDS 10

typedef struct Philox4 {
    uint32_t word[4];
} Philox4;

/* What a stream of numbers is for: the high half of the counter's last word, so that no two uses overlap. */
typedef enum PhiloxStream {
    PHILOX_ORDER = 1,    /* traversal permutations */
    PHILOX_AUGMENT = 2,  /* per-sample augmentation; the operation's index is added to the low half */
    PHILOX_QUANTIZE = 3, /* stochastic rounding */
    PHILOX_INIT = 4,     /* network initialisation */
    PHILOX_TEST = 5,     /* random inputs of tests and benchmarks */
    PHILOX_WRITE = 6,    /* choices made while a file is written */
    PHILOX_ROTATE = 7    /* signs of the codec `rotated` */
} PhiloxStream;

HOST_DEVICE Philox4 philox(uint32_t k0, uint32_t k1, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3) {
    for (int round = 0; round < PHILOX_ROUNDS; round++) {
        uint64_t p0 = (uint64_t)PHILOX_M0 * c0, p1 = (uint64_t)PHILOX_M1 * c2;
        uint32_t n0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0, n2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)p1;
        c3 = (uint32_t)p0;
        c0 = n0;
        c2 = n2;
        k0 += PHILOX_W0;
        k1 += PHILOX_W1;
    }
    Philox4 out = {{c0, c1, c2, c3}};
    return out;
}

/* Four words for (seed, epoch, item, stream, index within the stream: at most 65,535). */
HOST_DEVICE Philox4 philox_at(uint64_t seed, uint32_t epoch, uint64_t item, PhiloxStream stream, uint32_t index) {
    return philox((uint32_t)seed, (uint32_t)(seed >> 32), (uint32_t)item, (uint32_t)(item >> 32), epoch,
                  ((uint32_t)stream << 16) | (index & 0xFFFFu));
}

/* Uniform in [0, 1) with 24 bits. */
HOST_DEVICE float philox_uniform(uint32_t word) { return (float)(word >> 8) * 0x1p-24f; }

/* Uniform integer in [0, n) by multiplication (bias below n / 2^32). */
HOST_DEVICE uint32_t philox_below(uint32_t word, uint32_t n) { return (uint32_t)(((uint64_t)word * n) >> 32); }

#endif
