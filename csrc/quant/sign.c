/* The codec "sign": one bit per element, with the bucket's mean magnitude m: codes 0 and 1 stand for m and -m. */
#include "quant/codec.h"

static QuantType metadata_type(const QuantSpec *spec) { return spec->half_metadata ? spec->type : QUANT_F32; }

static void sign_encode(const QuantKernels *kernels, const QuantSpec *spec, QuantInput input, const QuantRandom *random,
                        QuantWire wire) {
    (void)random;
    float sum = float_of_bits(QUANT_NAN_F32);
    if (kernels->range(input).magnitude < QUANT_MAGNITUDE_LIMIT) sum = kernels->magnitude_sum(input);
    if (quant_is_finite(sum)) {
        kernels->encode_sign(input, wire.codes);
    } else {
        memset(wire.codes, 0, quant_codes_bytes(spec, input.elems));
        sum = float_of_bits(QUANT_NAN_F32);
    }
    element_store(wire.metadata, metadata_type(spec), 0, sum / (float)input.elems);
}

static Status sign_decode(const QuantKernels *kernels, const QuantSpec *spec, QuantWire wire, int64_t elems,
                          const QuantTarget *target) {
    float mean = element_load(wire.metadata, metadata_type(spec), 0), step = -2.0f * mean;
    if (quant_is_finite(step)) {
        kernels->decode(wire.codes, spec->bits, step, mean, elems, target);
    } else {
        quant_fill_nan(target, elems);
    }
    return STATUS_OK;
}

const QuantCodecEntry quant_codec_sign = {.name = "sign",
                                          .metadata_values = 1,
                                          .most_bits = 1,
                                          .check = quant_check_plain,
                                          .encode = sign_encode,
                                          .decode = sign_decode};
