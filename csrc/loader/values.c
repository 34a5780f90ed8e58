#include "loader/values.h"

#include <string.h>

#include "base/checked.h"
#include "loader/decoders/decoder.h"

static Status find_bytes_field(const LoaderSource *source, const char *name, size_t *out) {
    const BetonReader *reader = source->reader;
    const int64_t found = beton_reader_find_field(reader, name);
    const BetonField *field = found < 0 ? NULL : beton_reader_field(reader, (size_t)found);
    const bool fits = field != NULL && (field->kind == BETON_BYTES || field->kind == BETON_JSON ||
                                        (field->kind == BETON_CUSTOM && field->has_data));
    if (!fits) FAIL(STATUS_ARGUMENT, "'%s' is not a field of variable-length values", name);
    *out = (size_t)found;
    return STATUS_OK;
}

static Status at_value(const LoaderSource *source, const char *field, uint64_t sample, Status status) {
    if (status == STATUS_OK) return status;
    error_at_path(status, beton_reader_path_of(source->reader, sample));
    error_at_sample(status, (int64_t)sample);
    return error_at_field(status, field);
}

static Status place_values(const LoaderSource *source, size_t field, const char *name, const uint64_t *ids,
                           size_t count, int64_t *offsets) {
    uint64_t end = 0;
    offsets[0] = 0;
    for (size_t i = 0; i < count; i++) {
        const uint64_t sample = ids[i]; /* other Python threads may write to it */
        BetonRegion region = {0};
        TRY(at_value(source, name, sample, beton_reader_region(source->reader, field, sample, &region)));
        if (!checked_add(end, region.size, &end) || end > INT64_MAX) {
            FAIL(STATUS_MEMORY, "%zu values of '%s' have more bytes than any machine can hold", count, name);
        }
        offsets[i + 1] = (int64_t)end;
    }
    return STATUS_OK;
}

static Status copy_value(const LoaderSource *source, ReadBuffer *buffer, size_t field, uint64_t sample, uint64_t bytes,
                         unsigned char *out) {
    const BetonReader *reader = source->reader;
    BetonRegion region = {0};
    TRY(beton_reader_region(reader, field, sample, &region));
    if (region.size != bytes) return loader_decoder_fail_changed();
    if (bytes == 0) return STATUS_OK;
    if (source->reads) {
        loader_read_buffer_clear(buffer);
        TRY(loader_read_buffer_add(buffer, &region));
        TRY(loader_read_buffer_read(buffer, reader));
        region.data = loader_read_buffer_find(buffer, &region);
    }
    memcpy(out, region.data, (size_t)bytes);
    return STATUS_OK;
}

static Status copy_values(const LoaderSource *source, size_t field, const char *name, const uint64_t *ids, size_t count,
                          const int64_t *offsets, unsigned char *out) {
    Status status = STATUS_OK;
    ReadBuffer buffer = {0};
    for (size_t i = 0; status == STATUS_OK && i < count; i++) {
        const uint64_t sample = ids[i], bytes = (uint64_t)(offsets[i + 1] - offsets[i]);
        status = copy_value(source, &buffer, field, sample, bytes, out + offsets[i]);
        status = at_value(source, name, sample, status);
    }
    loader_read_buffer_fini(&buffer);
    return status;
}

Status loader_values_place(const LoaderSource *source, const char *field, const uint64_t *ids, size_t count,
                           int64_t *offsets) {
    size_t index = 0;
    Guard guard;
    TRY(find_bytes_field(source, field, &index));
    loader_source_enter(source, &guard);
    return loader_source_leave(source, &guard, place_values(source, index, field, ids, count, offsets));
}

Status loader_values_read(const LoaderSource *source, const char *field, const uint64_t *ids, size_t count,
                          const int64_t *offsets, unsigned char *out) {
    size_t index = 0;
    Guard guard;
    TRY(find_bytes_field(source, field, &index));
    loader_source_enter(source, &guard);
    Status status = copy_values(source, index, field, ids, count, offsets, out);
    TRY(loader_source_leave(source, &guard, status));
    return loader_source_check(source);
}
