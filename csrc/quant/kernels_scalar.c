/* The reference kernels: one element at a time, as docs/WIRE.md puts it. Every other implementation must give the same
 * bytes. */
#include "quant/kernels.h"
#include "quant/rotation.h"

static QuantRange range(QuantInput input) {
    float first = element_load(input.x, input.type, 0);
    QuantRange found = {0, first, first};
    for (int64_t i = 0; i < input.elems; i++) {
        float x = element_load(input.x, input.type, i);
        uint32_t magnitude = float_bits(x) & 0x7FFFFFFFu;
        if (magnitude > found.magnitude) found.magnitude = magnitude;
        if (x < found.min) found.min = x;
        if (x > found.max) found.max = x;
    }
    return quant_range_scaled(found, input.scale);
}

static float magnitude_sum(QuantInput input) {
    float partial[QUANT_PARTIALS] = {0};
    for (int64_t i = 0; i < input.elems; i++) {
        float x = quant_load(input, i);
        partial[i % QUANT_PARTIALS] += float_of_bits(float_bits(x) & 0x7FFFFFFFu);
    }
    return quant_fold(partial);
}

/* A little-endian stream of codes. */
typedef struct BitWriter {
    uint8_t *at;
    uint32_t held;
    int count;
} BitWriter;

static void bits_put(BitWriter *writer, uint32_t code, int bits) {
    writer->held |= code << writer->count;
    for (writer->count += bits; writer->count >= 8; writer->count -= 8) {
        *writer->at++ = (uint8_t)writer->held;
        writer->held >>= 8;
    }
}

static void bits_flush(BitWriter *writer) {
    if (writer->count > 0) *writer->at = (uint8_t)writer->held;
}

static void encode(QuantInput input, const QuantEncode *e, uint8_t *codes) {
    BitWriter writer = {codes, 0, 0};
    uint32_t levels = (1u << e->bits) - 1u;
    Philox4 random = {{0}};
    for (int64_t i = 0; i < input.elems; i++) {
        float place = quant_place(quant_load(input, i), e->min, e->inverse);
        uint32_t code;
        if (e->random == NULL) {
            code = quant_code_nearest(place, levels);
        } else {
            const QuantRandom *r = e->random;
            if (i % 4 == 0) {
                random = philox_at(r->seed, r->call, r->quad + (uint64_t)(i / 4), PHILOX_QUANTIZE, r->rank);
            }
            code = quant_code_stochastic(place, philox_uniform(random.word[i % 4]), levels);
        }
        bits_put(&writer, code, e->bits);
    }
    bits_flush(&writer);
}

static void encode_sign(QuantInput input, uint8_t *codes) {
    BitWriter writer = {codes, 0, 0};
    for (int64_t i = 0; i < input.elems; i++) bits_put(&writer, quant_load(input, i) < 0.0f, 1);
    bits_flush(&writer);
}

typedef struct BitReader {
    const uint8_t *at;
    uint32_t held;
    int count;
} BitReader;

static uint32_t bits_take(BitReader *reader, int bits) {
    if (reader->count < bits) {
        reader->held |= (uint32_t)*reader->at++ << reader->count;
        reader->count += 8;
    }
    uint32_t code = reader->held & ((1u << bits) - 1u);
    reader->held >>= bits;
    reader->count -= bits;
    return code;
}

static void decode(const uint8_t *codes, int bits, float unit, float min, int64_t elems, const QuantTarget *target) {
    BitReader reader = {codes, 0, 0};
    for (int64_t i = 0; i < elems; i++) quant_deliver(target, i, quant_decode(bits_take(&reader, bits), unit, min));
}

static void pass(QuantInput input, const QuantTarget *target) {
    for (int64_t i = 0; i < input.elems; i++) quant_deliver(target, i, quant_load(input, i));
}

static void turn_signs(float *values, const uint32_t *words, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        values[i] = float_of_bits(float_bits(values[i]) ^ (words[i / 32] >> (i % 32) & 1u) << 31);
    }
}

static void rotate(float *values, int64_t count) {
    float factor = quant_rotation_factor(count);
    for (int64_t h = 1; h < count; h *= 2) {
        for (int64_t i = 0; i < count; i++) {
            if ((i & h) != 0) continue;
            float a = values[i], b = values[i + h];
            values[i] = a + b;
            values[i + h] = a - b;
        }
    }
    for (int64_t i = 0; i < count; i++) values[i] *= factor;
}

static float dot(const float *a, const float *b, int64_t count) {
    float partial[QUANT_PARTIALS] = {0};
    for (int64_t i = 0; i < count; i++) partial[i % QUANT_PARTIALS] += a[i] * b[i];
    return quant_fold(partial);
}

static void encode_levels(const float *values, int bits, float inverse, int64_t count, uint8_t *codes) {
    BitWriter writer = {codes, 0, 0};
    for (int64_t i = 0; i < count; i++) {
        float t = values[i] * inverse;
        uint32_t code = 0;
        for (int k = 0; k + 1 < 1 << bits; k++) code += quant_threshold(bits, k) < t;
        bits_put(&writer, code, bits);
    }
    bits_flush(&writer);
}

static void decode_levels(const uint8_t *codes, int bits, const float *levels, int64_t count,
                          const QuantTarget *target) {
    BitReader reader = {codes, 0, 0};
    for (int64_t i = 0; i < count; i++) quant_deliver(target, i, levels[bits_take(&reader, bits)]);
}

const QuantKernels quant_kernels_scalar = {"scalar", range,      magnitude_sum, encode, encode_sign,   decode,
                                           pass,     turn_signs, rotate,        dot,    encode_levels, decode_levels};
