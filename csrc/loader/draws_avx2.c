/* Philox for AVX2: eight counters at once, in two vectors whose rounds hide each other's latency. A word is the low
 * half of a 64-bit lane; the high half does not matter until the end. */
#if defined(__x86_64__)

#include "loader/draws.h"

#include <immintrin.h>

#include "base/philox.h"

#define VECTORS 2 /* of four counters */

typedef struct State {
    __m256i c[4];
} State;

static inline State state_at(const LoaderDraws *draws, uint64_t counter) {
    const __m256i item = _mm256_add_epi64(_mm256_set1_epi64x((long long)counter), _mm256_set_epi64x(3, 2, 1, 0));
    State s = {{item, _mm256_srli_epi64(item, 32), _mm256_set1_epi64x((long long)draws->epoch),
                _mm256_set1_epi64x((long long)PHILOX_ORDER << 16 | (draws->index & 0xFFFFu))}};
    return s;
}

static inline State rounded(State s, __m256i k0, __m256i k1) {
    const __m256i p0 = _mm256_mul_epu32(_mm256_set1_epi64x(PHILOX_M0), s.c[0]);
    const __m256i p1 = _mm256_mul_epu32(_mm256_set1_epi64x(PHILOX_M1), s.c[2]);
    State out = {{_mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(p1, 32), s.c[1]), k0), p1,
                  _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(p0, 32), s.c[3]), k1), p0}};
    return out;
}

/* Words 0 and 1, 2 and 3 of each counter make its two draws. */
static inline void store(State s, uint64_t *out) {
    const __m256i low = _mm256_set1_epi64x(UINT32_MAX);
    const __m256i even = _mm256_or_si256(_mm256_and_si256(s.c[0], low), _mm256_slli_epi64(s.c[1], 32));
    const __m256i odd = _mm256_or_si256(_mm256_and_si256(s.c[2], low), _mm256_slli_epi64(s.c[3], 32));
    const __m256i a = _mm256_unpacklo_epi64(even, odd), b = _mm256_unpackhi_epi64(even, odd);
    _mm256_storeu_si256((__m256i *)(void *)out, _mm256_permute2x128_si256(a, b, 0x20));
    _mm256_storeu_si256((__m256i *)(void *)(out + 4), _mm256_permute2x128_si256(a, b, 0x31));
}

void loader_draws_avx2(const LoaderDraws *draws, uint64_t first, uint64_t groups, uint64_t *out) {
    __m256i keys[PHILOX_ROUNDS][2];
    uint32_t k0 = (uint32_t)draws->seed, k1 = (uint32_t)(draws->seed >> 32);
    for (int round = 0; round < PHILOX_ROUNDS; round++, k0 += PHILOX_W0, k1 += PHILOX_W1) {
        keys[round][0] = _mm256_set1_epi64x((long long)k0);
        keys[round][1] = _mm256_set1_epi64x((long long)k1);
    }
    for (uint64_t group = 0; group < groups; group++, out += 2 * LOADER_DRAWS_GROUP) {
        State s[VECTORS];
        for (uint64_t v = 0; v < VECTORS; v++) s[v] = state_at(draws, first + group * LOADER_DRAWS_GROUP + 4 * v);
        for (int round = 0; round < PHILOX_ROUNDS; round++) {
            for (int v = 0; v < VECTORS; v++) s[v] = rounded(s[v], keys[round][0], keys[round][1]);
        }
        for (int v = 0; v < VECTORS; v++) store(s[v], out + 8 * v);
    }
}

#else
typedef int LoaderDrawsAvx2Unused;
#endif
