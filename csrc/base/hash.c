/* XXH64, implemented from its specification. */
#include "base/hash.h"

#include "base/bytes.h"

#define P1 0x9E3779B185EBCA87ULL
#define P2 0xC2B2AE3D27D4EB4FULL
#define P3 0x165667B19E3779F9ULL
#define P4 0x85EBCA77C2B2AE63ULL
#define P5 0x27D4EB2F165667C5ULL

static uint64_t hash_rotate(uint64_t x, int bits) { return (x << bits) | (x >> (64 - bits)); }

static uint64_t lane(uint64_t accumulator, uint64_t word) { return hash_rotate(accumulator + word * P2, 31) * P1; }

static uint64_t hash_merge(uint64_t accumulator, uint64_t word) { return (accumulator ^ lane(0, word)) * P1 + P4; }

uint64_t hash_bytes(const void *data, size_t size, uint64_t seed) {
    static const unsigned char nothing[1]; /* avoids arithmetic on NULL, which is allowed with size 0 */
    const unsigned char *at = size == 0 ? nothing : data, *end = at + size;
    uint64_t h = seed + P5;
    if (size >= 32) {
        uint64_t a = seed + P1 + P2, b = seed + P2, c = seed, d = seed - P1;
        for (; end - at >= 32; at += 32) {
            a = lane(a, load_u64(at));
            b = lane(b, load_u64(at + 8));
            c = lane(c, load_u64(at + 16));
            d = lane(d, load_u64(at + 24));
        }
        h = hash_rotate(a, 1) + hash_rotate(b, 7) + hash_rotate(c, 12) + hash_rotate(d, 18);
        h = hash_merge(hash_merge(hash_merge(hash_merge(h, a), b), c), d);
    }
    h += size;
    for (; end - at >= 8; at += 8) h = hash_rotate(h ^ lane(0, load_u64(at)), 27) * P1 + P4;
    if (end - at >= 4) {
        h = hash_rotate(h ^ load_u32(at) * P1, 23) * P2 + P3;
        at += 4;
    }
    for (; at < end; at++) h = hash_rotate(h ^ *at * P5, 11) * P1;
    h = (h ^ (h >> 33)) * P2;
    h = (h ^ (h >> 29)) * P3;
    return h ^ (h >> 32);
}
