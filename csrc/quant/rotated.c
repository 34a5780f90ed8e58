/* The codec "rotated": random signs and a Hadamard transform, which make every bucket look Gaussian, and the optimal
 * levels for a Gaussian. Terms are added as rotated values, the codec's domain. */
#include "quant/codec.h"
#include "quant/rotation.h"

#include "base/checked.h"

_Static_assert(QUANT_ROTATED_MAX_BUCKET <= QUANT_DOMAIN_MAX_VALUES, "a bucket's values fit");

static Status rotated_check(const QuantSpec *spec) {
    if (spec->bucket_size < QUANT_ROTATED_MIN_BUCKET || spec->bucket_size > QUANT_ROTATED_MAX_BUCKET ||
        !is_power_of_two((uint64_t)spec->bucket_size)) {
        FAIL(STATUS_ARGUMENT, "bucket_size must be a power of two from %d to %d with the codec rotated, not %lld",
             QUANT_ROTATED_MIN_BUCKET, QUANT_ROTATED_MAX_BUCKET, (long long)spec->bucket_size);
    }
    if (spec->rounding != QUANT_NEAREST) {
        FAIL(STATUS_ARGUMENT, "rounding must be nearest with the codec rotated; its scale unbiased keeps the mean");
    }
    if (spec->half_metadata) FAIL(STATUS_ARGUMENT, "the codec rotated has no 16-bit metadata");
    return quant_check_no_spikes(spec);
}

/* ---- the domain ---- */

static void turn_signs(const QuantKernels *kernels, float *values, int64_t count, const QuantRandom *random) {
    uint32_t words[QUANT_ROTATED_MAX_BUCKET / 32];
    for (int64_t group = 0; group * QUANT_SIGNS < count; group++) {
        Philox4 signs = quant_signs(random, group);
        memcpy(words + 4 * group, signs.word, sizeof signs.word);
    }
    kernels->turn_signs(values, words, count);
}

static void rotated_enter(const QuantKernels *kernels, QuantInput input, const QuantRandom *random, float *values) {
    int64_t count = quant_rotated_values(input.elems);
    if (kernels->range(input).magnitude >= QUANT_ROTATED_LIMIT) {
        for (int64_t i = 0; i < count; i++) values[i] = float_of_bits(QUANT_NAN_F32);
        return;
    }
    QuantTarget target = {NULL, 1.0f, 1.0f, QUANT_F32, values};
    kernels->pass(input, &target);
    for (int64_t i = input.elems; i < count; i++) values[i] = 0.0f;
    turn_signs(kernels, values, count, random);
    kernels->rotate(values, count);
}

static void rotated_leave(const QuantKernels *kernels, float *values, int64_t count, const QuantRandom *random) {
    kernels->rotate(values, count);
    turn_signs(kernels, values, count, random);
}

/* ---- one bucket of values ---- */

/* The levels times `scale`. */
static void levels_scaled(int bits, float scale, float levels[QUANT_LEVELS]) {
    for (int code = 0; code < 1 << bits; code++) levels[code] = quant_level(bits, code) * scale;
}

/* The factor for the levels that keeps the projection onto the values themselves. */
static float unbiased_scale(const QuantKernels *kernels, const QuantSpec *spec, const float *values, int64_t count,
                            float squares, const uint8_t *codes) {
    float levels[QUANT_LEVELS], chosen[QUANT_ROTATED_MAX_BUCKET];
    QuantTarget target = {NULL, 1.0f, 1.0f, QUANT_F32, chosen};
    levels_scaled(spec->bits, 1.0f, levels);
    kernels->decode_levels(codes, spec->bits, levels, count, &target);
    return squares / kernels->dot(values, chosen, count);
}

static void rotated_encode(const QuantKernels *kernels, const QuantSpec *spec, QuantInput input,
                           const QuantRandom *random, QuantWire wire) {
    (void)random;
    const float *values = input.x;
    float squares = kernels->dot(values, values, input.elems), rms = quant_rotated_rms(squares, input.elems);
    float scale = rms;
    if (quant_is_finite(rms) && rms > 0.0f) {
        kernels->encode_levels(values, spec->bits, 1.0f / rms, input.elems, wire.codes);
        if (spec->scale != QUANT_SCALE_MSE) {
            scale = unbiased_scale(kernels, spec, values, input.elems, squares, wire.codes);
        }
    } else {
        memset(wire.codes, 0, quant_codes_bytes(spec, input.elems));
    }
    element_store(wire.metadata, QUANT_F32, 0, scale);
}

static Status rotated_decode(const QuantKernels *kernels, const QuantSpec *spec, QuantWire wire, int64_t elems,
                             const QuantTarget *target) {
    float scale = element_load(wire.metadata, QUANT_F32, 0), levels[QUANT_LEVELS];
    if (quant_is_finite(scale)) {
        levels_scaled(spec->bits, scale, levels);
        kernels->decode_levels(wire.codes, spec->bits, levels, elems, target);
    } else {
        quant_fill_nan(target, elems);
    }
    return STATUS_OK;
}

static const QuantDomain rotation = {quant_rotated_values, rotated_enter, rotated_leave};

const QuantCodecEntry quant_codec_rotated = {.name = "rotated",
                                             .metadata_values = 1,
                                             .most_bits = QUANT_ROTATED_MAX_BITS,
                                             .check = rotated_check,
                                             .encode = rotated_encode,
                                             .decode = rotated_decode,
                                             .domain = &rotation};
