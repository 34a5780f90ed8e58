/* Int and Float fields, whose values are in their records. */
#include "loader/decoders/decoder.h"

static const BetonKind int_kinds[] = {BETON_INT}, float_kinds[] = {BETON_FLOAT};
static const uint64_t one[] = {1};

static Status prepare_int(const LoaderSource *source, const Traversal *in_use, const LoaderOutput *wish,
                          DecoderOutput *output) {
    (void)source, (void)in_use, (void)wish;
    loader_decoder_set_array(output, BETON_I64, 1, one);
    return STATUS_OK;
}

static Status prepare_float(const LoaderSource *source, const Traversal *in_use, const LoaderOutput *wish,
                            DecoderOutput *output) {
    (void)source, (void)in_use, (void)wish;
    loader_decoder_set_array(output, BETON_F64, 1, one);
    return STATUS_OK;
}

static Status decode_ints(const DecoderChunk *chunk, const DecoderOutput *output, unsigned char *rows) {
    int64_t *to = (int64_t *)(void *)rows;
    for (size_t i = 0; i < chunk->count; i++) {
        Status status = beton_reader_int(chunk->source->reader, output->field, chunk->ids[i], &to[i]);
        TRY(loader_decoder_fail(chunk, output, i, "read", status));
    }
    return STATUS_OK;
}

static Status decode_floats(const DecoderChunk *chunk, const DecoderOutput *output, unsigned char *rows) {
    double *to = (double *)(void *)rows;
    for (size_t i = 0; i < chunk->count; i++) {
        Status status = beton_reader_float(chunk->source->reader, output->field, chunk->ids[i], &to[i]);
        TRY(loader_decoder_fail(chunk, output, i, "read", status));
    }
    return STATUS_OK;
}

const DecoderEntry loader_decoder_int = {.name = "int",
                                         .what = "the decoder of Int",
                                         .kinds = int_kinds,
                                         .kind_count = 1,
                                         .prepare = prepare_int,
                                         .decode = decode_ints};

const DecoderEntry loader_decoder_float = {.name = "float",
                                           .what = "the decoder of Float",
                                           .kinds = float_kinds,
                                           .kind_count = 1,
                                           .prepare = prepare_float,
                                           .decode = decode_floats};
