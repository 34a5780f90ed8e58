/* Custom fields: their records as they are, for the user's decoder. (Their data: bytes.c.) */
#include <string.h>

#include "loader/decoders/decoder.h"

static const BetonKind kinds[] = {BETON_CUSTOM};

static Status record_prepare(const LoaderSource *source, const Traversal *in_use, const LoaderOutput *request,
                             DecoderOutput *output) {
    const uint64_t bytes = output->field_info->record_bytes;
    (void)source, (void)in_use, (void)request;
    loader_decoder_set_array(output, BETON_U8, 1, &bytes);
    return STATUS_OK;
}

static Status record_decode(const DecoderChunk *chunk, const DecoderOutput *output, unsigned char *rows) {
    const size_t width = output->array.sample_bytes;
    for (size_t i = 0; i < chunk->count; i++) {
        const unsigned char *record;
        Status status = beton_reader_record_of(chunk->source->reader, output->field, chunk->ids[i], &record);
        TRY(loader_decoder_fail(chunk, output, i, "read", status));
        memcpy(rows + i * width, record, width);
    }
    return STATUS_OK;
}

const DecoderEntry loader_decoder_record = {.name = "record",
                                            .what = "the decoder of records",
                                            .kinds = kinds,
                                            .kind_count = 1,
                                            .prepare = record_prepare,
                                            .decode = record_decode};
