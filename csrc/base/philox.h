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

/* One round, whose key is (k0, k1). */
HOST_DEVICE Philox4 philox_round(Philox4 c, uint32_t k0, uint32_t k1) {
    uint64_t p0 = (uint64_t)PHILOX_M0 * c.word[0], p1 = (uint64_t)PHILOX_M1 * c.word[2];
    Philox4 out = {
        {(uint32_t)(p1 >> 32) ^ c.word[1] ^ k0, (uint32_t)p1, (uint32_t)(p0 >> 32) ^ c.word[3] ^ k1, (uint32_t)p0}};
    return out;
}

HOST_DEVICE Philox4 philox(uint32_t k0, uint32_t k1, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3) {
    Philox4 c = {{c0, c1, c2, c3}};
    for (uint32_t round = 0; round < PHILOX_ROUNDS; round++) {
        c = philox_round(c, k0 + round * PHILOX_W0, k1 + round * PHILOX_W1);
    }
    return c;
}

/* What the words for (seed, epoch, item, stream, index within the stream: at most 65,535) begin as. */
HOST_DEVICE Philox4 philox_counter(uint32_t epoch, uint64_t item, PhiloxStream stream, uint32_t index) {
    Philox4 c = {{(uint32_t)item, (uint32_t)(item >> 32), epoch, ((uint32_t)stream << 16) | (index & 0xFFFFu)}};
    return c;
}

/* Those four words. */
HOST_DEVICE Philox4 philox_at(uint64_t seed, uint32_t epoch, uint64_t item, PhiloxStream stream, uint32_t index) {
    Philox4 c = philox_counter(epoch, item, stream, index);
    return philox((uint32_t)seed, (uint32_t)(seed >> 32), c.word[0], c.word[1], c.word[2], c.word[3]);
}

/* Uniform in [0, 1) with 24 bits. */
HOST_DEVICE float philox_uniform(uint32_t word) { return (float)(word >> 8) * 0x1p-24f; }

/* Uniform integer in [0, n) by multiplication (bias below n / 2^32). */
HOST_DEVICE uint32_t philox_below(uint32_t word, uint32_t n) { return (uint32_t)(((uint64_t)word * n) >> 32); }

#endif
