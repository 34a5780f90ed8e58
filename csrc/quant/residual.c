/* The residual in 8 bits, bucket by bucket, on the CPU. */
#include "quant/residual.h"

#include "base/float_mode.h"

static int64_t bucket_elems(int64_t elems, int64_t first, int64_t bucket_size) {
    return elems - first < bucket_size ? elems - first : bucket_size;
}

static uint8_t pack_bucket(const float *lost, int64_t elems, int8_t *codes) {
    uint32_t magnitude = 0;
    for (int64_t i = 0; i < elems; i++) {
        uint32_t own = float_bits(lost[i]) & 0x7FFFFFFFu;
        magnitude = own > magnitude ? own : magnitude;
    }
    uint8_t exponent = quant_residual_exponent(magnitude);
    float inverse = quant_residual_inverse(exponent);
    for (int64_t i = 0; i < elems; i++) codes[i] = quant_residual_code(lost[i], inverse);
    return exponent;
}

void quant_residual_pack(const float *lost, int64_t elems, int64_t bucket_size, int8_t *codes, uint8_t *exponents) {
    FloatMode mode = float_mode_begin();
    for (int64_t first = 0; first < elems; first += bucket_size) {
        *exponents++ = pack_bucket(lost + first, bucket_elems(elems, first, bucket_size), codes + first);
    }
    float_mode_end(mode);
}

void quant_residual_unpack(const int8_t *codes, const uint8_t *exponents, int64_t elems, int64_t bucket_size,
                           float *lost) {
    FloatMode mode = float_mode_begin();
    for (int64_t first = 0; first < elems; first += bucket_size) {
        int64_t end = first + bucket_elems(elems, first, bucket_size);
        float unit = quant_residual_unit(*exponents++);
        for (int64_t i = first; i < end; i++) lost[i] = quant_residual_value(codes[i], unit);
    }
    float_mode_end(mode);
}
