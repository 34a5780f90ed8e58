/* The vectorised kernels, shared by all instruction sets. The including file has defined VF and VI (vectors of LANES
 * float32 and int32), the primitives on them (v_*), pack_block, and KERNELS (the table to define) with KERNELS_NAME. A
 * block is 4 vectors: the elements that one draw of random numbers serves and one packing step takes. */
#include "base/checked.h"
#include "quant/rotation.h"

#define BLOCK (4 * LANES)

/* The vector at element `i`, from which `left` elements are left; lanes beyond them take `fill`. */
INLINE VF load_some(const void *x, QuantType type, int64_t i, int64_t left, VF fill) {
    if (left >= LANES) return v_load(x, type, i);
    return left <= 0 ? fill : v_load_part(x, type, i, (int)left, fill);
}

/* A whole vector from element `i` of the input on, scaled. */
INLINE VF load_whole(QuantInput in, QuantType type, int64_t i) {
    return in.scale == 1.0f ? v_load(in.x, type, i) : v_mul(v_load(in.x, type, i), v_set1(in.scale));
}

/* The vector at element `i` of the input, scaled; lanes beyond take `fill` as it is. */
INLINE VF load_scaled(QuantInput in, QuantType type, int64_t i, VF fill) {
    int64_t left = in.elems - i;
    if (left >= LANES) return load_whole(in, type, i);
    if (left <= 0) return fill;
    VF part = v_load_part(in.x, type, i, (int)left, fill);
    return v_first(v_mul(part, v_set1(in.scale)), (int)left, fill);
}

INLINE QuantRange range_of(const void *x, QuantType type, int64_t elems) {
    VF first = v_set1(element_load(x, type, 0)), min = first, max = first;
    VI magnitude = v_magnitude(first);
    int64_t i = 0;
    for (; i + BLOCK <= elems; i += BLOCK) {
        VF a = v_load(x, type, i), b = v_load(x, type, i + LANES);
        VF c = v_load(x, type, i + 2 * LANES), d = v_load(x, type, i + 3 * LANES);
        min = v_min(min, v_min(v_min(a, b), v_min(c, d)));
        max = v_max(max, v_max(v_max(a, b), v_max(c, d)));
        VI ab = v_maxu(v_magnitude(a), v_magnitude(b)), cd = v_maxu(v_magnitude(c), v_magnitude(d));
        magnitude = v_maxu(magnitude, v_maxu(ab, cd));
    }
    for (; i < elems; i += LANES) {
        VF a = load_some(x, type, i, elems - i, first);
        min = v_min(min, a);
        max = v_max(max, a);
        magnitude = v_maxu(magnitude, v_magnitude(a));
    }
    return (QuantRange){v_reduce_maxu(magnitude), v_reduce_min(min), v_reduce_max(max)};
}

static QuantRange range(QuantInput input) {
    QuantRange found;
    if (input.type == QUANT_F32) {
        found = range_of(input.x, QUANT_F32, input.elems);
    } else if (input.type == QUANT_F16) {
        found = range_of(input.x, QUANT_F16, input.elems);
    } else {
        found = range_of(input.x, QUANT_BF16, input.elems);
    }
    return quant_range_scaled(found, input.scale);
}

#define SUM_VECTORS (QUANT_PARTIALS / LANES)

INLINE float magnitude_sum_of(QuantInput in, QuantType type) {
    VF partial[SUM_VECTORS];
    for (int v = 0; v < SUM_VECTORS; v++) partial[v] = v_set1(0.0f);
    for (int64_t i = 0; i < in.elems; i += QUANT_PARTIALS) {
        for (int v = 0; v < SUM_VECTORS; v++) {
            VF a = load_scaled(in, type, i + v * LANES, v_set1(0.0f));
            partial[v] = v_add(partial[v], v_as_float(v_magnitude(a)));
        }
    }
    float sums[QUANT_PARTIALS];
    for (int v = 0; v < SUM_VECTORS; v++) v_store_float(sums + v * LANES, partial[v]);
    return quant_fold(sums);
}

static float magnitude_sum(QuantInput input) {
    if (input.type == QUANT_F32) return magnitude_sum_of(input, QUANT_F32);
    if (input.type == QUANT_F16) return magnitude_sum_of(input, QUANT_F16);
    return magnitude_sum_of(input, QUANT_BF16);
}

/* The keys of Philox's rounds, and the part of its counter that stays the same within a bucket. */
typedef struct Keys {
    uint32_t k0[PHILOX_ROUNDS], k1[PHILOX_ROUNDS], c2, c3;
} Keys;

INLINE void keys_make(const QuantRandom *r, Keys *keys) {
    uint32_t k0 = (uint32_t)r->seed, k1 = (uint32_t)(r->seed >> 32);
    for (int round = 0; round < PHILOX_ROUNDS; round++) {
        keys->k0[round] = k0 + (uint32_t)round * PHILOX_W0;
        keys->k1[round] = k1 + (uint32_t)round * PHILOX_W1;
    }
    keys->c2 = r->call;
    keys->c3 = ((uint32_t)PHILOX_QUANTIZE << 16) | (r->rank & 0xFFFFu);
}

/* Half a block's words: the quads from `first` on, one per 64-bit lane, of which only the low half counts until the
 * words are joined. v_quads numbers them so that joining puts them in order. */
INLINE void random_half(const Keys *keys, uint64_t first, VI word[2]) {
    VI c0 = v_quads(first), c1 = v_shift_right64(c0, 32), c2 = v_set1i(keys->c2), c3 = v_set1i(keys->c3);
#pragma GCC unroll 10
    for (int round = 0; round < PHILOX_ROUNDS; round++) {
        VI p0 = v_multiply(c0, v_set1i(PHILOX_M0)), p2 = v_multiply(c2, v_set1i(PHILOX_M1));
        c0 = v_xor3(v_shift_right64(p2, 32), c1, v_set1i(keys->k0[round]));
        c2 = v_xor3(v_shift_right64(p0, 32), c3, v_set1i(keys->k1[round]));
        c1 = p2;
        c3 = p0;
    }
    v_join(c0, c1, c2, c3, word);
}

/* LANES quads as BLOCK uniform numbers in element order. A function call per block costs little next to ten rounds. */
static __attribute__((noinline)) void random_block(const Keys *keys, uint64_t quad, VF uniform[4]) {
    VI word[4];
    random_half(keys, quad, word);
    random_half(keys, quad + LANES / 2, word + 2);
    for (int v = 0; v < 4; v++) uniform[v] = v_mul(v_to_float(v_shift_right(word[v], 8)), v_set1(0x1p-24f));
}

/* Codes of the block at element `i`: with `whole` it is full of elements, otherwise codes beyond them are 0. */
INLINE void encode_block(QuantInput in, QuantType type, const QuantEncode *e, const Keys *keys, int bits, int64_t i,
                         bool whole, VI code[4]) {
    VF min = v_set1(e->min), inverse = v_set1(e->inverse), uniform[4];
    VI levels = v_set1i((1u << bits) - 1u);
    if (keys != NULL) random_block(keys, e->random->quad + (uint64_t)(i / 4), uniform);
    for (int v = 0; v < 4; v++) {
        VF x = whole ? load_whole(in, type, i + v * LANES) : load_scaled(in, type, i + v * LANES, min);
        VF t = v_mul(v_sub(x, min), inverse);
        if (keys != NULL) {
            VI below = v_truncate(t);
            code[v] = v_minu(v_increment_if_less(below, uniform[v], v_sub(t, v_to_float(below))), levels);
        } else {
            code[v] = v_minu(v_truncate(v_add(t, v_set1(0.5f))), levels);
        }
    }
}

#define FOR_BITS(bits, CASE)                                                                                           \
    switch (bits) { CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) default : break; }

/* pack_block with a constant number of bits; the branch is the same for a whole bucket. */
INLINE void pack_any(const VI code[4], int bits, uint8_t *to) {
#define CASE(q)                                                                                                        \
    case q:                                                                                                            \
        pack_block(code, q, to);                                                                                       \
        break;
    FOR_BITS(bits, CASE)
#undef CASE
}

/* Packs a block near the end of the codes, of which `left` bytes remain: pack_block may write more than it fills. */
static __attribute__((noinline)) void pack_last(const VI code[4], int bits, uint8_t *to, int64_t left) {
    uint8_t buffer[BLOCK + 16];
    int64_t whole = BLOCK / 8 * bits;
    pack_any(code, bits, buffer);
    memcpy(to, buffer, (size_t)(left < whole ? left : whole));
}

/* The bytes that pack_block touches. */
INLINE int pack_touches(int bits) { return BLOCK / 8 * bits + (is_power_of_two((uint64_t)bits) ? 0 : 16); }

/* Packs a block to `offset` of `bytes` in all; `writes`: pack_touches(bits). */
INLINE void pack_at(const VI code[4], int bits, int writes, uint8_t *codes, int64_t offset, int64_t bytes) {
    if (bytes - offset >= writes) {
        pack_any(code, bits, codes + offset);
    } else {
        pack_last(code, bits, codes + offset, bytes - offset);
    }
}

INLINE void encode_with(QuantInput in, QuantType type, const QuantEncode *e, int bits, bool stochastic,
                        uint8_t *codes) {
    const int writes = pack_touches(bits);
    int64_t bytes = (in.elems * bits + 7) / 8, offset = 0, i = 0;
    Keys keys;
    if (stochastic) keys_make(e->random, &keys);
    for (; i + BLOCK <= in.elems && offset + writes <= bytes; i += BLOCK, offset += BLOCK / 8 * bits) {
        VI code[4];
        encode_block(in, type, e, stochastic ? &keys : NULL, bits, i, true, code);
        pack_any(code, bits, codes + offset);
    }
    for (; i < in.elems; i += BLOCK, offset += BLOCK / 8 * bits) {
        VI code[4];
        encode_block(in, type, e, stochastic ? &keys : NULL, bits, i, false, code);
        pack_at(code, bits, writes, codes, offset, bytes);
    }
}

/* The usual case, unscaled float32 to nearest: bits and scale are constants in its loop. */
static void encode_usual(QuantInput in, const QuantEncode *e, uint8_t *codes) {
    in.scale = 1.0f;
#define CASE(q)                                                                                                        \
    case q:                                                                                                            \
        encode_with(in, QUANT_F32, e, q, false, codes);                                                                \
        break;
    FOR_BITS(e->bits, CASE)
#undef CASE
}

static void encode(QuantInput in, const QuantEncode *e, uint8_t *codes) {
    bool stochastic = e->random != NULL;
    if (in.type == QUANT_F32 && !stochastic && in.scale == 1.0f) {
        encode_usual(in, e, codes);
    } else if (in.type == QUANT_F32 && !stochastic) {
        encode_with(in, QUANT_F32, e, e->bits, false, codes);
    } else if (in.type == QUANT_F16 && !stochastic) {
        encode_with(in, QUANT_F16, e, e->bits, false, codes);
    } else if (in.type == QUANT_BF16 && !stochastic) {
        encode_with(in, QUANT_BF16, e, e->bits, false, codes);
    } else if (in.type == QUANT_F32) {
        encode_with(in, QUANT_F32, e, e->bits, true, codes);
    } else if (in.type == QUANT_F16) {
        encode_with(in, QUANT_F16, e, e->bits, true, codes);
    } else {
        encode_with(in, QUANT_BF16, e, e->bits, true, codes);
    }
}

INLINE void encode_sign_of(QuantInput in, QuantType type, uint8_t *codes) {
    VF zero = v_set1(0.0f);
    int64_t bytes = (in.elems + 7) / 8;
    for (int64_t i = 0; i < in.elems; i += BLOCK) {
        VI code[4];
        for (int v = 0; v < 4; v++) {
            VF x = load_scaled(in, type, i + v * LANES, zero);
            code[v] = v_increment_if_less(v_set1i(0), x, zero);
        }
        pack_at(code, 1, pack_touches(1), codes, i / 8, bytes);
    }
}

static void encode_sign(QuantInput in, uint8_t *codes) {
    if (in.type == QUANT_F32) {
        encode_sign_of(in, QUANT_F32, codes);
    } else if (in.type == QUANT_F16) {
        encode_sign_of(in, QUANT_F16, codes);
    } else {
        encode_sign_of(in, QUANT_BF16, codes);
    }
}

/* Division, as a multiplication where that gives the same bits (a power of two of moderate size). */
typedef struct Division {
    bool divide;
    float by;
} Division;

INLINE Division division_by(float divisor) {
    uint32_t bits = float_bits(divisor);
    bool power = (bits & 0x7FFFFFu) == 0 && bits >= 0x30000000u && bits <= 0x50000000u;
    return (Division){!power, power ? 1.0f / divisor : divisor};
}

INLINE VF divide(VF value, Division division) {
    return division.divide ? v_div(value, v_set1(division.by)) : v_mul(value, v_set1(division.by));
}

/* `finite`: the value has been decoded and nothing is added, so that only a division can make it NaN. */
INLINE void deliver(const QuantTarget *target, QuantType type, bool add, bool finite, Division division, int64_t i,
                    int64_t left, VF value) {
    if (add) {
        VF before = load_some(target->accumulate, QUANT_F32, i, left, v_set1(0.0f));
        value = v_add(target->scale == 1.0f ? before : v_mul(before, v_set1(target->scale)), value);
    }
    value = divide(value, division);
    if (left >= LANES) {
        v_store(target->to, type, i, value, finite && !division.divide);
    } else {
        v_store_part(target->to, type, i, (int)left, value);
    }
}

/* For codes that stand for the values of a table, which is repeated until the vector is full: what is looked up may
 * have bits of the next code above its own. */
INLINE Unpack unpack_levels(int bits, const float *levels) {
    float table[TABLE_VECTORS * LANES];
    Unpack unpack = unpack_make(bits);
    for (int i = 0; i < TABLE_VECTORS * LANES; i++) table[i] = levels[i & ((1 << bits) - 1)];
    for (int half = 0; half < TABLE_VECTORS; half++) unpack.table[half] = v_load(table, QUANT_F32, half * LANES);
    return unpack;
}

INLINE Unpack unpack_grid(int bits, float unit, float min) {
    float codes[LANES];
    Unpack unpack = unpack_make(bits);
    unpack.unit = v_set1(unit);
    unpack.min = v_set1(min);
    for (int i = 0; i < LANES; i++) codes[i] = (float)(i & ((1 << bits) - 1));
    for (int half = 0; half < TABLE_VECTORS; half++) {
        unpack.table[half] = v_add(unpack.min, v_mul(unpack.unit, v_load(codes, QUANT_F32, 0)));
    }
    return unpack;
}

/* Decodes whole vectors, as many as the elements and the readable bytes allow; returns how many elements these are. */
INLINE int64_t decode_whole(const uint8_t *codes, int bits, const Unpack *unpack, bool lookup, int64_t elems,
                            const QuantTarget *target, QuantType type, bool add, Division division) {
    const int window = LANES / 8 * bits; /* the bytes of a vector's codes */
    const int reads = is_power_of_two((uint64_t)bits) ? window : WINDOW_BYTES;
    const int64_t readable = ((elems * bits + 7) / 8 - reads + window) / window;
    const int64_t whole = elems / LANES < readable ? elems / LANES : readable;
    for (int64_t v = 0; v < whole; v++) {
        VF value = unpack_values(unpack, bits, lookup, load_window(codes + v * window, bits));
        deliver(target, type, add, !add, division, v * LANES, LANES, value);
    }
    return whole < 0 ? 0 : whole * LANES;
}

/* With `lookup` the values are those of unpack's table. */
INLINE void decode_with(const uint8_t *codes, int bits, Unpack unpack, bool lookup, int64_t elems, QuantTarget target,
                        QuantType type, bool add) {
    const int window = LANES / 8 * bits;
    Division division = division_by(target.divisor);
    if (!add && lookup) { /* divides the few values of the table instead of the many elements */
        for (int half = 0; half < TABLE_VECTORS; half++) {
            float levels[LANES];
            v_store(levels, QUANT_F32, 0, divide(unpack.table[half], division), false);
            unpack.table[half] = v_load(levels, QUANT_F32, 0);
        }
        division = division_by(1.0f);
    }
    int64_t i;
    if (division.divide) {
        i = decode_whole(codes, bits, &unpack, lookup, elems, &target, type, add, (Division){true, division.by});
    } else {
        i = decode_whole(codes, bits, &unpack, lookup, elems, &target, type, add, (Division){false, division.by});
    }
    for (; i < elems; i += LANES) {
        int64_t offset = i * bits / 8, left = (elems * bits + 7) / 8 - offset;
        VI some = load_window_part(codes + offset, bits, left < window ? (int)left : window);
        VF value = unpack_values(&unpack, bits, lookup, some);
        deliver(&target, type, add, false, division, i, elems - i, value);
    }
}

INLINE void decode_type(const uint8_t *codes, int bits, float unit, float min, int64_t elems, const QuantTarget *target,
                        QuantType type, bool add) {
#define CASE(q)                                                                                                        \
    case q:                                                                                                            \
        decode_with(codes, q, unpack_grid(q, unit, min), q <= TABLE_BITS, elems, *target, type, add);                  \
        break;
    FOR_BITS(bits, CASE)
#undef CASE
}

/* CALL(type, add) with both constant. */
#define FOR_TARGET(target, CALL)                                                                                       \
    do {                                                                                                               \
        bool add_ = (target)->accumulate != NULL;                                                                      \
        QuantType type_ = (target)->type;                                                                              \
        if (type_ == QUANT_F32 && add_) CALL(QUANT_F32, true);                                                         \
        if (type_ == QUANT_F32 && !add_) CALL(QUANT_F32, false);                                                       \
        if (type_ == QUANT_F16 && add_) CALL(QUANT_F16, true);                                                         \
        if (type_ == QUANT_F16 && !add_) CALL(QUANT_F16, false);                                                       \
        if (type_ == QUANT_BF16 && add_) CALL(QUANT_BF16, true);                                                       \
        if (type_ == QUANT_BF16 && !add_) CALL(QUANT_BF16, false);                                                     \
    } while (0)

static void decode(const uint8_t *codes, int bits, float unit, float min, int64_t elems, const QuantTarget *target) {
#define CALL(TYPE, ADD) decode_type(codes, bits, unit, min, elems, target, TYPE, ADD)
    FOR_TARGET(target, CALL);
#undef CALL
}

INLINE void pass_with(QuantInput in, QuantTarget target, QuantType from, QuantType type, bool add) {
    Division division = division_by(target.divisor);
    int64_t i = 0;
    for (; i + LANES <= in.elems; i += LANES) {
        deliver(&target, type, add, false, division, i, LANES, load_whole(in, from, i));
    }
    for (; i < in.elems; i += LANES) {
        VF value = load_scaled(in, from, i, v_set1(0.0f));
        deliver(&target, type, add, false, division, i, in.elems - i, value);
    }
}

static void pass(QuantInput in, const QuantTarget *target) {
#define CALL(TYPE, ADD)                                                                                                \
    do {                                                                                                               \
        if (in.type == QUANT_F32) pass_with(in, *target, QUANT_F32, TYPE, ADD);                                        \
        if (in.type == QUANT_F16) pass_with(in, *target, QUANT_F16, TYPE, ADD);                                        \
        if (in.type == QUANT_BF16) pass_with(in, *target, QUANT_BF16, TYPE, ADD);                                      \
    } while (0)
    FOR_TARGET(target, CALL);
#undef CALL
}

/* ---- rotated buckets ---- */

static void turn_signs(float *values, const uint32_t *words, int64_t count) {
    for (int64_t i = 0; i < count; i += LANES) {
        VF a = v_load(values, QUANT_F32, i);
        v_store_float(values + i, v_negate_where(a, words[i / 32] >> (i % 32)));
    }
}

/* The butterflies within a vector: (low + high, low - high), of lanes `h` apart; `high` has the bits of high lanes. */
INLINE VF butterfly_within(VF a, int h, uint32_t high) { return v_add(v_swap(a, h), v_negate_where(a, high)); }

INLINE void butterfly(VF *a, VF *b) {
    VF sum = v_add(*a, *b);
    *b = v_sub(*a, *b);
    *a = sum;
}

/* Two stages at once, h and 2 h. */
INLINE void rotate_twice(float *values, int64_t count, int64_t h) {
    for (int64_t base = 0; base < count; base += 4 * h) {
        for (float *at = values + base; at < values + base + h; at += LANES) {
            VF v[4];
            for (int k = 0; k < 4; k++) v[k] = v_load(at + k * h, QUANT_F32, 0);
            butterfly(&v[0], &v[1]);
            butterfly(&v[2], &v[3]);
            butterfly(&v[0], &v[2]);
            butterfly(&v[1], &v[3]);
            for (int k = 0; k < 4; k++) v_store_float(at + k * h, v[k]);
        }
    }
}

static void rotate(float *values, int64_t count) {
    VF factor = v_set1(quant_rotation_factor(count));
    int64_t h = LANES;
    for (int64_t i = 0; i < count; i += LANES) {
        VF a = v_load(values, QUANT_F32, i);
        a = butterfly_within(a, 1, 0xAAAAu);
        a = butterfly_within(a, 2, 0xCCCCu);
        a = butterfly_within(a, 4, 0xF0F0u);
        if (LANES > 8) a = butterfly_within(a, 8, 0xFF00u);
        v_store_float(values + i, a);
    }
    for (; 4 * h <= count; h *= 4) rotate_twice(values, count, h);
    for (int64_t i = 0; h < count && i < h; i += LANES) {
        VF a = v_load(values, QUANT_F32, i), b = v_load(values, QUANT_F32, i + h);
        butterfly(&a, &b);
        v_store_float(values + i, a);
        v_store_float(values + i + h, b);
    }
    for (int64_t i = 0; i < count; i += LANES) v_store_float(values + i, v_mul(v_load(values, QUANT_F32, i), factor));
}

static float dot(const float *a, const float *b, int64_t count) {
    VF partial[SUM_VECTORS];
    float sums[QUANT_PARTIALS];
    for (int v = 0; v < SUM_VECTORS; v++) partial[v] = v_set1(0.0f);
    for (int64_t i = 0; i < count; i += QUANT_PARTIALS) {
        for (int v = 0; v < SUM_VECTORS; v++) {
            VF product = v_mul(v_load(a, QUANT_F32, i + v * LANES), v_load(b, QUANT_F32, i + v * LANES));
            partial[v] = v_add(partial[v], product);
        }
    }
    for (int v = 0; v < SUM_VECTORS; v++) v_store_float(sums + v * LANES, partial[v]);
    return quant_fold(sums);
}

INLINE void encode_levels_of(const float *values, int bits, float inverse, int64_t count, uint8_t *codes) {
    const int writes = pack_touches(bits);
    int64_t bytes = count * bits / 8, offset = 0;
    for (int64_t i = 0; i < count; i += BLOCK, offset += BLOCK / 8 * bits) {
        VI code[4];
        for (int v = 0; v < 4; v++) {
            int64_t at = i + v * LANES;
            VF t = v_mul(load_some(values, QUANT_F32, at, count - at, v_set1(0.0f)), v_set1(inverse));
            code[v] = v_set1i(0);
            for (int k = 0; k + 1 < 1 << bits; k++) {
                code[v] = v_increment_if_less(code[v], v_set1(quant_threshold(bits, k)), t);
            }
        }
        pack_at(code, bits, writes, codes, offset, bytes);
    }
}

#define FOR_LEVEL_BITS(bits, CASE)                                                                                     \
    switch (bits) { CASE(1) CASE(2) CASE(3) CASE(4) default : break; }

static void encode_levels(const float *values, int bits, float inverse, int64_t count, uint8_t *codes) {
#define CASE(q)                                                                                                        \
    case q:                                                                                                            \
        encode_levels_of(values, q, inverse, count, codes);                                                            \
        break;
    FOR_LEVEL_BITS(bits, CASE)
#undef CASE
}

static void decode_levels(const uint8_t *codes, int bits, const float *levels, int64_t count,
                          const QuantTarget *target) {
    bool add = target->accumulate != NULL;
#define CASE(q)                                                                                                        \
    case q:                                                                                                            \
        if (add) decode_with(codes, q, unpack_levels(q, levels), true, count, *target, QUANT_F32, true);               \
        if (!add) decode_with(codes, q, unpack_levels(q, levels), true, count, *target, QUANT_F32, false);             \
        break;
    FOR_LEVEL_BITS(bits, CASE)
#undef CASE
}

const QuantKernels KERNELS = {KERNELS_NAME, range,      magnitude_sum, encode, encode_sign,   decode,
                              pass,         turn_signs, rotate,        dot,    encode_levels, decode_levels};
