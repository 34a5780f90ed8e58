/* Int and Float fields, whose values are in their records; and operations on labels. */
#include <string.h>

#include "augment/augment.h"
#include "base/memory.h"
#include "loader/decoders/decoder.h"

static const BetonKind int_kinds[] = {BETON_INT}, float_kinds[] = {BETON_FLOAT};
static const uint64_t one[] = {1};

/* The state of a field of labels: what is done to them, in order. */
typedef struct Labels {
    int count;
    AugmentOp ops[LOADER_MAX_LABEL_OPS];
} Labels;

/* The operation that makes several values from a label and its neighbour; NULL if there is none. */
static const AugmentOp *pairing(const Labels *labels) {
    const AugmentOp *last = &labels->ops[labels->count - 1];
    return augment_entry(last->kind)->phase == AUGMENT_LABEL ? last : NULL;
}

static Status check_labels(const Labels *labels) {
    for (int i = 0; i < labels->count; i++) {
        TRY(augment_op_check(&labels->ops[i], (AugmentFormat){0}));
        const AugmentEntry *entry = augment_entry(labels->ops[i].kind);
        if (entry->phase < AUGMENT_VALUE) FAIL(STATUS_ARGUMENT, "%s is for images", entry->name);
        if (entry->phase == AUGMENT_LABEL && i < labels->count - 1) {
            FAIL(STATUS_ARGUMENT, "%s must be the last operation on labels", entry->name);
        }
    }
    return STATUS_OK;
}

static Status prepare_labels(const LoaderOutput *request, DecoderOutput *output) {
    Labels *labels = NULL;
    if (request->label_count > LOADER_MAX_LABEL_OPS) {
        FAIL(STATUS_ARGUMENT, "labels take at most %d operations, not %d", LOADER_MAX_LABEL_OPS, request->label_count);
    }
    TRY(memory_calloc(1, sizeof *labels, &labels));
    output->state = labels;
    labels->count = request->label_count;
    memcpy(labels->ops, request->labels, (size_t)request->label_count * sizeof *labels->ops);
    TRY(check_labels(labels));
    const AugmentOp *pairs = pairing(labels);
    if (pairs == NULL) return STATUS_OK;
    const uint64_t columns = (uint64_t)augment_entry(pairs->kind)->columns;
    loader_decoder_set_array(output, BETON_F32, 1, &columns);
    return STATUS_OK;
}

static Status prepare_int(const LoaderSource *source, const Traversal *in_use, const LoaderOutput *request,
                          DecoderOutput *output) {
    (void)source, (void)in_use;
    loader_decoder_set_array(output, BETON_I64, 1, one);
    return request->label_count == 0 ? STATUS_OK : prepare_labels(request, output);
}

static void destroy_int(DecoderOutput *output) { memory_free(output->state); }

static Status prepare_float(const LoaderSource *source, const Traversal *in_use, const LoaderOutput *request,
                            DecoderOutput *output) {
    (void)source, (void)in_use, (void)request;
    loader_decoder_set_array(output, BETON_F64, 1, one);
    return STATUS_OK;
}

static AugmentDrawn draw(const DecoderChunk *chunk, const AugmentOp *op, uint64_t sample) {
    const AugmentKey key = {chunk->seed, sample, chunk->batch, chunk->epoch};
    return augment_op_draw(op, &key, chunk->evaluate, (AugmentSize){0, 0});
}

/* The sample's label, after the operations on single labels. A failure is reported for the chunk's sample `i`. */
static Status read_label(const DecoderChunk *chunk, const DecoderOutput *output, size_t i, uint64_t sample,
                         int64_t *to) {
    const Labels *labels = output->state;
    int64_t value = 0;
    Status status = beton_reader_int(chunk->source->reader, output->field, sample, &value);
    TRY(loader_decoder_fail(chunk, output, i, "read", status));
    for (int k = 0; labels != NULL && k < labels->count; k++) {
        if (draw(chunk, &labels->ops[k], sample).acts) value = augment_op_value(&labels->ops[k], value);
    }
    *to = value;
    return STATUS_OK;
}

/* The labels of a pair are stored in a float, which holds integers exactly up to this. */
enum { PAIRED_MOST = 1 << 24 };

static Status check_paired(const DecoderChunk *chunk, const DecoderOutput *output, size_t i, const AugmentOp *op,
                           int64_t label) {
    if (label >= -PAIRED_MOST && label <= PAIRED_MOST) return STATUS_OK;
    return loader_decoder_fail(chunk, output, i, augment_entry(op->kind)->name,
                               error_fail(STATUS_ARGUMENT,
                                          "the label %lld is beyond the integers that float32 holds exactly, -%d to %d",
                                          (long long)label, PAIRED_MOST, PAIRED_MOST));
}

static Status decode_pairs(const DecoderChunk *chunk, const DecoderOutput *output, const AugmentOp *op, float *to) {
    int64_t previous = 0, own = 0;
    TRY(read_label(chunk, output, 0, chunk->before, &previous));
    for (size_t i = 0; i < chunk->count; i++, to += output->array.shape[0], previous = own) {
        TRY(read_label(chunk, output, i, chunk->ids[i], &own));
        TRY(check_paired(chunk, output, i, op, own));
        const AugmentDrawn drawn = draw(chunk, op, chunk->ids[i]);
        augment_op_label(op, &drawn, own, previous, to);
    }
    return STATUS_OK;
}

static Status decode_ints(const DecoderChunk *chunk, const DecoderOutput *output, unsigned char *rows) {
    int64_t *to = (int64_t *)(void *)rows;
    const AugmentOp *pairs = output->state == NULL ? NULL : pairing(output->state);
    if (pairs != NULL) return decode_pairs(chunk, output, pairs, (float *)(void *)rows);
    for (size_t i = 0; i < chunk->count; i++) TRY(read_label(chunk, output, i, chunk->ids[i], &to[i]));
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
