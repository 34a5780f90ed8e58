/* The codecs on one bucket: its range to metadata (every operation rounded by itself, in the order that
 * docs/WIRE.md states), and what happens to buckets that have no usable range. */
#include "quant/bucket.h"

#include <string.h>

#include "quant/convert.h"

#define SMALLEST_NORMAL 0x1p-126f
#define SPIKE_BLOCK 32
#define MAGNITUDE_LIMIT 0x7E000000u /* 2^125: from here on a bucket's width may overflow */

/* A uniform grid; a unit that is not finite means a bucket of NaN, 0 a constant one. */
typedef struct Grid {
    float unit, min, max;
} Grid;

static Grid grid_nan(void) {
    float nan = float_of_bits(QUANT_NAN_F32);
    return (Grid){nan, nan, nan};
}

static Grid grid_between(float min, float max, int bits) {
    Grid grid = {.min = min + 0.0f, .max = max + 0.0f};
    float width = grid.max - grid.min;
    grid.unit = width / (float)((1 << bits) - 1);
    if (grid.unit < SMALLEST_NORMAL) grid.unit = 0.0f;
    return grid;
}

static bool is_finite(float value) { return (float_bits(value) & 0x7F800000u) != 0x7F800000u; }

static void metadata_store(const QuantSpec *spec, Grid grid, uint8_t *to) {
    if (spec->codec == QUANT_SIGN) {
        element_store(to, spec->half_metadata ? spec->type : QUANT_F32, 0, grid.min);
    } else if (spec->half_metadata) {
        element_store(to, spec->type, 0, grid.min);
        element_store(to, spec->type, 1, grid.max);
    } else {
        element_store(to, QUANT_F32, 0, grid.unit);
        element_store(to, QUANT_F32, 1, grid.min);
    }
}

static Grid metadata_load(const QuantSpec *spec, const uint8_t *from) {
    float first = element_load(from, spec->half_metadata ? spec->type : QUANT_F32, 0);
    if (!is_finite(first)) return grid_nan();
    if (spec->codec == QUANT_SIGN) return (Grid){.unit = -2.0f * first, .min = first};
    if (spec->half_metadata) {
        float max = element_load(from, spec->type, 1);
        return is_finite(max) ? grid_between(first, max, spec->bits) : grid_nan();
    }
    float min = element_load(from, QUANT_F32, 1);
    return is_finite(min) ? (Grid){.unit = first, .min = min} : grid_nan();
}

static Grid quantize_sign(const QuantKernels *kernels, QuantInput input, uint8_t *codes) {
    float sum = kernels->magnitude_sum(input);
    if (!is_finite(sum)) {
        memset(codes, 0, (size_t)(input.elems + 7) / 8);
        return grid_nan();
    }
    kernels->encode_sign(input, codes);
    return (Grid){.min = sum / (float)input.elems};
}

static void encode(const QuantKernels *kernels, const QuantSpec *spec, QuantInput input, const QuantRandom *random,
                   Grid grid, uint8_t *codes) {
    if (is_finite(grid.unit) && grid.unit > 0.0f) {
        QuantEncode how = {spec->bits, grid.min, 1.0f / grid.unit, random};
        kernels->encode(input, &how, codes);
    } else {
        memset(codes, 0, bucket_codes_bytes(spec, input.elems));
    }
}

/* The elements of greatest magnitude, in index order; of equals the earlier. */
typedef struct Spikes {
    int count;
    uint32_t magnitude[QUANTIZE_MAX_SPIKES]; /* descending */
    int64_t index[QUANTIZE_MAX_SPIKES];
} Spikes;

/* Takes the element in if it is among the `limit` greatest so far. */
static void spikes_offer(Spikes *spikes, int limit, uint32_t magnitude, int64_t index) {
    if (spikes->count == limit && magnitude <= spikes->magnitude[limit - 1]) return;
    int at = spikes->count < limit ? spikes->count++ : limit - 1;
    for (; at > 0 && spikes->magnitude[at - 1] < magnitude; at--) {
        spikes->magnitude[at] = spikes->magnitude[at - 1];
        spikes->index[at] = spikes->index[at - 1];
    }
    spikes->magnitude[at] = magnitude;
    spikes->index[at] = index;
}

static void spikes_into_index_order(Spikes *spikes) {
    for (int i = 1; i < spikes->count; i++) {
        int64_t index = spikes->index[i];
        int at = i;
        for (; at > 0 && spikes->index[at - 1] > index; at--) spikes->index[at] = spikes->index[at - 1];
        spikes->index[at] = index;
    }
}

static QuantInput part(QuantInput input, int64_t first, int64_t end) {
    const uint8_t *x = input.x;
    return (QuantInput){x + first * (int64_t)quantize_item_bytes(input.type), input.type, end - first};
}

static int64_t block_end(QuantInput input, int64_t block) {
    return input.elems - block < SPIKE_BLOCK ? input.elems : block + SPIKE_BLOCK;
}

/* The fast kernel gives each block's greatest magnitude. At least `limit` elements reach the limit-th greatest of
 * those, so blocks below it hold no spike. */
static void spikes_find(const QuantKernels *kernels, QuantInput input, int limit, Spikes *spikes) {
    uint32_t greatest[QUANTIZE_MAX_SPIKE_BUCKET / SPIKE_BLOCK], least = 0;
    spikes->count = 0;
    for (int64_t block = 0; block < input.elems; block += SPIKE_BLOCK) {
        uint32_t magnitude = kernels->range(part(input, block, block_end(input, block))).magnitude;
        greatest[block / SPIKE_BLOCK] = magnitude;
        spikes_offer(spikes, limit, magnitude, block);
    }
    if (spikes->count == limit) least = spikes->magnitude[limit - 1];
    spikes->count = 0;
    for (int64_t block = 0; block < input.elems; block += SPIKE_BLOCK) {
        if (greatest[block / SPIKE_BLOCK] < least) continue;
        for (int64_t i = block; i < block_end(input, block); i++) {
            uint32_t magnitude = float_bits(element_load(input.x, input.type, i)) & 0x7FFFFFFFu;
            if (magnitude >= least) spikes_offer(spikes, limit, magnitude, i);
        }
    }
    spikes_into_index_order(spikes);
}

/* The range of what lies between the spikes, and zero where nothing does. */
static Grid grid_between_spikes(const QuantKernels *kernels, QuantInput input, const Spikes *spikes, int bits) {
    bool any = false;
    float min = 0.0f, max = 0.0f;
    int64_t first = 0;
    for (int i = 0; i <= spikes->count; i++) {
        int64_t end = i < spikes->count ? spikes->index[i] : input.elems;
        if (end > first) {
            QuantRange range = kernels->range(part(input, first, end));
            min = any && min < range.min ? min : range.min;
            max = any && max > range.max ? max : range.max;
            any = true;
        }
        first = end + 1;
    }
    return grid_between(min, max, bits);
}

static void code_clear(uint8_t *codes, int bits, int64_t index) {
    uint64_t at = (uint64_t)index * (uint64_t)bits;
    uint32_t mask = ((1u << bits) - 1u) << (at % 8);
    codes[at / 8] = (uint8_t)(codes[at / 8] & ~mask);
    if (mask > 0xFFu) codes[at / 8 + 1] = (uint8_t)(codes[at / 8 + 1] & ~(mask >> 8));
}

static Grid quantize_spikes(const QuantKernels *kernels, const QuantSpec *spec, QuantInput input,
                            const QuantRandom *random, BucketWire wire) {
    Spikes spikes;
    spikes_find(kernels, input, spec->spikes, &spikes);
    Grid grid = grid_between_spikes(kernels, input, &spikes, spec->bits);
    encode(kernels, spec, input, random, grid, wire.codes);
    for (int i = 0; i < spikes.count; i++) {
        code_clear(wire.codes, spec->bits, spikes.index[i]);
        store_u16(wire.spikes + i * QUANT_SPIKE_BYTES, (uint16_t)spikes.index[i]);
        uint16_t value = bfloat_of_float(element_load(input.x, input.type, spikes.index[i]));
        store_u16(wire.spikes + i * QUANT_SPIKE_BYTES + 2, value);
    }
    return grid;
}

void bucket_quantize(const QuantKernels *kernels, const QuantSpec *spec, QuantInput input, const QuantRandom *random,
                     BucketWire wire) {
    Grid grid = grid_nan();
    QuantRange range = kernels->range(input);
    if (spec->codec == QUANT_SPIKES) memset(wire.spikes, 0, (size_t)spec->spikes * QUANT_SPIKE_BYTES);
    if (range.magnitude >= MAGNITUDE_LIMIT) {
        memset(wire.codes, 0, bucket_codes_bytes(spec, input.elems));
    } else if (spec->codec == QUANT_SIGN) {
        grid = quantize_sign(kernels, input, wire.codes);
    } else if (spec->codec == QUANT_SPIKES) {
        grid = quantize_spikes(kernels, spec, input, random, wire);
    } else {
        grid = grid_between(range.min, range.max, spec->bits);
        encode(kernels, spec, input, random, grid, wire.codes);
    }
    metadata_store(spec, grid, wire.metadata);
}

static void fill_nan(const QuantTarget *target, int64_t elems) {
    float nan = float_of_bits(QUANT_NAN_F32);
    for (int64_t i = 0; i < elems; i++) element_store(target->to, target->type, i, nan);
}

/* Spikes over the decoded bucket: what the target accumulates on is read before the decoding may overwrite it. */
static Status dequantize_spikes(const QuantKernels *kernels, const QuantSpec *spec, BucketWire wire, Grid grid,
                                int64_t elems, const QuantTarget *target) {
    float values[QUANTIZE_MAX_SPIKES];
    int count = elems < spec->spikes ? (int)elems : spec->spikes;
    for (int i = 0; i < count; i++) {
        int64_t index = load_u16(wire.spikes + i * QUANT_SPIKE_BYTES);
        if (index >= elems) {
            FAIL(STATUS_TRANSPORT, "a spike's index is %lld in a bucket of %lld elements: the message is damaged",
                 (long long)index, (long long)elems);
        }
        values[i] = float_of_bfloat(load_u16(wire.spikes + i * QUANT_SPIKE_BYTES + 2));
        if (target->accumulate != NULL) values[i] = element_load(target->accumulate, QUANT_F32, index) + values[i];
        values[i] = values[i] / target->divisor;
    }
    kernels->decode(wire.codes, spec->bits, grid.unit, grid.min, elems, target);
    for (int i = 0; i < count; i++) {
        element_store(target->to, target->type, load_u16(wire.spikes + i * QUANT_SPIKE_BYTES), values[i]);
    }
    return STATUS_OK;
}

Status bucket_dequantize(const QuantKernels *kernels, const QuantSpec *spec, BucketWire wire, int64_t elems,
                         const QuantTarget *target) {
    Grid grid = metadata_load(spec, wire.metadata);
    if (!is_finite(grid.unit)) {
        fill_nan(target, elems);
    } else if (spec->codec == QUANT_SPIKES) {
        return dequantize_spikes(kernels, spec, wire, grid, elems, target);
    } else {
        kernels->decode(wire.codes, spec->bits, grid.unit, grid.min, elems, target);
    }
    return STATUS_OK;
}
