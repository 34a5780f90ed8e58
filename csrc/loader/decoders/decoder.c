/* The table of decoders, and what is shared by its entries. */
#include "loader/decoders/decoder.h"

#include "base/checked.h"
#include "base/memory.h"

static const DecoderEntry *const table[] = {
#define X(constant, entry) [constant] = &entry,
    LOADER_DECODERS(X)
#undef X
};

#define ENTRIES (sizeof table / sizeof *table)

const DecoderEntry *loader_decoder_entry(LoaderDecoder decoder) {
    return (size_t)decoder < ENTRIES ? table[decoder] : NULL;
}

const char *loader_decoder_name(int decoder) {
    return decoder >= 0 && (size_t)decoder < ENTRIES ? table[decoder]->name : NULL;
}

LoaderArray loader_decoder_array_of(BetonDtype dtype, int ndim, const uint64_t *shape) {
    LoaderArray array = {.dtype = dtype, .ndim = ndim, .sample_bytes = beton_dtype_bytes(dtype)};
    for (int i = 0; i < ndim; i++) {
        array.shape[i] = shape[i];
        array.sample_bytes *= (size_t)shape[i];
    }
    return array;
}

Status loader_decoder_check_rows(BetonDtype dtype, int ndim, const uint64_t *shape) {
    uint64_t bytes = beton_dtype_bytes(dtype);
    for (int i = 0; i < ndim; i++) {
        uint64_t side = shape[i] == 0 ? 1 : shape[i]; /* array libraries limit an empty array's other sides, too */
        if (checked_mul(bytes, side, &bytes) && bytes <= memory_of_machine()) continue;
        FAIL(STATUS_MEMORY, "a row of the function's shape does not fit in this machine's memory");
    }
    return STATUS_OK;
}

void loader_decoder_set_array(DecoderOutput *output, BetonDtype dtype, int ndim, const uint64_t *shape) {
    output->array = loader_decoder_array_of(dtype, ndim, shape);
}

Status loader_decoder_buffer(DecoderScratch *scratch, size_t bytes, uint8_t **out) {
    TRY(memory_reserve(&scratch->buffer, &scratch->buffer_bytes, bytes, 1));
    *out = scratch->buffer;
    return STATUS_OK;
}

Status loader_decoder_resizer(const DecoderChunk *chunk, const DecoderOutput *output, Resizer **out) {
    Resizer **resizer = &chunk->scratch->resizers[output - chunk->outputs];
    if (*resizer == NULL) TRY(resizer_create(resizer));
    *out = *resizer;
    return STATUS_OK;
}

Status loader_decoder_fail(const DecoderChunk *chunk, const DecoderOutput *output, size_t i, const char *operation,
                           Status status) {
    if (status == STATUS_OK) return status;
    chunk->scratch->failed_at = (int64_t)(chunk->first + i);
    error_at_operation(status, operation);
    error_at_path(status, beton_reader_path_of(chunk->source->reader, chunk->ids[i]));
    error_at_sample(status, (int64_t)chunk->ids[i]);
    return error_at_field(status, output->field_info->name);
}

Status loader_decoder_fail_changed(void) {
    return error_fail(STATUS_FORMAT, "the file has been changed since it was opened; open it again");
}
