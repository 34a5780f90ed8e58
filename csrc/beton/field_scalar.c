/* Int and Float: the value is the record. */
#include "beton/field.h"

const FieldKind field_kind_float = {.name = "float", .record_bytes = 8, .record_alignment = 8};
const FieldKind field_kind_int = {.name = "int", .record_bytes = 8, .record_alignment = 8};
