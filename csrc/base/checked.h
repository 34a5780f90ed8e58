/* Arithmetic on numbers that came from a file or a peer: each function returns false instead of overflowing. */
#ifndef CGXFFCV_BASE_CHECKED_H
#define CGXFFCV_BASE_CHECKED_H

#include <stdbool.h>
#include <stdint.h>

static inline bool checked_add(uint64_t a, uint64_t b, uint64_t *sum) { return !__builtin_add_overflow(a, b, sum); }

static inline bool checked_mul(uint64_t a, uint64_t b, uint64_t *product) {
    return !__builtin_mul_overflow(a, b, product);
}

/* Rounds up to a multiple of `alignment`, which must be a power of two. */
static inline bool checked_round_up(uint64_t value, uint64_t alignment, uint64_t *rounded) {
    uint64_t sum;
    if (!checked_add(value, alignment - 1, &sum)) return false;
    *rounded = sum & ~(alignment - 1);
    return true;
}

/* Whether [offset, offset + size) lies within [0, limit). */
static inline bool checked_within(uint64_t offset, uint64_t size, uint64_t limit) {
    return offset <= limit && size <= limit - offset;
}

static inline bool is_power_of_two(uint64_t value) { return value != 0 && (value & (value - 1)) == 0; }

/* Rounds up to a multiple of `to`, unchecked: for trusted numbers far from the end of the range. */
static inline uint64_t round_up(uint64_t value, uint64_t to) { return (value + to - 1) / to * to; }

#endif
