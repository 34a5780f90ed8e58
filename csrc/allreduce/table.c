/* The layer table for an algorithm: which layer is quantised and how, and the hash of names and numbers. */
#include <stdio.h>
#include <string.h>

#include "allreduce/map.h"
#include "base/hash.h"
#include "base/memory.h"

#define RAW_BUCKET 512 /* elements, for layers that travel unquantised; of any type they fit the smallest slot */
#define MAX_ELEMS (INT64_C(1) << 50)

static const char *layer_label(const AllreduceLayer *layer, int index, char text[64]) {
    if (layer->name != NULL) {
        snprintf(text, 64, "layer %d (%.40s)", index, layer->name);
    } else {
        snprintf(text, 64, "layer %d", index);
    }
    return text;
}

/* The bits of a layer: its own setting, else the rules for small layers, else the options'. */
static int layer_bits(const AllreduceLayer *layer, const AllreduceOptions *options, AllreduceAlgorithm algorithm) {
    bool can = options->type <= ALLREDUCE_BF16 && options->op <= ALLREDUCE_AVERAGE && algorithm != ALLREDUCE_EXACT;
    if (!can) return ALLREDUCE_UNCOMPRESSED;
    if (layer->bits != 0) return layer->bits;
    int dims = layer->dims == 0 ? 2 : layer->dims;
    return dims < 2 || layer->elems < options->layer_min_size ? ALLREDUCE_UNCOMPRESSED : options->bits;
}

static Status decide_layer(const AllreduceLayer *from, const AllreduceOptions *options, AllreduceAlgorithm algorithm,
                           WireLayer *layer) {
    int bits = layer_bits(from, options, algorithm);
    int64_t bucket = from->bucket_size == 0 ? options->bucket_size : from->bucket_size;
    layer->elems = from->elems;
    layer->own_bits = from->bits;
    layer->own_bucket = from->bucket_size;
    layer->raw = bits == ALLREDUCE_UNCOMPRESSED;
    if (layer->raw) {
        layer->spec.bucket_size = RAW_BUCKET;
        return STATUS_OK;
    }
    layer->spec = (QuantSpec){
        .bits = bits,
        .bucket_size = bucket,
        .type = (QuantType)options->type,
        .codec = options->codec,
        .rounding = options->rounding,
        .half_metadata = options->half_metadata,
        .spikes = options->codec != QUANT_SPIKES ? 0
                  : options->spikes != 0         ? options->spikes
                                                 : quantize_default_spikes(bucket),
        .scale = options->scale == QUANT_SCALE_AUTO && options->codec == QUANT_ROTATED
                     ? (options->error_feedback ? QUANT_SCALE_MSE : QUANT_SCALE_UNBIASED)
                     : options->scale,
    };
    return quantize_check(&layer->spec);
}

static uint64_t hash_text(const char *text, uint64_t seed) {
    return text == NULL ? hash_bytes("", 0, seed) : hash_bytes(text, strlen(text) + 1, seed);
}

/* What all ranks must agree on, field by field. */
static uint64_t hash_layer(const WireLayer *layer, const AllreduceLayer *from, uint64_t seed) {
    const QuantSpec *spec = &layer->spec;
    int64_t fields[] = {layer->elems, layer->raw,      spec->bits,       spec->bucket_size,
                        spec->codec,  spec->rounding,  spec->scale,      spec->half_metadata,
                        spec->spikes, layer->own_bits, layer->own_bucket};
    return hash_text(from->shape, hash_text(from->name, hash_bytes(fields, sizeof fields, seed)));
}

static Status add_layer(WireTable *table, int index, const AllreduceLayer *from, const AllreduceOptions *options,
                        AllreduceAlgorithm algorithm) {
    char text[64];
    WireLayer *layer = &table->layers[index];
    const WireLayer *before = index == 0 ? NULL : layer - 1;
    if (from->elems < 0 || from->elems > MAX_ELEMS - table->elems) {
        FAIL(STATUS_ARGUMENT, "%s has %lld elements: it must be at least 0, and at most 2^50 in total",
             layer_label(from, index, text), (long long)from->elems);
    }
    if (decide_layer(from, options, algorithm, layer) != STATUS_OK) {
        ErrorRecord why = *error_record();
        FAIL(why.code, "%s: %s", layer_label(from, index, text), why.message);
    }
    layer->first = table->elems;
    layer->first_bucket = table->buckets;
    layer->buckets = quantize_buckets(&layer->spec, layer->elems);
    if (before != NULL) layer->quad = before->quad + (uint64_t)before->buckets * wire_bucket_quads(before);
    layer->hash = hash_layer(layer, from, before == NULL ? 0 : before->hash);
    table->elems += layer->elems;
    table->buckets += layer->buckets;
    table->any_quantized |= !layer->raw && layer->elems > 0;
    table->any_domain |= !layer->raw && quantize_has_domain(&layer->spec);
    return STATUS_OK;
}

Status allreduce_table_create(const AllreduceLayer *layers, int count, const AllreduceOptions *options,
                              AllreduceAlgorithm algorithm, WireTable *out) {
    Status status = STATUS_OK;
    *out = (WireTable){.count = count};
    TRY(memory_calloc((size_t)count, sizeof *out->layers, &out->layers));
    for (int i = 0; i < count; i++) TRY_GOTO(add_layer(out, i, &layers[i], options, algorithm));
done:
    if (status != STATUS_OK) allreduce_table_destroy(out);
    return status;
}

void allreduce_table_destroy(WireTable *table) {
    memory_free(table->layers);
    *table = (WireTable){0};
}
