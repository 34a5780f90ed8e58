// rooms: base quant
#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "base/philox.h"
#include "check.h"
#include "quant/quantize.h"

static const char *const names[] = {"scalar", "avx2", "avx512"};

/* Exactly as many bytes as the caller may touch, so that the sanitizer sees one more. */
static void *exact(size_t bytes) {
    void *pointer = NULL;
    CHECK_OK(memory_alloc(bytes, 1, &pointer));
    return (uint8_t *)pointer + (64 - bytes % 64) % 64; /* the allocation is rounded up: end at its end */
}

static void release(void *pointer, size_t bytes) { memory_free((uint8_t *)pointer - (64 - bytes % 64) % 64); }

static uint32_t draw(uint32_t i, uint32_t below) {
    return philox_below(philox_at(7, 0, i, PHILOX_TEST, 0).word[0], below);
}

/* Random elements, now and then a random bit pattern. */
static void fill(void *x, QuantType type, int64_t elems, uint32_t seed) {
    for (int64_t i = 0; i < elems; i++) {
        Philox4 p = philox_at(seed, 1, (uint64_t)i, PHILOX_TEST, 0);
        uint32_t bits = p.word[1];
        float value = philox_uniform(p.word[0]) - 0.5f;
        if (p.word[2] % 97 != 0) memcpy(&bits, &value, sizeof bits);
        if (type == QUANT_F32) memcpy((uint8_t *)x + 4 * i, &bits, 4);
        uint16_t half = (uint16_t)(type == QUANT_F16 ? 0x3000u + (p.word[3] & 0x8FFFu) : bits >> 16);
        if (type != QUANT_F32) memcpy((uint8_t *)x + 2 * i, &half, 2);
    }
}

static QuantSpec random_spec(uint32_t i) {
    QuantSpec spec = {.bits = 1 + (int)draw(i, 8),
                      .type = (QuantType)draw(i + 1, 3),
                      .codec = (QuantCodec)draw(i + 2, QUANT_CODEC_COUNT)};
    spec.bucket_size = 1 + draw(i + 3, draw(i + 4, 2) != 0 ? 300 : 40);
    spec.rounding = (QuantRounding)draw(i + 5, 2);
    spec.half_metadata = spec.type != QUANT_F32 && draw(i + 6, 2) != 0;
    if (spec.codec == QUANT_SIGN) spec.bits = 1;
    if (spec.codec == QUANT_ROTATED) {
        spec.bits = 1 + (int)draw(i, 4);
        spec.bucket_size = INT64_C(64) << draw(i + 3, 4);
        spec.rounding = QUANT_NEAREST;
        spec.half_metadata = false;
        spec.scale = (QuantScale)draw(i + 4, 3);
    }
    if (spec.codec == QUANT_SPIKES) spec.spikes = quantize_default_spikes(spec.bucket_size);
    return spec;
}

/* What is entered and quantised as a sum is what is quantised at once, and so with the way back, on the kernels at
 * hand. */
static void sums_case(const QuantSpec *spec, QuantInput input, const QuantRandom *random, void *wire,
                      const void *expected) {
    size_t bytes = (size_t)quantize_values(spec, input.elems) * 4, out_bytes = (size_t)input.elems * 4;
    float *sum = exact(bytes), *out = exact(out_bytes), *direct = exact(out_bytes);
    QuantTarget values = {NULL, 1.0f, 1.0f, QUANT_F32, sum}, elems = {NULL, 1.0f, 3.0f, QUANT_F32, out};
    if (!spec->half_metadata) {
        CHECK_OK(quantize_enter(spec, input, random, &values, NULL));
        CHECK_OK(quantize_sum(spec, (QuantInput){sum, QUANT_F32, input.elems, 1.0f}, random, NULL, wire));
        CHECK(memcmp(wire, expected, quantize_wire_bytes(spec, input.elems)) == 0);
    }
    CHECK_OK(dequantize_sum(spec, expected, input.elems, &values, NULL));
    CHECK_OK(quantize_leave(spec, (QuantInput){sum, QUANT_F32, input.elems, 1.0f}, random, &elems, NULL));
    elems.to = direct;
    CHECK_OK(dequantize(spec, expected, input.elems, &elems, random, NULL));
    CHECK(memcmp(out, direct, out_bytes) == 0);
    release(direct, out_bytes), release(out, out_bytes), release(sum, bytes);
}

/* One random case on every instruction set: equal bytes, nothing touched beyond them. */
static void one_case(uint32_t i) {
    QuantSpec spec = random_spec(i * 16);
    int64_t elems = 1 + draw(i * 16 + 8, 1200);
    size_t item = quantize_item_bytes(spec.type), in = (size_t)elems * item,
           wire_bytes = quantize_wire_bytes(&spec, elems);
    void *x = exact(in), *wire = exact(wire_bytes), *first = exact(wire_bytes), *out = exact(in),
         *first_out = exact(in);
    size_t sum_bytes = (size_t)quantize_values(&spec, elems) * 4;
    float *sum = exact(sum_bytes);
    QuantRandom random = {i, 3, 2, 0xFFFFFFF0u};
    QuantInput input = {x, spec.type, elems, spec.half_metadata || draw(i * 16 + 9, 2) != 0 ? 1.0f : 0x1p-5f};
    CHECK_OK(quantize_check(&spec));
    fill(x, spec.type, elems, i);
    for (int k = 0; k < 3; k++) {
        if (!quantize_select_kernels(names[k])) continue;
        memset(sum, 0, sum_bytes);
        CHECK_OK(quantize(&spec, input, &random, NULL, k == 0 ? first : wire));
        QuantTarget target = {NULL, 1.0f, 3.0f, spec.type, k == 0 ? first_out : out};
        CHECK_OK(dequantize(&spec, first, elems, &target, &random, NULL));
        CHECK_OK(quantize_inspect(&spec, first, elems)); /* what has been written is what can be written */
        if (k > 0) CHECK(memcmp(wire, first, wire_bytes) == 0 && memcmp(out, first_out, in) == 0);
        QuantTarget adding = {sum, 1.0f, 1.0f, QUANT_F32, sum};
        CHECK_OK(dequantize_sum(&spec, first, elems, &adding, NULL));
        CHECK_OK(quantize_enter(&spec, input, &random, &adding, NULL));
    }
    sums_case(&spec, input, &random, wire, first);
    if (!spec.half_metadata) { /* scaled on the way is scaled before */
        QuantTarget scaled = {NULL, 1.0f, 1.0f, QUANT_F32, sum};
        CHECK_OK(quantize_pass(input, &scaled, NULL));
        CHECK_OK(quantize(&spec, (QuantInput){sum, QUANT_F32, elems, 1.0f}, &random, NULL, wire));
        CHECK(memcmp(wire, first, wire_bytes) == 0);
    }
    release(sum, sum_bytes);
    release(first_out, in), release(out, in), release(first, wire_bytes), release(wire, wire_bytes), release(x, in);
}

/* Elements that are multiplied by a power of two on their way have the codes of those multiplied before. */
static void scaled_case(QuantSpec spec, uint64_t seed, const float *x, int64_t elems, float scale) {
    float scaled[64];
    uint8_t one[256], other[256];
    const QuantRandom random = {seed, 0, 0, 0};
    for (int64_t k = 0; k < elems; k++) scaled[k] = x[k] * scale;
    for (int k = 0; k < 3; k++) {
        if (!quantize_select_kernels(names[k])) continue;
        CHECK_OK(quantize(&spec, (QuantInput){x, QUANT_F32, elems, scale}, &random, NULL, one));
        CHECK_OK(quantize(&spec, (QuantInput){scaled, QUANT_F32, elems, 1.0f}, &random, NULL, other));
        CHECK(memcmp(one, other, quantize_wire_bytes(&spec, elems)) == 0);
    }
}

/* At whatever size of elements and minima, on either side of where scaled numbers lose bits. */
static void test_scaled_on_the_way(void) {
    static const int exponents[] = {-149, -130, -126, -122, -121, -110, -101, -100, -97, -95, -80,
                                    -70,  -66,  -65,  -40,  0,    55,   60,   64,   66,  100, 127};
    const uint32_t sizes = sizeof exponents / sizeof *exponents;
    float x[64];
    for (uint32_t i = 0; i < 2000; i++) {
        QuantSpec spec = {
            .bits = 1 + (int)draw(8 * i, 8), .bucket_size = 64, .rounding = (QuantRounding)draw(8 * i, 2)};
        const int great = exponents[draw(8 * i + 2, sizes)], small = exponents[draw(8 * i + 3, sizes)];
        for (uint32_t k = 0; k < 64; k++) {
            Philox4 p = philox_at(i, 2, k, PHILOX_TEST, 0);
            float value = ldexpf(1.0f + philox_uniform(p.word[0]), p.word[1] % 3 == 0 ? great : small);
            x[k] = p.word[2] % 5 == 0 || draw(8 * i + 4, 2) != 0 ? value : -value;
        }
        scaled_case(spec, i, x, 64, draw(8 * i + 1, 2) != 0 ? 0x1p-5f : 0x1p-8f);
    }
    /* The scaled element is rounded up to half a unit. */
    const float half[] = {0, 0x1p-121f, 0x1p-122f - 0x1p-145f};
    scaled_case((QuantSpec){.bits = 1, .bucket_size = 64}, 0, half, 3, 0x1p-5f);
    /* The scaled element is rounded to nothing, and its random number is 0. */
    const float tiny[] = {0x1p-149f, 0, 1};
    scaled_case((QuantSpec){.bits = 1, .bucket_size = 64, .rounding = QUANT_STOCHASTIC}, 12450748, tiny, 3, 0x1p-5f);
}

static void test_refusals(void) {
    QuantSpec good = {.bits = 4, .bucket_size = 1024};
    CHECK_OK(quantize_check(&good));
    QuantSpec bad[] = {
        {.bits = 0, .bucket_size = 1},
        {.bits = 4, .bucket_size = 0},
        {.bits = 4, .bucket_size = 1, .type = (QuantType)3},
        {.bits = 4, .bucket_size = 1, .codec = (QuantCodec)-1},
        {.bits = 4, .bucket_size = 8, .codec = QUANT_SPIKES},
        {.bits = 4, .bucket_size = 8, .rounding = (QuantRounding)2},
        {.bits = 4, .bucket_size = 8, .scale = (QuantScale)3},
        {.bits = 5, .bucket_size = 64, .codec = QUANT_ROTATED},
        {.bits = 4, .bucket_size = 96, .codec = QUANT_ROTATED},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) CHECK(quantize_check(&bad[i]) == STATUS_ARGUMENT);
    CHECK(!quantize_select_kernels("neon"));
}

/* Sizes beyond 32 bits are computed, not stored. */
static void test_sizes(void) {
    QuantSpec spec = {.bits = 3, .bucket_size = 7};
    CHECK(quantize_buckets(&spec, INT64_C(7) << 40) == INT64_C(1) << 40);
    CHECK(quantize_wire_bytes(&spec, INT64_C(7) << 40) == (UINT64_C(8) << 40) + (UINT64_C(3) << 40));
    CHECK(quantize_wire_bytes(&spec, 0) == 0);
    CHECK(quantize_wire_bytes(&spec, 1) == 32);
}

int main(void) {
    for (uint32_t i = 0; i < 300; i++) one_case(i);
    test_scaled_on_the_way();
    quantize_select_kernels(NULL);
    test_refusals();
    test_sizes();
    return check_result();
}
