/* Int and Float: the value is the record. */
#include "beton/encode.h"

static Status check_source(const BetonValue *value) {
    if (value->source != BETON_SOURCE_SCALAR) FAIL(STATUS_TYPE, "a number was expected");
    return STATUS_OK;
}

static Status encode_float(EncodeJob *job, const BetonFieldSpec *spec, const BetonValue *value, unsigned char *record,
                           BetonChunkPart *part) {
    (void)job, (void)spec, (void)part;
    TRY(check_source(value));
    store_f64(record, value->number);
    return STATUS_OK;
}

static Status encode_int(EncodeJob *job, const BetonFieldSpec *spec, const BetonValue *value, unsigned char *record,
                         BetonChunkPart *part) {
    (void)job, (void)spec, (void)part;
    TRY(check_source(value));
    store_i64(record, value->integer);
    return STATUS_OK;
}

const FieldKind beton_field_kind_float = {
    .name = "float", .record_bytes = 8, .record_alignment = 8, .encode = encode_float};
const FieldKind beton_field_kind_int = {.name = "int", .record_bytes = 8, .record_alignment = 8, .encode = encode_int};
