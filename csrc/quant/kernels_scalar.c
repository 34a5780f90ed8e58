/* The reference kernels: one element at a time, in the words of docs/WIRE.md. Every other form must give the same
 * bytes. */
#include "quant/kernels.h"

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
    float partial[QUANT_SIGN_PARTIALS] = {0};
    for (int64_t i = 0; i < input.elems; i++) {
        float x = quant_load(input, i);
        partial[i % QUANT_SIGN_PARTIALS] += float_of_bits(float_bits(x) & 0x7FFFFFFFu);
    }
    for (int width = QUANT_SIGN_PARTIALS / 2; width >= 1; width /= 2) {
        for (int i = 0; i < width; i++) partial[i] += partial[i + width];
    }
    return partial[0];
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

static void decode(const uint8_t *codes, int bits, float unit, float min, int64_t elems, const QuantTarget *target) {
    uint32_t held = 0, mask = (1u << bits) - 1u;
    int count = 0;
    for (int64_t i = 0; i < elems; i++) {
        if (count < bits) {
            held |= (uint32_t)*codes++ << count;
            count += 8;
        }
        quant_deliver(target, i, quant_decode(held & mask, unit, min));
        held >>= bits;
        count -= bits;
    }
}

static void pass(QuantInput input, const QuantTarget *target) {
    for (int64_t i = 0; i < input.elems; i++) quant_deliver(target, i, quant_load(input, i));
}

const QuantKernels quant_kernels_scalar = {"scalar", range, magnitude_sum, encode, encode_sign, decode, pass};
