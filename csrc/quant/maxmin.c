/* The codec "maxmin": a uniform grid between the bucket's extremes. */
#include "quant/codec.h"

static void maxmin_encode(const QuantKernels *kernels, const QuantSpec *spec, QuantInput input,
                          const QuantRandom *random, QuantWire wire) {
    QuantRange range = kernels->range(input);
    QuantGrid grid = range.magnitude >= QUANT_MAGNITUDE_LIMIT ? quant_grid_nan()
                                                              : quant_grid_between(range.min, range.max, spec->bits);
    quant_codes_encode(kernels, spec, input, random, grid, wire.codes);
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

const QuantCodecEntry quant_codec_maxmin = {"maxmin", 2, quant_check_plain, maxmin_encode, maxmin_decode, NULL};
