/* A user's own field: the caller says how large its record is and where pointer and size stand in it. */
#include "beton/field.h"

static Status locate(const BetonField *field, const unsigned char *record, FieldLocation *out) {
    *out = (FieldLocation){.pointer = load_u64(record + field->pointer_offset)};
    if (field->size_offset >= 0) {
        out->size = load_u64(record + field->size_offset);
        out->size_known = out->may_reserve = true;
    }
    return STATUS_OK;
}

/* record sizes and has_data come from BetonCustom */
const FieldKind field_kind_custom = {.name = "custom", .locate = locate};
