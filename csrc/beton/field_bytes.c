/* Bytes and JSON: pointer and size, packed. */
#include "beton/field.h"

static Status locate(const BetonField *field, const unsigned char *record, FieldLocation *out) {
    (void)field;
    *out = (FieldLocation){
        .pointer = load_u64(record), .size = load_u64(record + 8), .size_known = true, .may_reserve = true};
    return STATUS_OK;
}

const FieldKind field_kind_bytes = {
    .name = "bytes", .record_bytes = 16, .record_alignment = 1, .has_data = true, .locate = locate};
const FieldKind field_kind_json = {
    .name = "json", .record_bytes = 16, .record_alignment = 1, .has_data = true, .locate = locate};
