/* The value of each level of each channel in the output's type, rounded as the spec says, and the affine map that
 * reproduces it: vector kernels compute (v - shift) * factor, which is as exact as the table because all 256 levels are
 * checked here. */
#include "augment/cpu/levels.h"

#include <math.h>

#include "base/bytes.h"
#include "base/half.h"

static double rounded(double value, ImageType type) {
    switch (type) {
    case IMAGE_F32:
        return (double)(float)value;
    case IMAGE_F16:
        return (double)half_to_float(half_from_double(value));
    case IMAGE_BF16:
        return (double)bfloat16_to_float(bfloat16_from_double(value));
    default:
        return value;
    }
}

uint32_t augment_bits(double value, ImageType type) {
    switch (type) {
    case IMAGE_F32: {
        unsigned char bytes[4];
        store_f32(bytes, (float)value);
        return load_u32(bytes);
    }
    case IMAGE_F16:
        return half_from_double(value);
    case IMAGE_BF16:
        return bfloat16_from_double(value);
    case IMAGE_U16:
        return (uint16_t)value;
    default:
        return (uint8_t)value;
    }
}

uint32_t augment_level(const AugmentSpec *spec, int channel, double level) {
    if (!spec->normalize) return augment_bits(level, spec->type);
    double value = (level - spec->mean.value[channel]) / spec->std.value[channel];
    return augment_bits(rounded(value, spec->normalized_type), spec->type);
}

/* The result of a vector kernel for a level. */
static uint32_t affine_bits(ImageType type, double shift, double factor, int level) {
    if (type == IMAGE_F32) return augment_bits(((double)level - shift) * factor, type);
    float value = ((float)level - (float)shift) * (float)factor;
    return augment_bits((double)value, type);
}

static bool reproduces(const AugmentPass *a, int channel, double shift, double factor) {
    for (int level = 0; level < AUGMENT_LEVELS; level++) {
        if (affine_bits(a->spec.type, shift, factor, level) != a->table[channel][level]) return false;
    }
    return true;
}

/* `value` moved by `steps` units in the last place of a float32. */
static double nudged(double value, int steps) {
    float out = (float)value;
    for (; steps > 0; steps--) out = nextafterf(out, INFINITY);
    for (; steps < 0; steps++) out = nextafterf(out, -INFINITY);
    return (double)out;
}

/* Float32 arithmetic rounds twice where the table rounds once; neighbours of the constants can compensate for that. */
static bool find_affine(AugmentPass *a, int channel) {
    static const int steps[] = {0, 1, -1, 2, -2, 3, -3, 4, -4};
    const int count = (int)(sizeof steps / sizeof *steps);
    double shift = a->spec.normalize ? a->spec.mean.value[channel] : 0;
    double factor = a->spec.normalize ? 1 / a->spec.std.value[channel] : 1;
    a->shift[channel] = shift;
    a->factor[channel] = factor;
    if (reproduces(a, channel, shift, factor)) return true;
    for (int i = 0; a->spec.type != IMAGE_F32 && i < count * count; i++) {
        a->shift[channel] = nudged(shift, steps[i / count]);
        a->factor[channel] = nudged(factor, steps[i % count]);
        if (reproduces(a, channel, a->shift[channel], a->factor[channel])) return true;
    }
    return false;
}

void augment_make_table(AugmentPass *a) {
    a->affine = a->spec.type != IMAGE_U8;
    for (int c = 0; c < AUGMENT_CHANNELS; c++) {
        for (int level = 0; level < AUGMENT_LEVELS; level++) a->table[c][level] = augment_level(&a->spec, c, level);
        if (a->affine) a->affine = find_affine(a, c);
    }
}
