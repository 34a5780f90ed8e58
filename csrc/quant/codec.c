/* The codecs by their number, and what they share. */
#include "quant/codec.h"

#include "base/names.h"

#define X(number, word) [number] = &quant_codec_##word,
static const QuantCodecEntry *const codecs[] = {QUANT_CODECS(X)};
#undef X

const QuantCodecEntry *quant_codec(QuantCodec codec) {
    return (size_t)codec < QUANT_CODEC_COUNT ? codecs[codec] : NULL;
}

const char *quantize_codec_name(int codec) {
    const QuantCodecEntry *entry = quant_codec((QuantCodec)codec);
    return entry == NULL ? NULL : entry->name;
}

int quantize_codec_bits(QuantCodec codec) { return quant_codec(codec)->most_bits; }

NAMES_DEFINE(quantize_type_name, "float32", "float16", "bfloat16")
NAMES_DEFINE(quantize_rounding_name, "nearest", "stochastic")
NAMES_DEFINE(quantize_scale_name, "auto", "mse", "unbiased")

uint64_t quant_metadata_bytes(const QuantSpec *spec) {
    return (uint64_t)quant_codec(spec->codec)->metadata_values * (spec->half_metadata ? 2 : 4);
}

uint64_t quant_codes_bytes(const QuantSpec *spec, int64_t count) {
    return ((uint64_t)count * (uint64_t)spec->bits + 7) / 8;
}

Status quant_check_no_spikes(const QuantSpec *spec) {
    if (spec->spikes != 0) FAIL(STATUS_ARGUMENT, "spikes must be 0 without the codec maxmin_spikes");
    return STATUS_OK;
}

Status quant_check_no_scale(const QuantSpec *spec) {
    if (spec->scale != QUANT_SCALE_AUTO) FAIL(STATUS_ARGUMENT, "scale must be auto without the codec rotated");
    return STATUS_OK;
}

Status quant_check_plain(const QuantSpec *spec) {
    TRY(quant_check_no_scale(spec));
    return quant_check_no_spikes(spec);
}

void quant_fill_nan(const QuantTarget *target, int64_t elems) {
    float nan = float_of_bits(QUANT_NAN_F32);
    for (int64_t i = 0; i < elems; i++) element_store(target->to, target->type, i, nan);
}
