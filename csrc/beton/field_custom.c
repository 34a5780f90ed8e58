/* A custom field: the caller says how large its record is and where in it pointer and size are. */
#include <string.h>

#include "base/checked.h"
#include "beton/encode.h"

Status beton_field_set_custom(BetonField *field, const BetonCustom *custom) {
    uint64_t size = custom->record_bytes;
    bool has_data = custom->pointer_offset >= 0;
    bool fits = size >= 1 && is_power_of_two(custom->record_alignment);
    if (has_data) fits = fits && checked_within((uint64_t)custom->pointer_offset, 8, size);
    if (custom->size_offset >= 0) {
        fits = fits && has_data && checked_within((uint64_t)custom->size_offset, 8, size);
        int64_t apart = fits ? custom->size_offset - custom->pointer_offset : 0;
        fits = apart >= 8 || apart <= -8; /* neither may overwrite the other */
    }
    if (!fits) {
        FAIL(STATUS_ARGUMENT, "a record of %u bytes with alignment %u, pointer at %lld and size at %lld is impossible",
             custom->record_bytes, custom->record_alignment, (long long)custom->pointer_offset,
             (long long)custom->size_offset);
    }
    field->record_bytes = custom->record_bytes;
    field->record_alignment = custom->record_alignment;
    field->pointer_offset = custom->pointer_offset;
    field->size_offset = custom->size_offset;
    field->has_data = has_data;
    return STATUS_OK;
}

static Status custom_locate(const BetonField *field, const unsigned char *record, FieldLocation *out) {
    *out = (FieldLocation){.pointer = load_u64(record + field->pointer_offset)};
    if (field->size_offset >= 0) {
        out->size = load_u64(record + field->size_offset);
        out->size_known = out->may_reserve = true;
    }
    return STATUS_OK;
}

static Status custom_describe(const BetonFieldSpec *spec, BetonField *field, unsigned char *arguments) {
    memcpy(arguments, spec->arguments, BETON_ARGUMENT_BYTES);
    return beton_field_set_custom(field, &spec->custom);
}

static Status custom_encode(EncodeJob *job, const BetonFieldSpec *spec, const BetonValue *value, unsigned char *record,
                            BetonChunkPart *part) {
    (void)job;
    if (value->record == NULL) FAIL(STATUS_TYPE, "a custom field's value needs its record");
    memcpy(record, value->record, spec->custom.record_bytes);
    if (spec->custom.pointer_offset < 0) return STATUS_OK;
    if (spec->custom.size_offset >= 0) {
        store_u64(record + spec->custom.size_offset, value->size);
    } else if (value->size == 0) {
        FAIL(STATUS_ARGUMENT, "a custom field whose record has no size cannot hold an empty value");
    }
    *part = (BetonChunkPart){value->data, value->size};
    return STATUS_OK;
}

/* record sizes and has_data come from BetonCustom */
const FieldKind beton_field_kind_custom = {
    .name = "custom", .locate = custom_locate, .describe = custom_describe, .encode = custom_encode};
