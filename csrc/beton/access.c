/* Fetches values of a validated file. Whatever could turn into an access outside the mapping if the file were rewritten
 * in place is checked again here; the rest was checked when it was opened. */
#include <string.h>

#include "base/checked.h"
#include "beton/set.h"

#define LLU(x) ((unsigned long long)(x))

static Status at_value(const BetonReader *reader, Status status, const BetonField *field, uint64_t sample) {
    error_at_path(status, reader->path);
    error_at_sample(status, (int64_t)(reader->first + sample));
    return error_at_field(status, field->name);
}

static Status check_indices(const BetonReader *reader, size_t field, uint64_t sample) {
    if (field >= reader->num_fields) {
        return error_at_path(
            error_fail(STATUS_INDEX, "there is no field %zu: the file has %zu", field, reader->num_fields),
            reader->path);
    }
    if (sample >= reader->num_samples) {
        return error_at_path(error_fail(STATUS_INDEX, "there is no sample %llu: the file has %llu", LLU(sample),
                                        LLU(reader->num_samples)),
                             reader->path);
    }
    return STATUS_OK;
}

static Status check_kind(const BetonReader *reader, size_t field, BetonKind kind) {
    const BetonField *own = &reader->fields[field];
    if (own->kind == kind) return STATUS_OK;
    Status status =
        error_fail(STATUS_TYPE, "the field holds %s, not %s", beton_kind_name(own->kind), beton_kind_name(kind));
    return error_at_path(error_at_field(status, own->name), reader->path);
}

Status beton_reader_int(const BetonReader *reader, size_t field, uint64_t sample, int64_t *out) {
    TRY(check_indices(reader, field, sample));
    TRY(check_kind(reader, field, BETON_INT));
    reader = beton_set_reader(reader, &sample);
    *out = load_i64(beton_reader_record(reader, &reader->fields[field], sample));
    return STATUS_OK;
}

Status beton_reader_float(const BetonReader *reader, size_t field, uint64_t sample, double *out) {
    TRY(check_indices(reader, field, sample));
    TRY(check_kind(reader, field, BETON_FLOAT));
    reader = beton_set_reader(reader, &sample);
    *out = load_f64(beton_reader_record(reader, &reader->fields[field], sample));
    return STATUS_OK;
}

/* The allocation table's entry, of size 0 if there is none; entries are in order unless there is an entry_of. */
static BetonEntry entry_of(const BetonReader *reader, const BetonField *field, uint64_t sample) {
    uint64_t index = sample * reader->num_data_fields + field->data_index;
    if (reader->entry_of != NULL) index = reader->entry_of[index];
    if (index == READER_NO_ENTRY) return (BetonEntry){0};
    return beton_entry_load(reader->map + reader->table, index);
}

/* The byte reserved for an empty value is 0; any other byte is a one-byte value whose size was lost. */
static Status check_reserved(const BetonReader *reader, const BetonField *field, uint64_t sample) {
    BetonEntry entry = entry_of(reader, field, sample);
    if (entry.size != 1 || entry.pointer < reader->data || entry.pointer >= reader->table) return STATUS_OK;
    if (reader->map[entry.pointer] == 0) return STATUS_OK;
    FAIL(STATUS_FORMAT, "the value is empty according to its record, but the byte reserved for it at %llu is not 0",
         LLU(entry.pointer));
}

static Status fetch(const BetonReader *reader, const BetonField *field, uint64_t sample, BetonRegion *out) {
    FieldLocation location;
    Status status = beton_damaged(
        beton_field_kind_of(field->kind)->locate(field, beton_reader_record(reader, field, sample), &location));
    if (status != STATUS_OK) return at_value(reader, status, field, sample);
    uint64_t size = location.size_known ? location.size : entry_of(reader, field, sample).size;
    if (size == 0) {
        if (location.may_reserve) status = beton_damaged(check_reserved(reader, field, sample));
        if (status != STATUS_OK) return at_value(reader, status, field, sample);
        *out = (BetonRegion){0};
        return STATUS_OK;
    }
    if (location.pointer < reader->data || !checked_within(location.pointer, size, reader->table)) {
        status = error_fail(STATUS_FORMAT,
                            "the file has been changed since it was opened: %llu bytes at %llu; open it again",
                            LLU(size), LLU(location.pointer));
        return at_value(reader, status, field, sample);
    }
    *out = (BetonRegion){reader->map + location.pointer, size, reader->base + location.pointer};
    return STATUS_OK;
}

Status beton_reader_image(const BetonReader *reader, size_t field, uint64_t sample, BetonImage *out) {
    BetonImage image = {0};
    TRY(check_indices(reader, field, sample));
    TRY(check_kind(reader, field, BETON_IMAGE));
    reader = beton_set_reader(reader, &sample);
    TRY(fetch(reader, &reader->fields[field], sample, &image.region));
    const unsigned char *record = beton_reader_record(reader, &reader->fields[field], sample);
    image.mode = record[0] == BETON_IMAGE_RAW ? BETON_IMAGE_RAW : BETON_IMAGE_JPEG;
    image.width = load_u16(record + BETON_IMAGE_WIDTH);
    image.height = load_u16(record + BETON_IMAGE_HEIGHT);
    *out = image;
    return STATUS_OK;
}

Status beton_reader_region(const BetonReader *reader, size_t field, uint64_t sample, BetonRegion *out) {
    TRY(check_indices(reader, field, sample));
    reader = beton_set_reader(reader, &sample);
    const BetonField *own = &reader->fields[field];
    BetonRegion region = {0};
    if (!own->has_data) {
        Status status = error_fail(STATUS_TYPE, "a field of %s has no data region", beton_kind_name(own->kind));
        return error_at_path(error_at_field(status, own->name), reader->path);
    }
    TRY(fetch(reader, own, sample, &region));
    if (own->kind == BETON_JSON) {
        if (region.size == 0 || region.data[region.size - 1] != 0) {
            Status status = beton_damaged(error_fail(STATUS_FORMAT, "the JSON text does not end in NUL"));
            return at_value(reader, error_at_offset(status, (int64_t)region.offset), own, sample);
        }
        region.size--;
    }
    *out = region;
    return STATUS_OK;
}

Status beton_reader_record_of(const BetonReader *reader, size_t field, uint64_t sample, const unsigned char **out) {
    TRY(check_indices(reader, field, sample));
    reader = beton_set_reader(reader, &sample);
    *out = beton_reader_record(reader, &reader->fields[field], sample);
    return STATUS_OK;
}

Status beton_reader_column(const BetonReader *reader, size_t field, BetonColumn *out) {
    if (field >= reader->num_fields) return check_indices(reader, field, 0);
    *out = (BetonColumn){reader->map + reader->metadata + reader->fields[field].record_offset,
                         (size_t)reader->record_bytes};
    return STATUS_OK;
}

/* Samples [first, first + count) of 8-byte records. */
static Status copy_words(const BetonReader *reader, size_t field, BetonKind kind, BetonSpan samples, void *out) {
    if (field >= reader->num_fields) return check_indices(reader, field, 0);
    TRY(check_kind(reader, field, kind));
    if (samples.end < samples.begin || samples.end > reader->num_samples) {
        return error_at_path(error_fail(STATUS_INDEX, "there are no samples %llu to %llu: the file has %llu",
                                        LLU(samples.begin), LLU(samples.end), LLU(reader->num_samples)),
                             reader->path);
    }
    unsigned char *to = out;
    const unsigned char *from = beton_reader_record(reader, &reader->fields[field], samples.begin);
    for (uint64_t i = samples.begin; i < samples.end; i++, to += 8, from += reader->record_bytes) memcpy(to, from, 8);
    return STATUS_OK;
}

Status beton_reader_ints(const BetonReader *reader, size_t field, uint64_t first, uint64_t count, int64_t *out) {
    return copy_words(reader, field, BETON_INT, (BetonSpan){first, first + count}, out);
}

Status beton_reader_floats(const BetonReader *reader, size_t field, uint64_t first, uint64_t count, double *out) {
    return copy_words(reader, field, BETON_FLOAT, (BetonSpan){first, first + count}, out);
}

Status beton_reader_sample_span(const BetonReader *reader, uint64_t sample, BetonSpan *out) {
    BetonSpan span = {UINT64_MAX, 0};
    TRY(check_indices(reader, 0, sample));
    reader = beton_set_reader(reader, &sample);
    for (size_t i = 0; i < reader->num_fields; i++) {
        BetonRegion region = {0};
        if (!reader->fields[i].has_data) continue;
        TRY(fetch(reader, &reader->fields[i], sample, &region));
        if (region.size == 0) continue;
        if (region.offset < span.begin) span.begin = region.offset;
        if (region.offset + region.size > span.end) span.end = region.offset + region.size;
    }
    *out = span.end == 0 ? (BetonSpan){0, 0} : span;
    return STATUS_OK;
}
