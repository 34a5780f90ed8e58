/* Bytes and JSON fields and the data of custom fields: values of any length, in rows as wide as the longest; and their
 * lengths. */
#include <string.h>

#include "loader/decoders/decoder.h"

static const BetonKind kinds[] = {BETON_BYTES, BETON_JSON, BETON_CUSTOM};

static Status prepare_rows(const LoaderSource *source, const Traversal *in_use, const LoaderOutput *request,
                           DecoderOutput *output) {
    (void)source, (void)in_use, (void)request;
    loader_decoder_set_array(output, BETON_U8, 1, &output->field_info->max_bytes);
    return STATUS_OK;
}

static Status decode_rows(const DecoderChunk *chunk, const DecoderOutput *output, unsigned char *rows) {
    const size_t width = output->array.sample_bytes;
    for (size_t i = 0; i < chunk->count; i++) {
        unsigned char *row = rows + i * width;
        BetonRegion region = {0};
        Status status = loader_source_region(chunk->source, output->field, chunk->ids[i], &region);
        if (status == STATUS_OK && region.size > width) status = loader_decoder_fail_changed();
        TRY(loader_decoder_fail(chunk, output, i, "read", status));
        if (region.size > 0) memcpy(row, region.data, (size_t)region.size);
        memset(row + region.size, 0, width - (size_t)region.size);
    }
    return STATUS_OK;
}

static Status prepare_sizes(const LoaderSource *source, const Traversal *in_use, const LoaderOutput *request,
                            DecoderOutput *output) {
    static const uint64_t one[] = {1};
    (void)source, (void)in_use, (void)request;
    loader_decoder_set_array(output, BETON_I64, 1, one);
    return STATUS_OK;
}

static Status decode_sizes(const DecoderChunk *chunk, const DecoderOutput *output, unsigned char *rows) {
    int64_t *to = (int64_t *)(void *)rows;
    for (size_t i = 0; i < chunk->count; i++) {
        BetonRegion region = {0};
        Status status = loader_source_region(chunk->source, output->field, chunk->ids[i], &region);
        TRY(loader_decoder_fail(chunk, output, i, "read", status));
        to[i] = (int64_t)region.size;
    }
    return STATUS_OK;
}

const DecoderEntry loader_decoder_bytes = {.name = "bytes",
                                           .what = "the decoder of Bytes and JSON",
                                           .kinds = kinds,
                                           .kind_count = 3,
                                           .prepare = prepare_rows,
                                           .decode = decode_rows};

const DecoderEntry loader_decoder_byte_size = {.name = "byte_size",
                                               .what = "the decoder of lengths",
                                               .kinds = kinds,
                                               .kind_count = 3,
                                               .prepare = prepare_sizes,
                                               .decode = decode_sizes};
