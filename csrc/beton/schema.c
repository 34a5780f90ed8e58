/* Turns field specs into descriptors and a record layout. */
#include "beton/schema.h"

#include <string.h>

#include "base/checked.h"
#include "base/memory.h"
#include "base/names.h"

NAMES_DEFINE(beton_write_mode_name, "raw", "jpg", "proportion", "smart", "given")

static Status check_name(const BetonFieldSpec *spec) {
    size_t length = strnlen(spec->name, BETON_NAME_BYTES);
    if (length == 0 || length == BETON_NAME_BYTES) {
        FAIL(STATUS_ARGUMENT, "a field's name must have 1 to %d bytes, not %zu", BETON_DESCRIPTOR_NAME_BYTES, length);
    }
    for (size_t i = 0; i < length; i++) {
        unsigned char byte = (unsigned char)spec->name[i];
        if (byte < 0x20 || byte > 0x7E) {
            FAIL(STATUS_ARGUMENT, "a field's name must be printable ASCII, but it contains byte 0x%02x", byte);
        }
    }
    return STATUS_OK;
}

static Status check_unique(const BetonFieldSpec *specs, size_t count) {
    for (size_t i = 0; i < count; i++) {
        for (size_t j = 0; j < i; j++) {
            if (strcmp(specs[i].name, specs[j].name) == 0) {
                FAIL(STATUS_ARGUMENT, "two fields are named '%s'", specs[i].name);
            }
        }
    }
    return STATUS_OK;
}

static Status schema_describe(const BetonFieldSpec *spec, BetonField *field, unsigned char *descriptor) {
    TRY(check_name(spec));
    const FieldKind *kind = beton_field_kind_of((unsigned)spec->kind);
    if (kind == NULL) FAIL(STATUS_ARGUMENT, "unknown field type %d", (int)spec->kind);
    *field = (BetonField){.kind = spec->kind,
                          .record_bytes = kind->record_bytes,
                          .record_alignment = kind->record_alignment,
                          .has_data = kind->has_data,
                          .pointer_offset = -1,
                          .size_offset = -1,
                          .arguments = descriptor + BETON_DESCRIPTOR_ARGUMENTS};
    memcpy(field->name, spec->name, sizeof field->name);
    descriptor[0] = (unsigned char)spec->kind;
    memcpy(descriptor + BETON_DESCRIPTOR_NAME, spec->name, strlen(spec->name));
    if (kind->describe == NULL) return STATUS_OK;
    return error_at_field(kind->describe(spec, field, descriptor + BETON_DESCRIPTOR_ARGUMENTS), spec->name);
}

Status beton_schema_create(const BetonFieldSpec *fields, size_t num_fields, BetonSchema **out) {
    Status status = STATUS_OK;
    BetonSchema *schema = NULL;
    if (num_fields == 0 || num_fields > UINT16_MAX) {
        FAIL(STATUS_ARGUMENT, "a file has 1 to %d fields, not %zu", UINT16_MAX, num_fields);
    }
    TRY(memory_calloc(1, sizeof *schema, &schema));
    schema->num_fields = num_fields;
    schema->head_bytes = BETON_HEADER_BYTES + (uint64_t)num_fields * BETON_DESCRIPTOR_BYTES;
    TRY_GOTO(memory_alloc(num_fields, sizeof *fields, &schema->specs));
    memcpy(schema->specs, fields, num_fields * sizeof *fields);
    TRY_GOTO(memory_calloc(num_fields, sizeof *schema->fields, &schema->fields));
    TRY_GOTO(memory_calloc((size_t)schema->head_bytes, 1, &schema->head));
    store_u16(schema->head + BETON_HEADER_VERSION, BETON_VERSION);
    store_u16(schema->head + BETON_HEADER_NUM_FIELDS, (uint16_t)num_fields);
    for (size_t i = 0; i < num_fields; i++) {
        unsigned char *descriptor = schema->head + BETON_HEADER_BYTES + i * BETON_DESCRIPTOR_BYTES;
        TRY_GOTO(schema_describe(&schema->specs[i], &schema->fields[i], descriptor));
        if (schema->fields[i].has_data) schema->fields[i].data_index = schema->num_data_fields++;
    }
    TRY_GOTO(check_unique(schema->specs, num_fields));
    if (!beton_field_layout(schema->fields, num_fields, &schema->record_bytes)) {
        FAIL_GOTO(STATUS_ARGUMENT, "the records of the custom fields are too large");
    }
    *out = schema;
    schema = NULL;
done:
    beton_schema_destroy(schema);
    return status;
}

void beton_schema_destroy(BetonSchema *schema) {
    if (schema == NULL) return;
    memory_free(schema->specs);
    memory_free(schema->fields);
    memory_free(schema->head);
    memory_free(schema);
}
