/* Bytes and JSON: pointer and size, packed. */
#include "beton/encode.h"

static Status bytes_locate(const BetonField *field, const unsigned char *record, FieldLocation *out) {
    (void)field;
    *out = (FieldLocation){
        .pointer = load_u64(record), .size = load_u64(record + 8), .size_known = true, .may_reserve = true};
    return STATUS_OK;
}

static Status encode_bytes(EncodeJob *job, const BetonFieldSpec *spec, const BetonValue *value, unsigned char *record,
                           BetonChunkPart *part) {
    (void)job, (void)spec;
    if (value->source != BETON_SOURCE_BYTES) FAIL(STATUS_TYPE, "bytes were expected");
    store_u64(record + 8, value->size);
    *part = (BetonChunkPart){value->data, value->size};
    return STATUS_OK;
}

static Status encode_json(EncodeJob *job, const BetonFieldSpec *spec, const BetonValue *value, unsigned char *record,
                          BetonChunkPart *part) {
    const unsigned char *text = value->data;
    if (value->source != BETON_SOURCE_BYTES || value->size == 0 || text[value->size - 1] != 0) {
        FAIL(STATUS_TYPE, "JSON text that ends in NUL was expected");
    }
    return encode_bytes(job, spec, value, record, part);
}

const FieldKind beton_field_kind_bytes = {.name = "bytes",
                                          .record_bytes = 16,
                                          .record_alignment = 1,
                                          .has_data = true,
                                          .locate = bytes_locate,
                                          .encode = encode_bytes};
const FieldKind beton_field_kind_json = {.name = "json",
                                         .record_bytes = 16,
                                         .record_alignment = 1,
                                         .has_data = true,
                                         .locate = bytes_locate,
                                         .encode = encode_json};
