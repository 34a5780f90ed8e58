/* The quantiser's arithmetic, one definition for host and device: docs/WIRE.md in code. Every operation is rounded on
 * its own: QUANT_ADD and its like keep nvcc from contracting two of them into one, compiler flags keep gcc from it. */
#ifndef CGXFFCV_QUANT_FORMULA_H
#define CGXFFCV_QUANT_FORMULA_H

#include "base/bytes.h"
#include "base/half.h"
#include "base/philox.h"
#include "quant/quantize.h"

#ifdef __CUDA_ARCH__
#define QUANT_ADD(a, b) __fadd_rn(a, b)
#define QUANT_SUB(a, b) __fsub_rn(a, b)
#define QUANT_MUL(a, b) __fmul_rn(a, b)
#define QUANT_DIV(a, b) __fdiv_rn(a, b)
#else
#define QUANT_ADD(a, b) ((a) + (b))
#define QUANT_SUB(a, b) ((a) - (b))
#define QUANT_MUL(a, b) ((a) * (b))
#define QUANT_DIV(a, b) ((a) / (b))
#endif

#define QUANT_NAN_F32 0x7FC00000u
#define QUANT_PARTIALS 32
#define QUANT_SPIKE_BYTES 4
#define QUANT_MAGNITUDE_LIMIT 0x7E000000u /* 2^125: from here on a bucket's width may overflow */

/* ---- elements; when stored, every NaN becomes the canonical one of its type ---- */

HOST_DEVICE float element_load(const void *x, QuantType type, int64_t i) {
    const uint8_t *bytes = (const uint8_t *)x;
    if (type == QUANT_F32) return load_f32(bytes + 4 * i);
    uint16_t half = load_u16(bytes + 2 * i);
    return type == QUANT_F16 ? half_to_float(half) : bfloat16_to_float(half);
}

HOST_DEVICE void element_store(void *x, QuantType type, int64_t i, float value) {
    uint8_t *bytes = (uint8_t *)x;
    if (type == QUANT_F32) {
        uint32_t bits = float_bits(value);
        store_u32(bytes + 4 * i, (bits & 0x7FFFFFFFu) > 0x7F800000u ? QUANT_NAN_F32 : bits);
    } else {
        store_u16(bytes + 2 * i, type == QUANT_F16 ? half_from_float(value) : bfloat16_from_float(value));
    }
}

/* ---- the grid of a bucket ---- */

/* Code c stands for min + unit * c. A unit that is not finite means a bucket of NaN, 0 a constant one. */
typedef struct QuantGrid {
    float unit, min, max;
} QuantGrid;

HOST_DEVICE bool quant_is_finite(float value) { return (float_bits(value) & 0x7F800000u) != 0x7F800000u; }

HOST_DEVICE QuantGrid quant_grid_nan(void) {
    float nan = float_of_bits(QUANT_NAN_F32);
    QuantGrid grid = {nan, nan, nan};
    return grid;
}

/* Zeros become +0, and a unit below the normal numbers becomes 0. */
HOST_DEVICE QuantGrid quant_grid_between(float min, float max, int bits) {
    QuantGrid grid = {0.0f, QUANT_ADD(min, 0.0f), QUANT_ADD(max, 0.0f)};
    grid.unit = QUANT_DIV(QUANT_SUB(grid.max, grid.min), (float)((1 << bits) - 1));
    if (grid.unit < 0x1p-126f) grid.unit = 0.0f;
    return grid;
}

/* Whether elements have codes of their own; else all codes are 0. */
HOST_DEVICE bool quant_grid_is_usable(QuantGrid grid) { return quant_is_finite(grid.unit) && grid.unit > 0.0f; }

/* (unit, min) in float32, or (min, max) in the tensor's own type. */
HOST_DEVICE void quant_grid_store(const QuantSpec *spec, QuantGrid grid, uint8_t *to) {
    if (spec->half_metadata) {
        element_store(to, spec->type, 0, grid.min);
        element_store(to, spec->type, 1, grid.max);
    } else {
        element_store(to, QUANT_F32, 0, grid.unit);
        element_store(to, QUANT_F32, 1, grid.min);
    }
}

HOST_DEVICE QuantGrid quant_grid_load(const QuantSpec *spec, const uint8_t *from) {
    QuantType type = spec->half_metadata ? spec->type : QUANT_F32;
    float first = element_load(from, type, 0), second = element_load(from, type, 1);
    if (!quant_is_finite(first) || !quant_is_finite(second)) return quant_grid_nan();
    if (spec->half_metadata) return quant_grid_between(first, second, spec->bits);
    QuantGrid grid = {first, second, 0.0f};
    return grid;
}

/* ---- codes ---- */

/* Truncation, clamped to [0, levels]; the bounds matter only for elements that travel as spikes. */
HOST_DEVICE uint32_t quant_truncate(float value, uint32_t levels) {
    if (!(value >= 1.0f)) return 0;
    return value < (float)levels ? (uint32_t)value : levels;
}

/* How far above the bucket's minimum, in units; `inverse` is 1 / unit. */
HOST_DEVICE float quant_place(float x, float min, float inverse) { return QUANT_MUL(QUANT_SUB(x, min), inverse); }

HOST_DEVICE uint32_t quant_code_nearest(float place, uint32_t levels) {
    return quant_truncate(QUANT_ADD(place, 0.5f), levels);
}

/* `random` is uniform in [0, 1). */
HOST_DEVICE uint32_t quant_code_stochastic(float place, float random, uint32_t levels) {
    uint32_t code = quant_truncate(place, levels);
    code += random < QUANT_SUB(place, (float)code);
    return code < levels ? code : levels;
}

HOST_DEVICE float quant_decode(uint32_t code, float unit, float min) {
    return QUANT_ADD(min, QUANT_MUL(unit, (float)(int32_t)code));
}

HOST_DEVICE float quant_accumulated(const QuantTarget *target, int64_t i) {
    return QUANT_MUL(element_load(target->accumulate, QUANT_F32, i), target->scale);
}

/* Adds, divides and stores a decoded value as the target says. */
HOST_DEVICE void quant_deliver(const QuantTarget *target, int64_t i, float value) {
    if (target->accumulate != NULL) value = QUANT_ADD(quant_accumulated(target, i), value);
    element_store(target->to, target->type, i, QUANT_DIV(value, target->divisor));
}

#endif
