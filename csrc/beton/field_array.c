/* Arrays and tensors: dtype and shape in the descriptor, a pointer in the record. */
#include <stdio.h>
#include <string.h>

#include "base/checked.h"
#include "beton/encode.h"

#define PREFIX "[[\"\", \""
#define SUFFIX "\"]]"

static const struct {
    const char *text;
    BetonDtype dtype;
} codes[] = {
    {"|b1", BETON_BOOL}, {"|i1", BETON_I8},  {"|u1", BETON_U8},  {"<i2", BETON_I16},   {"<u2", BETON_U16},
    {"<i4", BETON_I32},  {"<u4", BETON_U32}, {"<i8", BETON_I64}, {"<u8", BETON_U64},   {"<f2", BETON_F16},
    {"<f4", BETON_F32},  {"<f8", BETON_F64}, {"<c8", BETON_C64}, {"<c16", BETON_C128},
};

/* The text is NumPy's one-entry descriptor list in JSON, with an empty name. */
static bool parse_dtype(const char *text, size_t size, BetonDtype *out) {
    size_t prefix = strlen(PREFIX), suffix = strlen(SUFFIX);
    if (size < prefix + suffix || memcmp(text, PREFIX, prefix) != 0) return false;
    if (memcmp(text + size - suffix, SUFFIX, suffix) != 0) return false;
    size_t length = size - prefix - suffix;
    for (size_t i = 0; i < sizeof codes / sizeof *codes; i++) {
        if (strlen(codes[i].text) != length || memcmp(codes[i].text, text + prefix, length) != 0) continue;
        *out = codes[i].dtype;
        return true;
    }
    return false;
}

/* The shape ends before its trailing zeros; there is at least one dimension. */
static bool parse_shape(const unsigned char *arguments, BetonField *field) {
    field->ndim = 1;
    for (int i = 0; i < BETON_MAX_DIMS; i++) {
        field->shape[i] = load_u64(arguments + 8 * i);
        if (field->shape[i] != 0) field->ndim = i + 1;
    }
    field->value_bytes = beton_dtype_bytes(field->dtype);
    bool empty = false;
    for (int i = 0; i < field->ndim; i++) {
        if (field->shape[i] == 0)
            empty = true;
        else if (!checked_mul(field->value_bytes, field->shape[i], &field->value_bytes))
            return false;
    }
    if (empty) field->value_bytes = 0;
    return true;
}

static Status parse(const unsigned char *arguments, BetonField *field) {
    uint64_t size = load_u64(arguments + BETON_ARRAY_TEXT_BYTES);
    if (size > BETON_ARRAY_TEXT_MAX) {
        FAIL(STATUS_FORMAT, "the dtype's text has %llu bytes; at most %d fit", (unsigned long long)size,
             BETON_ARRAY_TEXT_MAX);
    }
    const char *text = (const char *)arguments + BETON_ARRAY_TEXT;
    if (!parse_dtype(text, (size_t)size, &field->dtype)) {
        FAIL(STATUS_FORMAT, "dtype '%.*s' is not a little-endian bool, integer, float or complex number",
             (int)(size < 64 ? size : 64), text);
    }
    if (!parse_shape(arguments, field)) {
        FAIL(STATUS_FORMAT, "the shape's product overflows 64 bits (it begins with %llu)",
             (unsigned long long)field->shape[0]);
    }
    return STATUS_OK;
}

static Status array_locate(const BetonField *field, const unsigned char *record, FieldLocation *out) {
    *out = (FieldLocation){.pointer = load_u64(record), .size = field->value_bytes, .size_known = true};
    return STATUS_OK;
}

static const char *code_of(BetonDtype dtype) {
    for (size_t i = 0; i < sizeof codes / sizeof *codes; i++) {
        if (codes[i].dtype == dtype) return codes[i].text;
    }
    return NULL;
}

static Status array_describe(const BetonFieldSpec *spec, BetonField *field, unsigned char *arguments) {
    const char *code = code_of(spec->dtype);
    if (code == NULL) FAIL(STATUS_ARGUMENT, "unknown dtype number %d", (int)spec->dtype);
    if (spec->ndim < 1 || spec->ndim > BETON_MAX_DIMS) {
        FAIL(STATUS_ARGUMENT, "the shape must have 1 to %d dimensions, not %d", BETON_MAX_DIMS, spec->ndim);
    }
    for (int i = 0; i < spec->ndim; i++) {
        if (spec->shape[i] == 0) FAIL(STATUS_ARGUMENT, "dimension %d of the shape is 0; the format cannot hold it", i);
        store_u64(arguments + 8 * i, spec->shape[i]);
    }
    char text[sizeof PREFIX + sizeof SUFFIX + 8];
    int length = snprintf(text, sizeof text, PREFIX "%s" SUFFIX, code);
    store_u64(arguments + BETON_ARRAY_TEXT_BYTES, (uint64_t)length);
    memcpy(arguments + BETON_ARRAY_TEXT, text, (size_t)length);
    TRY(parse(arguments, field));
    if (field->value_bytes > BETON_MAX_PAGE_BYTES) {
        FAIL(STATUS_ARGUMENT, "a value of %llu bytes is over the limit of 1 GiB",
             (unsigned long long)field->value_bytes);
    }
    return STATUS_OK;
}

static Status array_encode(EncodeJob *job, const BetonFieldSpec *spec, const BetonValue *value, unsigned char *record,
                           BetonChunkPart *part) {
    (void)job, (void)record;
    uint64_t wanted = beton_dtype_bytes(spec->dtype);
    for (int i = 0; i < spec->ndim; i++) wanted *= spec->shape[i];
    if (value->source != BETON_SOURCE_BYTES || value->size != wanted) {
        FAIL(STATUS_ARGUMENT, "the array has %llu bytes; its field's dtype and shape take %llu",
             (unsigned long long)value->size, (unsigned long long)wanted);
    }
    *part = (BetonChunkPart){value->data, value->size};
    return STATUS_OK;
}

#define ARRAY_KIND(text)                                                                                               \
    {                                                                                                                  \
        .name = (text), .record_bytes = 8, .record_alignment = 8, .has_data = true, .parse = parse,                    \
        .locate = array_locate, .describe = array_describe, .encode = array_encode                                     \
    }
const FieldKind beton_field_kind_array = ARRAY_KIND("array");
const FieldKind beton_field_kind_tensor = ARRAY_KIND("tensor");
