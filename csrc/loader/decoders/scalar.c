/* Int and Float fields, whose values are in their records; and operations on labels. */
#include "augment/augment.h"
#include "base/memory.h"
#include "loader/decoders/decoder.h"

static const BetonKind int_kinds[] = {BETON_INT}, float_kinds[] = {BETON_FLOAT};
static const uint64_t one[] = {1};

/* The state of a field of labels: NULL, or the operation on them, owned. */
static Status prepare_label(const AugmentOp *op, DecoderOutput *output) {
    AugmentOp *own = NULL;
    TRY(augment_op_check(op));
    const AugmentEntry *entry = augment_entry(op->kind);
    if (entry->phase != AUGMENT_LABEL) FAIL(STATUS_ARGUMENT, "%s is for images", entry->name);
    TRY(memory_alloc(1, sizeof *own, &own));
    *own = *op;
    output->state = own;
    loader_decoder_set_array(output, BETON_F32, 1, (uint64_t[]){(uint64_t)entry->columns});
    return STATUS_OK;
}

static Status prepare_int(const LoaderSource *source, const Traversal *in_use, const LoaderOutput *wish,
                          DecoderOutput *output) {
    (void)source, (void)in_use;
    loader_decoder_set_array(output, BETON_I64, 1, one);
    return wish->label == NULL ? STATUS_OK : prepare_label(wish->label, output);
}

static void destroy_int(DecoderOutput *output) { memory_free(output->state); }

static Status prepare_float(const LoaderSource *source, const Traversal *in_use, const LoaderOutput *wish,
                            DecoderOutput *output) {
    (void)source, (void)in_use, (void)wish;
    loader_decoder_set_array(output, BETON_F64, 1, one);
    return STATUS_OK;
}

static Status decode_labels(const DecoderChunk *chunk, const DecoderOutput *output, float *to) {
    const AugmentOp *op = output->state;
    int64_t previous = 0, own;
    Status status = beton_reader_int(chunk->source->reader, output->field, chunk->before, &previous);
    TRY(loader_decoder_fail(chunk, output, 0, "read", status));
    for (size_t i = 0; i < chunk->count; i++, to += output->array.shape[0], previous = own) {
        const AugmentKey key = {chunk->seed, chunk->ids[i], chunk->batch, chunk->epoch};
        status = beton_reader_int(chunk->source->reader, output->field, chunk->ids[i], &own);
        TRY(loader_decoder_fail(chunk, output, i, "read", status));
        const AugmentDrawn drawn = augment_op_draw(op, &key, chunk->evaluate, (AugmentSize){0, 0});
        augment_op_label(op, &drawn, own, previous, to);
    }
    return STATUS_OK;
}

static Status decode_ints(const DecoderChunk *chunk, const DecoderOutput *output, unsigned char *rows) {
    int64_t *to = (int64_t *)(void *)rows;
    if (output->state != NULL) return decode_labels(chunk, output, (float *)(void *)rows);
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
                                         .decode = decode_ints,
                                         .destroy = destroy_int};

const DecoderEntry loader_decoder_float = {.name = "float",
                                           .what = "the decoder of Float",
                                           .kinds = float_kinds,
                                           .kind_count = 1,
                                           .prepare = prepare_float,
                                           .decode = decode_floats};
