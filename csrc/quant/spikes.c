/* The codec "maxmin_spikes": the elements of greatest magnitude travel separately as (index, bfloat16 value), the rest
 * on the grid between its own extremes. */
#include "quant/codec.h"

#define SPIKE_BLOCK 32

static Status spikes_check(const QuantSpec *spec) {
    if (spec->bucket_size > QUANTIZE_MAX_SPIKE_BUCKET) {
        FAIL(STATUS_ARGUMENT, "bucket_size must be at most %d with the codec maxmin_spikes, not %lld",
             QUANTIZE_MAX_SPIKE_BUCKET, (long long)spec->bucket_size);
    }
    if (spec->spikes < 1 || spec->spikes > QUANTIZE_MAX_SPIKES || spec->spikes > spec->bucket_size) {
        FAIL(STATUS_ARGUMENT, "spikes must be between 1 and %d and at most bucket_size (%lld), not %d",
             QUANTIZE_MAX_SPIKES, (long long)spec->bucket_size, spec->spikes);
    }
    return quant_check_no_scale(spec);
}

/* The elements of greatest magnitude, in index order; among equals the earlier. */
typedef struct Spikes {
    int count;
    uint32_t magnitude[QUANTIZE_MAX_SPIKES]; /* descending */
    int64_t index[QUANTIZE_MAX_SPIKES];
} Spikes;

/* Adds the element if it is among the `limit` greatest so far. */
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
    input.x = x + first * (int64_t)quantize_item_bytes(input.type);
    input.elems = end - first;
    return input;
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
            uint32_t magnitude = float_bits(quant_load(input, i)) & 0x7FFFFFFFu;
            if (magnitude >= least) spikes_offer(spikes, limit, magnitude, i);
        }
    }
    spikes_into_index_order(spikes);
}

/* The grid of the elements between the spikes; zeros if there are none. */
static QuantGrid grid_between_spikes(const QuantKernels *kernels, QuantInput input, const Spikes *spikes, int bits) {
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
    return quant_grid_between(min, max, bits);
}

static void code_clear(uint8_t *codes, int bits, int64_t index) {
    uint64_t at = (uint64_t)index * (uint64_t)bits;
    uint32_t mask = ((1u << bits) - 1u) << (at % 8);
    codes[at / 8] = (uint8_t)(codes[at / 8] & ~mask);
    if (mask > 0xFFu) codes[at / 8 + 1] = (uint8_t)(codes[at / 8 + 1] & ~(mask >> 8));
}

static QuantGrid encode_between_spikes(const QuantKernels *kernels, const QuantSpec *spec, QuantInput input,
                                       const QuantRandom *random, QuantWire wire) {
    Spikes spikes;
    spikes_find(kernels, input, spec->spikes, &spikes);
    QuantGrid grid = grid_between_spikes(kernels, input, &spikes, spec->bits);
    quant_codes_encode(kernels, spec, input, random, grid, wire.codes);
    for (int i = 0; i < spikes.count; i++) {
        code_clear(wire.codes, spec->bits, spikes.index[i]);
        store_u16(wire.spikes + i * QUANT_SPIKE_BYTES, (uint16_t)spikes.index[i]);
        uint16_t value = bfloat16_from_float(quant_load(input, spikes.index[i]));
        store_u16(wire.spikes + i * QUANT_SPIKE_BYTES + 2, value);
    }
    return grid;
}

static void spikes_encode(const QuantKernels *kernels, const QuantSpec *spec, QuantInput input,
                          const QuantRandom *random, QuantWire wire) {
    QuantGrid grid = quant_grid_nan();
    memset(wire.spikes, 0, (size_t)spec->spikes * QUANT_SPIKE_BYTES);
    if (kernels->range(input).magnitude >= QUANT_MAGNITUDE_LIMIT) {
        memset(wire.codes, 0, quant_codes_bytes(spec, input.elems));
    } else {
        grid = encode_between_spikes(kernels, spec, input, random, wire);
    }
    quant_grid_store(spec, grid, wire.metadata);
}

/* What spikes are added to is read first, since decoding the bucket may overwrite it. */
static Status spikes_decode(const QuantKernels *kernels, const QuantSpec *spec, QuantWire wire, int64_t elems,
                            const QuantTarget *target) {
    float values[QUANTIZE_MAX_SPIKES];
    int count = elems < spec->spikes ? (int)elems : spec->spikes;
    QuantGrid grid = quant_grid_load(spec, wire.metadata);
    if (!quant_is_finite(grid.unit)) {
        quant_fill_nan(target, elems);
        return STATUS_OK;
    }
    for (int i = 0; i < count; i++) {
        int64_t index = load_u16(wire.spikes + i * QUANT_SPIKE_BYTES);
        if (index >= elems) {
            FAIL(STATUS_TRANSPORT, "a spike's index is %lld in a bucket of %lld elements: the message is damaged",
                 (long long)index, (long long)elems);
        }
        values[i] = bfloat16_to_float(load_u16(wire.spikes + i * QUANT_SPIKE_BYTES + 2));
        if (target->accumulate != NULL) values[i] = quant_accumulated(target, index) + values[i];
        values[i] = values[i] / target->divisor;
    }
    kernels->decode(wire.codes, spec->bits, grid.unit, grid.min, elems, target);
    for (int i = 0; i < count; i++) {
        element_store(target->to, target->type, load_u16(wire.spikes + i * QUANT_SPIKE_BYTES), values[i]);
    }
    return STATUS_OK;
}

const QuantCodecEntry quant_codec_spikes = {.name = "maxmin_spikes",
                                            .metadata_values = 2,
                                            .most_bits = QUANTIZE_MAX_BITS,
                                            .check = spikes_check,
                                            .encode = spikes_encode,
                                            .decode = spikes_decode};
