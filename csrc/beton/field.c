/* The kinds by number, the layout of a record, dtypes by name. */
#include "beton/field.h"

#include "base/checked.h"

const FieldKind *beton_field_kind_of(unsigned type_id) {
    switch (type_id) {
    case BETON_FLOAT:
        return &beton_field_kind_float;
    case BETON_INT:
        return &beton_field_kind_int;
    case BETON_IMAGE:
        return &beton_field_kind_image;
    case BETON_BYTES:
        return &beton_field_kind_bytes;
    case BETON_ARRAY:
        return &beton_field_kind_array;
    case BETON_JSON:
        return &beton_field_kind_json;
    case BETON_TENSOR:
        return &beton_field_kind_tensor;
    case BETON_CUSTOM:
        return &beton_field_kind_custom;
    default:
        return NULL;
    }
}

const char *beton_kind_name(BetonKind kind) {
    const FieldKind *found = beton_field_kind_of((unsigned)kind);
    return found == NULL ? "unknown" : found->name;
}

bool beton_field_layout(BetonField *fields, size_t num_fields, uint64_t *record_bytes) {
    uint64_t offset = 0, largest = 1;
    for (size_t i = 0; i < num_fields; i++) {
        BetonField *field = &fields[i];
        if (!checked_round_up(offset, field->record_alignment, &offset) || offset > UINT32_MAX) return false;
        field->record_offset = (uint32_t)offset;
        offset += field->record_bytes;
        if (field->record_alignment > largest) largest = field->record_alignment;
    }
    return checked_round_up(offset, largest, record_bytes);
}

static const struct {
    const char *name;
    size_t bytes;
} dtypes[BETON_DTYPES] = {
    [BETON_BOOL] = {"bool", 1},     [BETON_I8] = {"int8", 1},          [BETON_U8] = {"uint8", 1},
    [BETON_I16] = {"int16", 2},     [BETON_U16] = {"uint16", 2},       [BETON_I32] = {"int32", 4},
    [BETON_U32] = {"uint32", 4},    [BETON_I64] = {"int64", 8},        [BETON_U64] = {"uint64", 8},
    [BETON_F16] = {"float16", 2},   [BETON_F32] = {"float32", 4},      [BETON_F64] = {"float64", 8},
    [BETON_C64] = {"complex64", 8}, [BETON_C128] = {"complex128", 16},
};

size_t beton_dtype_bytes(BetonDtype dtype) { return dtypes[dtype].bytes; }

const char *beton_dtype_name(int dtype) { return (unsigned)dtype < BETON_DTYPES ? dtypes[dtype].name : NULL; }
