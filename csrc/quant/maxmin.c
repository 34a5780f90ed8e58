/* The codec "maxmin": a uniform grid between the bucket's extremes. */
#include "quant/codec.h"

/* With nearest rounding, elements need not be scaled before they become codes: (s x - s min) / s unit is the same, bit
 * for bit, as (x - min) / unit for a power of two s. Where scaled numbers fall below 2^-126 and lose bits, the two
 * differ, but not in their codes: next to a minimum of at least 2^-101 such an element is negligible, and from a
 * smaller one it is less than 2^-30 of these units away, which is code 0. */
static void encode_codes(const QuantKernels *kernels, const QuantSpec *spec, QuantInput input,
                         const QuantRandom *random, QuantGrid grid, uint8_t *codes) {
    if (random == NULL && input.scale != 1.0f && grid.unit >= 0x1p-70f && grid.unit <= 0x1p60f) {
        grid.unit /= input.scale;
        grid.min /= input.scale;
        input.scale = 1.0f;
    }
    quant_codes_encode(kernels, spec, input, random, grid, codes);
}

static void maxmin_encode(const QuantKernels *kernels, const QuantSpec *spec, QuantInput input,
                          const QuantRandom *random, QuantWire wire) {
    QuantRange range = kernels->range(input);
    QuantGrid grid = range.magnitude >= QUANT_MAGNITUDE_LIMIT ? quant_grid_nan()
                                                              : quant_grid_between(range.min, range.max, spec->bits);
    encode_codes(kernels, spec, input, random, grid, wire.codes);
    quant_grid_store(spec, grid, wire.metadata);
}

static Status maxmin_decode(const QuantKernels *kernels, const QuantSpec *spec, QuantWire wire, int64_t elems,
                            const QuantTarget *target) {
    QuantGrid grid = quant_grid_load(spec, wire.metadata);
    if (quant_is_finite(grid.unit)) {
        kernels->decode(wire.codes, spec->bits, grid.unit, grid.min, elems, target);
    } else {
        quant_fill_nan(target, elems);
    }
    return STATUS_OK;
}

const QuantCodecEntry quant_codec_maxmin = {.name = "maxmin",
                                            .metadata_values = 2,
                                            .most_bits = QUANTIZE_MAX_BITS,
                                            .check = quant_check_plain,
                                            .encode = maxmin_encode,
                                            .decode = maxmin_decode};
