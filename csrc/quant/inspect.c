/* Checks whether a run from a peer can be what an encoder wrote, as far as possible without decoding it. */
#include "base/checked.h"
#include "quant/codec.h"
#include "quant/sound.h"

static bool are_zero(const uint8_t *bytes, uint64_t count) {
    uint8_t any = 0;
    for (uint64_t i = 0; i < count; i++) any |= bytes[i];
    return any == 0;
}

/* Unused bits are zero, and all bits are if the range leaves nothing to code. */
static bool codes_are_sound(const QuantSpec *spec, const uint8_t *codes, int64_t values, bool coded) {
    uint64_t bytes = quant_codes_bytes(spec, values), used = (uint64_t)values * (uint64_t)spec->bits % 8;
    if (!coded) return are_zero(codes, bytes);
    return used == 0 || codes[bytes - 1] >> used == 0;
}

Status quantize_inspect(const QuantSpec *spec, const void *wire, int64_t elems) {
    const uint8_t *from = wire;
    QuantLayout layout = quantize_layout(spec, elems);
    for (int64_t b = 0; b < layout.buckets; b++) {
        uint64_t k = (uint64_t)b;
        int64_t left = elems - b * spec->bucket_size, count = left < spec->bucket_size ? left : spec->bucket_size;
        QuantSound range =
            quant_sound(spec, from + k * layout.metadata, from + layout.spikes_at + k * layout.spikes, count);
        if (!range.sound) FAIL(STATUS_TRANSPORT, "bucket %lld has a range that no encoder writes", (long long)b);
        const uint8_t *codes = from + layout.codes_at + k * layout.codes;
        if (!codes_are_sound(spec, codes, quantize_values(spec, count), range.coded)) {
            FAIL(STATUS_TRANSPORT, "bucket %lld has codes that no encoder writes", (long long)b);
        }
    }
    uint64_t end = round_up(layout.codes_end, QUANTIZE_PIECE_ALIGNMENT);
    bool padded = are_zero(from + layout.spikes_end, layout.codes_at - layout.spikes_end) &&
                  are_zero(from + layout.codes_end, end - layout.codes_end);
    if (!padded) FAIL(STATUS_TRANSPORT, "its padding is not zero");
    return STATUS_OK;
}
