/* The checks of header and field descriptors, in the order of docs/FORMAT.md. Reads nothing beyond the descriptors. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/memory.h"
#include "beton/reader_private.h"

#define LLU(x) ((unsigned long long)(x))

static Status check_header(BetonReader *reader) {
    const unsigned char *header = reader->map;
    if (reader->size < BETON_HEADER_BYTES) {
        return beton_damaged(error_fail(STATUS_FORMAT, "the file has %llu bytes; a header alone takes %d",
                                        LLU(reader->size), BETON_HEADER_BYTES));
    }
    unsigned version = load_u16(header + BETON_HEADER_VERSION);
    if (version != BETON_VERSION) {
        return error_at_offset(
            error_fail(STATUS_FORMAT,
                       "version %u; only version %d is known (is it a .beton file? If it was, write it again)", version,
                       BETON_VERSION),
            BETON_HEADER_VERSION);
    }
    reader->num_fields = load_u16(header + BETON_HEADER_NUM_FIELDS);
    reader->page_size = load_u32(header + BETON_HEADER_PAGE_SIZE);
    reader->num_samples = load_u64(header + BETON_HEADER_NUM_SAMPLES);
    reader->table = load_u64(header + BETON_HEADER_TABLE);
    if (reader->table == 0) {
        return error_at_offset(
            error_fail(STATUS_FORMAT, "the file is unfinished: its writer was stopped before the end; write it again"),
            BETON_HEADER_TABLE);
    }
    if (!is_power_of_two(reader->page_size)) {
        Status status = error_fail(STATUS_FORMAT, "page size %u is not a power of two", reader->page_size);
        return error_at_offset(beton_damaged(status), BETON_HEADER_PAGE_SIZE);
    }
    if (reader->num_fields == 0) {
        Status status = error_fail(STATUS_FORMAT, "the file has no fields");
        return error_at_offset(beton_damaged(status), BETON_HEADER_NUM_FIELDS);
    }
    return STATUS_OK;
}

static Status check_name(const unsigned char *bytes, char *out) {
    size_t length = strnlen((const char *)bytes, BETON_DESCRIPTOR_NAME_BYTES);
    if (length == 0) FAIL(STATUS_FORMAT, "a field has no name");
    for (size_t i = 0; i < BETON_DESCRIPTOR_NAME_BYTES; i++) {
        if (i < length && (bytes[i] < 0x20 || bytes[i] > 0x7E)) {
            FAIL(STATUS_FORMAT, "a field's name contains byte 0x%02x; names are printable ASCII", bytes[i]);
        }
        if (i >= length && bytes[i] != 0) FAIL(STATUS_FORMAT, "a field's name goes on after its end");
    }
    memcpy(out, bytes, length);
    out[length] = '\0';
    return STATUS_OK;
}

static Status parse_custom(BetonField *field, const BetonCustom *custom, size_t num_custom) {
    for (size_t i = 0; i < num_custom; i++) {
        if (strcmp(custom[i].name, field->name) == 0) return beton_field_set_custom(field, &custom[i]);
    }
    FAIL(STATUS_FORMAT,
         "the field has a custom type (255), which the file does not describe: pass its class (custom_fields)");
}

static Status parse_descriptor(const unsigned char *bytes, BetonField *field, const BetonCustom *custom,
                               size_t num_custom) {
    TRY(beton_damaged(check_name(bytes + BETON_DESCRIPTOR_NAME, field->name)));
    const FieldKind *kind = beton_field_kind_of(bytes[0]);
    if (kind == NULL) {
        Status status = error_fail(STATUS_FORMAT, "unknown field type %u", bytes[0]);
        return error_at_field(beton_damaged(status), field->name);
    }
    field->kind = (BetonKind)bytes[0];
    field->record_bytes = kind->record_bytes;
    field->record_alignment = kind->record_alignment;
    field->has_data = kind->has_data;
    field->pointer_offset = field->size_offset = -1;
    field->arguments = bytes + BETON_DESCRIPTOR_ARGUMENTS;
    if (field->kind == BETON_CUSTOM) return error_at_field(parse_custom(field, custom, num_custom), field->name);
    if (kind->parse == NULL) return STATUS_OK;
    return error_at_field(beton_damaged(kind->parse(field->arguments, field)), field->name);
}

static int compare_names(const void *a, const void *b) {
    const BetonField *const *left = a, *const *right = b;
    return strcmp((*left)->name, (*right)->name);
}

static Status check_unique_names(const BetonReader *reader) {
    const BetonField **sorted = NULL;
    Status status = STATUS_OK;
    TRY(memory_alloc(reader->num_fields, sizeof *sorted, &sorted));
    for (size_t i = 0; i < reader->num_fields; i++) sorted[i] = &reader->fields[i];
    qsort(sorted, reader->num_fields, sizeof *sorted, compare_names);
    for (size_t i = 1; i < reader->num_fields && status == STATUS_OK; i++) {
        if (strcmp(sorted[i - 1]->name, sorted[i]->name) != 0) continue;
        status = error_at_field(error_fail(STATUS_FORMAT, "two fields have this name"), sorted[i]->name);
    }
    memory_free(sorted);
    return status;
}

static Status parse_descriptors(BetonReader *reader, const BetonCustom *custom, size_t num_custom) {
    reader->metadata = BETON_HEADER_BYTES + (uint64_t)reader->num_fields * BETON_DESCRIPTOR_BYTES;
    if (reader->metadata > reader->size) {
        return beton_damaged(error_fail(STATUS_FORMAT,
                                        "the file has %llu bytes, fewer than the %llu that its %zu field descriptors "
                                        "take",
                                        LLU(reader->size), LLU(reader->metadata), reader->num_fields));
    }
    TRY(memory_calloc(reader->num_fields, sizeof *reader->fields, &reader->fields));
    for (size_t i = 0; i < reader->num_fields; i++) {
        uint64_t offset = BETON_HEADER_BYTES + (uint64_t)i * BETON_DESCRIPTOR_BYTES;
        BetonField *field = &reader->fields[i];
        Status status = parse_descriptor(reader->map + offset, field, custom, num_custom);
        if (status != STATUS_OK) return error_at_offset(status, (int64_t)offset);
        if (field->has_data) field->data_index = reader->num_data_fields++;
    }
    if (!beton_field_layout(reader->fields, reader->num_fields, &reader->record_bytes)) {
        FAIL(STATUS_ARGUMENT, "the records of the custom fields are too large");
    }
    return beton_damaged(check_unique_names(reader));
}

/* Computes E, D and the number of the table's entries, and checks its place. */
static Status check_extents(BetonReader *reader) {
    uint64_t records, wanted;
    if (!checked_mul(reader->num_samples, reader->record_bytes, &records) ||
        !checked_add(reader->metadata, records, &reader->metadata_end) ||
        !checked_round_up(reader->metadata_end, reader->page_size, &reader->data) ||
        !checked_mul(reader->num_samples, reader->num_data_fields, &wanted)) {
        return error_at_offset(error_fail(STATUS_FORMAT, "%llu samples of %llu bytes overflow 64 bits",
                                          LLU(reader->num_samples), LLU(reader->record_bytes)),
                               BETON_HEADER_NUM_SAMPLES);
    }
    if (reader->table < reader->metadata_end || reader->table > reader->size) {
        const char *what = reader->table > reader->size ? "is beyond the end of the file: its tail is missing"
                                                        : "is before the end of the records";
        return error_at_offset(error_fail(STATUS_FORMAT,
                                          "the allocation table at %llu %s (file of %llu bytes, records end at %llu)",
                                          LLU(reader->table), what, LLU(reader->size), LLU(reader->metadata_end)),
                               BETON_HEADER_TABLE);
    }
    if (reader->num_data_fields == 0 && reader->table != reader->metadata_end) {
        return error_at_offset(error_fail(STATUS_FORMAT,
                                          "no field has data, so the allocation table must be at %llu, not at %llu",
                                          LLU(reader->metadata_end), LLU(reader->table)),
                               BETON_HEADER_TABLE);
    }
    reader->num_entries = (reader->size - reader->table) / BETON_ENTRY_BYTES;
    if (reader->num_entries != wanted) {
        return error_at_offset(
            error_fail(STATUS_FORMAT,
                       "the allocation table has %llu entries; %llu samples with %zu fields of data need %llu",
                       LLU(reader->num_entries), LLU(reader->num_samples), reader->num_data_fields, LLU(wanted)),
            (int64_t)reader->table);
    }
    return STATUS_OK;
}

Status beton_reader_validate_head(BetonReader *reader, const BetonCustom *custom, size_t num_custom) {
    TRY(check_header(reader));
    TRY(parse_descriptors(reader, custom, num_custom));
    return beton_damaged(check_extents(reader));
}
