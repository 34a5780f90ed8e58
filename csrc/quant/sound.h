/* Checks of a bucket that a peer has sent, by docs/WIRE.md: whether its range and its spikes can be what an encoder
 * wrote. One definition for host and device. */
#ifndef CGXFFCV_QUANT_SOUND_H
#define CGXFFCV_QUANT_SOUND_H

#include "quant/formula.h"

typedef struct QuantSound {
    bool sound;
    bool coded; /* codes may be nonzero */
} QuantSound;

#define QUANT_LEAST_NORMAL 0x00800000u
#define QUANT_ROTATED_LEAST 0x0D800000u /* 2^-100 */

/* Whether number i of a range has the bits of the type's canonical NaN. */
HOST_DEVICE bool quant_is_nan_of(const uint8_t *from, QuantType type, int i) {
    if (type == QUANT_F32) return load_u32(from + 4 * i) == QUANT_NAN_F32;
    return load_u16(from + 2 * i) == (type == QUANT_F16 ? 0x7E00u : 0x7FC0u);
}

/* Finite, below the limit of magnitudes, and not -0. */
HOST_DEVICE bool quant_is_extreme(float value) {
    uint32_t bits = float_bits(value);
    return (bits & 0x7FFFFFFFu) < QUANT_MAGNITUDE_LIMIT && bits != 0x80000000u;
}

/* Finite and not below +0. */
HOST_DEVICE bool quant_is_magnitude(float value) { return float_bits(value) < 0x7F800000u; }

HOST_DEVICE QuantSound quant_sound_of(bool sound, bool coded) {
    QuantSound result = {sound, coded};
    return result;
}

HOST_DEVICE QuantSound quant_sound_range(const QuantSpec *spec, const uint8_t *from) {
    QuantType type = spec->half_metadata ? spec->type : QUANT_F32;
    if (quant_is_nan_of(from, type, 0)) return quant_sound_of(quant_is_nan_of(from, type, 1), false);
    float first = element_load(from, type, 0), second = element_load(from, type, 1);
    if (spec->half_metadata) {
        bool sound = quant_is_extreme(first) && quant_is_extreme(second) && first <= second;
        return quant_sound_of(sound, sound && quant_grid_is_usable(quant_grid_between(first, second, spec->bits)));
    }
    uint32_t unit = float_bits(first);
    float width = QUANT_MUL(first, (float)((1 << spec->bits) - 1));
    bool sound = unit == 0 || (unit >= QUANT_LEAST_NORMAL && quant_is_magnitude(first) && width <= 0x1.00001p126f);
    return quant_sound_of(sound && quant_is_extreme(second), unit != 0);
}

HOST_DEVICE QuantSound quant_sound_sign(const QuantSpec *spec, const uint8_t *from) {
    QuantType type = spec->half_metadata ? spec->type : QUANT_F32;
    if (quant_is_nan_of(from, type, 0)) return quant_sound_of(true, false);
    return quant_sound_of(quant_is_magnitude(element_load(from, type, 0)), true);
}

HOST_DEVICE QuantSound quant_sound_scale(const uint8_t *from, QuantScale scale) {
    uint32_t bits = load_u32(from);
    if (bits == QUANT_NAN_F32 || bits == 0) return quant_sound_of(true, false);
    bool large = scale != QUANT_SCALE_MSE || bits >= QUANT_ROTATED_LEAST;
    return quant_sound_of(bits < 0x7F800000u && large, true);
}

/* The entries of a bucket of that many elements: in ascending order of index, zeros where they are not needed. */
HOST_DEVICE bool quant_sound_spikes(const QuantSpec *spec, const uint8_t *entries, int64_t elems, bool is_nan) {
    int64_t last = -1, used = is_nan ? 0 : elems < spec->spikes ? elems : spec->spikes;
    bool sound = true;
    for (int64_t i = 0; i < spec->spikes; i++) {
        const uint8_t *entry = entries + i * QUANT_SPIKE_BYTES;
        int64_t index = load_u16(entry);
        if (i >= used) {
            sound = sound && load_u32(entry) == 0;
            continue;
        }
        sound = sound && index > last && index < elems && quant_is_finite(bfloat16_to_float(load_u16(entry + 2)));
        last = index;
    }
    return sound;
}

HOST_DEVICE QuantSound quant_sound_apart(const QuantSpec *spec, const uint8_t *metadata, const uint8_t *spikes,
                                         int64_t elems) {
    QuantSound range = quant_sound_range(spec, metadata);
    QuantType type = spec->half_metadata ? spec->type : QUANT_F32;
    bool entries = quant_sound_spikes(spec, spikes, elems, quant_is_nan_of(metadata, type, 0));
    return quant_sound_of(range.sound && entries, range.coded);
}

/* Checks a bucket's range and spikes. */
HOST_DEVICE QuantSound quant_sound(const QuantSpec *spec, const uint8_t *metadata, const uint8_t *spikes,
                                   int64_t elems) {
    switch (spec->codec) {
    case QUANT_MAXMIN:
        return quant_sound_range(spec, metadata);
    case QUANT_SIGN:
        return quant_sound_sign(spec, metadata);
    case QUANT_SPIKES:
        return quant_sound_apart(spec, metadata, spikes, elems);
    case QUANT_ROTATED:
        return quant_sound_scale(metadata, spec->scale);
    case QUANT_CODEC_COUNT:
        break;
    }
    return quant_sound_of(false, false);
}

#endif
