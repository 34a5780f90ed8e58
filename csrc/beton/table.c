/* The allocation table against the records: every region is inside the data pages, none crosses a page, none overlaps
 * another, and exactly one record of its own sample points at each. A table in (sample, field) order, as this project
 * and a single FFCV process write it, is checked in one pass, and so is one of several FFCV processes (table_pages.c);
 * any other order, and every failure, goes through sorting (table_unsorted.c). */
#include "beton/table.h"

#include <string.h>

#include "base/checked.h"
#include "base/memory.h"

#define LLU(x) ((unsigned long long)(x))

bool beton_table_is_region(const BetonReader *reader, BetonEntry entry) {
    return entry.pointer >= reader->data && checked_within(entry.pointer, entry.size, reader->table) &&
           (entry.pointer & (reader->page_size - 1)) + entry.size <= reader->page_size;
}

Status beton_table_check_entry(const BetonReader *reader, uint64_t index, BetonEntry entry) {
    const char *problem = NULL;
    uint64_t mask = reader->page_size - 1;
    if (entry.pointer < reader->data)
        problem = "begins before the data pages";
    else if (!checked_within(entry.pointer, entry.size, reader->table))
        problem = "ends beyond the data pages";
    else if ((entry.pointer & mask) + entry.size > reader->page_size)
        problem = "crosses the end of its page";
    if (problem == NULL) return STATUS_OK;
    Status status = error_fail(STATUS_FORMAT, "the region of %llu bytes at %llu %s (data pages: %llu to %llu)",
                               LLU(entry.size), LLU(entry.pointer), problem, LLU(reader->data), LLU(reader->table));
    error_at_offset(status, (int64_t)(reader->table + index * BETON_ENTRY_BYTES));
    return entry.sample < reader->num_samples ? error_at_sample(status, (int64_t)entry.sample) : status;
}

Status beton_table_locate(const BetonReader *reader, const BetonField *field, uint64_t sample, FieldLocation *out) {
    const unsigned char *record = beton_reader_record(reader, field, sample);
    Status status = beton_field_kind_of(field->kind)->locate(field, record, out);
    if (status == STATUS_OK) return STATUS_OK;
    error_at_offset(status, record - reader->map);
    error_at_sample(status, (int64_t)sample);
    return error_at_field(status, field->name);
}

bool beton_table_is_own(const FieldLocation *location, uint64_t sample, BetonEntry entry) {
    bool empty = location->size_known && location->size == 0;
    if (entry.size == 0) return empty;
    if (entry.sample != sample || entry.pointer != location->pointer) return false;
    if (empty) return location->may_reserve && entry.size == 1;
    return !location->size_known || entry.size == location->size;
}

static void widen(uint64_t value, bool first, uint64_t *low, uint64_t *high) {
    if (first || value < *low) *low = value;
    if (value > *high) *high = value;
}

static void widen_side(uint32_t value, bool first, uint32_t *low, uint32_t *high) {
    if (first || value < *low) *low = value;
    if (value > *high) *high = value;
}

void beton_table_observe(const BetonReader *reader, BetonField *field, uint64_t sample, bool first, uint64_t size) {
    widen(size, first, &field->min_bytes, &field->max_bytes);
    if (field->kind != BETON_IMAGE) return;
    const unsigned char *record = beton_reader_record(reader, field, sample);
    widen_side(load_u16(record + BETON_IMAGE_WIDTH), first, &field->min_width, &field->max_width);
    widen_side(load_u16(record + BETON_IMAGE_HEIGHT), first, &field->min_height, &field->max_height);
    if (record[0] == BETON_IMAGE_JPEG)
        field->num_jpeg++;
    else
        field->num_raw++;
}

static void forget_observations(BetonReader *reader) {
    for (size_t i = 0; i < reader->num_fields; i++) {
        BetonField *field = &reader->fields[i];
        field->min_bytes = field->max_bytes = field->num_jpeg = field->num_raw = 0;
        field->min_width = field->max_width = field->min_height = field->max_height = 0;
    }
}

/* One pass over records and table; *ordered is false as soon as something does not fit, for whatever reason. */
static Status check_ordered(BetonReader *reader, bool *ordered) {
    const unsigned char *table = reader->map + reader->table;
    uint64_t index = 0, end = 0;
    *ordered = false;
    for (uint64_t sample = 0; sample < reader->num_samples; sample++) {
        for (size_t i = 0; i < reader->num_fields; i++) {
            BetonField *field = &reader->fields[i];
            if (!field->has_data) continue;
            FieldLocation location;
            TRY(beton_table_locate(reader, field, sample, &location));
            BetonEntry entry = beton_entry_load(table, index++);
            if (!beton_table_is_own(&location, sample, entry)) return STATUS_OK;
            if (entry.size != 0) {
                if (!beton_table_is_region(reader, entry) || entry.pointer < end) return STATUS_OK;
                end = entry.pointer + entry.size;
            }
            beton_table_observe(reader, field, sample, sample == 0, location.size_known ? location.size : entry.size);
        }
    }
    *ordered = true;
    return STATUS_OK;
}

Status beton_reader_validate_table(BetonReader *reader) {
    bool ordered;
    if (reader->num_data_fields == 0) return STATUS_OK;
    TRY(check_ordered(reader, &ordered));
    if (ordered) return STATUS_OK;
    forget_observations(reader);
    TRY(memory_alloc((size_t)reader->num_entries, sizeof *reader->entry_of, &reader->entry_of));
    TRY(beton_table_check_pages(reader, &ordered));
    if (ordered) return STATUS_OK;
    forget_observations(reader);
    return beton_table_check_unsorted(reader);
}
