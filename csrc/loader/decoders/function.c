/* A user's C function, which makes a row from a sample's record and data, in the workers. */
#include <string.h>

#include "base/memory.h"
#include "loader/decoders/decoder.h"

static const BetonKind kinds[] = {BETON_FLOAT, BETON_INT,  BETON_IMAGE,  BETON_BYTES,
                                  BETON_ARRAY, BETON_JSON, BETON_TENSOR, BETON_CUSTOM};

static Status function_prepare(const LoaderSource *source, const Traversal *in_use, const LoaderOutput *request,
                               DecoderOutput *output) {
    const LoaderFunction *function = request->function;
    LoaderRow *state = NULL;
    (void)source, (void)in_use;
    if (function == NULL || function->call == NULL) FAIL(STATUS_ARGUMENT, "a function decoder needs a function");
    TRY(loader_decoder_check_rows(function->dtype, function->ndim, function->shape));
    TRY(memory_calloc(1, sizeof *state, &state));
    *state = function->call;
    output->state = state;
    loader_decoder_set_array(output, function->dtype, function->ndim, function->shape);
    return STATUS_OK;
}

static Status make_row(const DecoderChunk *chunk, const DecoderOutput *output, uint64_t sample, unsigned char *row) {
    const LoaderRow *call = output->state;
    const unsigned char *record;
    BetonRegion region = {0};
    TRY(beton_reader_record_of(chunk->source->reader, output->field, sample, &record));
    if (output->field_info->has_data) {
        TRY(loader_source_region(chunk->source, output->field, sample, &region));
    }
    memset(row, 0, output->array.sample_bytes);
    int32_t answer = (*call)(row, record, region.data, region.size, sample);
    if (answer != 0) FAIL(STATUS_FORMAT, "the function returned %d", (int)answer);
    return STATUS_OK;
}

static Status function_decode(const DecoderChunk *chunk, const DecoderOutput *output, unsigned char *rows) {
    const size_t width = output->array.sample_bytes;
    for (size_t i = 0; i < chunk->count; i++) {
        Status status = make_row(chunk, output, chunk->ids[i], rows + i * width);
        TRY(loader_decoder_fail(chunk, output, i, "decode", status));
    }
    return STATUS_OK;
}

static void function_destroy(DecoderOutput *output) { memory_free(output->state); }

const DecoderEntry loader_decoder_function = {.name = "function",
                                              .what = "a function",
                                              .kinds = kinds,
                                              .kind_count = sizeof kinds / sizeof *kinds,
                                              .prepare = function_prepare,
                                              .decode = function_decode,
                                              .destroy = function_destroy};
