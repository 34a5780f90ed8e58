/* The allocation table in any order: non-empty entries sorted by pointer (overlaps), then dealt out to their samples;
 * each record looks its pointer up among its own sample's entries. Linear but for the look-ups. */
#include <string.h>

#include "base/memory.h"
#include "beton/table.h"

#define LLU(x) ((unsigned long long)(x))
#define DIGIT_BITS 11
#define DIGITS (1u << DIGIT_BITS)

typedef struct Item {
    uint64_t pointer, index;
} Item;

typedef struct Lookup {
    BetonReader *reader; /* borrowed */
    Item *items;         /* owned: the non-empty entries by pointer */
    Item *spare;         /* owned: for sorting, then the same by (sample, pointer) */
    uint64_t num_items;
    uint64_t *begin;        /* owned, num_samples + 1: the samples' ranges in `spare` */
    unsigned char *matched; /* owned, num_entries */
} Lookup;

static BetonEntry entry_at(const Lookup *lookup, uint64_t index) {
    return beton_entry_load(lookup->reader->map + lookup->reader->table, index);
}

static Status at_entry(const Lookup *lookup, Status status, uint64_t index) {
    return error_at_offset(status, (int64_t)(lookup->reader->table + index * BETON_ENTRY_BYTES));
}

static Status at_record(const Lookup *lookup, Status status, const BetonField *field, uint64_t sample) {
    error_at_offset(status, reader_record(lookup->reader, field, sample) - lookup->reader->map);
    error_at_sample(status, (int64_t)sample);
    return error_at_field(status, field->name);
}

static Status collect(Lookup *lookup, bool *sorted) {
    uint64_t previous = 0;
    *sorted = true;
    for (uint64_t i = 0; i < lookup->reader->num_entries; i++) {
        BetonEntry entry = entry_at(lookup, i);
        if (entry.size == 0) continue;
        TRY(table_check_entry(lookup->reader, i, entry));
        if (entry.sample >= lookup->reader->num_samples) {
            return at_entry(lookup,
                            error_fail(STATUS_FORMAT, "the allocation table names sample %llu of a file of %llu",
                                       LLU(entry.sample), LLU(lookup->reader->num_samples)),
                            i);
        }
        if (entry.pointer < previous) *sorted = false;
        previous = entry.pointer;
        lookup->items[lookup->num_items++] = (Item){entry.pointer, i};
    }
    return STATUS_OK;
}

/* One stable pass on the digit at `shift`; false when all items share it and nothing moved. */
static bool radix_pass(const Item *from, Item *to, uint64_t count, int shift) {
    uint64_t start[DIGITS] = {0};
    for (uint64_t i = 0; i < count; i++) start[(from[i].pointer >> shift) & (DIGITS - 1)]++;
    if (start[(from[0].pointer >> shift) & (DIGITS - 1)] == count) return false;
    uint64_t sum = 0;
    for (unsigned d = 0; d < DIGITS; d++) {
        uint64_t here = start[d];
        start[d] = sum;
        sum += here;
    }
    for (uint64_t i = 0; i < count; i++) to[start[(from[i].pointer >> shift) & (DIGITS - 1)]++] = from[i];
    return true;
}

static void sort_by_pointer(Lookup *lookup) {
    for (int shift = 0; shift < 64; shift += DIGIT_BITS) {
        if (!radix_pass(lookup->items, lookup->spare, lookup->num_items, shift)) continue;
        Item *swap = lookup->items;
        lookup->items = lookup->spare;
        lookup->spare = swap;
    }
}

static Status check_overlaps(const Lookup *lookup) {
    for (uint64_t i = 1; i < lookup->num_items; i++) {
        BetonEntry left = entry_at(lookup, lookup->items[i - 1].index);
        if (left.size <= lookup->items[i].pointer - left.pointer) continue;
        Status status = error_fail(STATUS_FORMAT, "the regions at %llu (%llu bytes, sample %llu) and at %llu overlap",
                                   LLU(left.pointer), LLU(left.size), LLU(left.sample), LLU(lookup->items[i].pointer));
        status = error_at_sample(status, (int64_t)entry_at(lookup, lookup->items[i].index).sample);
        return at_entry(lookup, status, lookup->items[i].index);
    }
    return STATUS_OK;
}

/* Counting sort by sample; within a sample the order by pointer stays. */
static void deal_out(Lookup *lookup) {
    uint64_t *begin = lookup->begin, samples = lookup->reader->num_samples;
    for (uint64_t i = 0; i < lookup->num_items; i++) begin[entry_at(lookup, lookup->items[i].index).sample + 1]++;
    for (uint64_t s = 0; s < samples; s++) begin[s + 1] += begin[s];
    for (uint64_t i = 0; i < lookup->num_items; i++) {
        lookup->spare[begin[entry_at(lookup, lookup->items[i].index).sample]++] = lookup->items[i];
    }
    memmove(begin + 1, begin, samples * sizeof *begin);
    begin[0] = 0;
}

/* The entry at `pointer` among items [low, high), or READER_NO_ENTRY. */
static uint64_t find(const Item *items, uint64_t low, uint64_t high, uint64_t pointer) {
    while (low < high) {
        uint64_t middle = low + (high - low) / 2;
        if (items[middle].pointer == pointer) return items[middle].index;
        if (items[middle].pointer < pointer)
            low = middle + 1;
        else
            high = middle;
    }
    return READER_NO_ENTRY;
}

static uint64_t find_of_sample(const Lookup *lookup, uint64_t sample, uint64_t pointer) {
    return find(lookup->spare, lookup->begin[sample], lookup->begin[sample + 1], pointer);
}

static Status refuse_pointer(const Lookup *lookup, uint64_t pointer) {
    uint64_t other = find(lookup->items, 0, lookup->num_items, pointer);
    if (other == READER_NO_ENTRY) {
        FAIL(STATUS_FORMAT, "the record points at %llu, which the allocation table does not know", LLU(pointer));
    }
    FAIL(STATUS_FORMAT, "the record points at %llu, which the allocation table gives to sample %llu", LLU(pointer),
         LLU(entry_at(lookup, other).sample));
}

static Status match_value(Lookup *lookup, const BetonField *field, uint64_t sample, const FieldLocation *location,
                          uint64_t *entry_of) {
    uint64_t index = find_of_sample(lookup, sample, location->pointer);
    if (index == READER_NO_ENTRY) return refuse_pointer(lookup, location->pointer);
    if (lookup->matched[index]) {
        FAIL(STATUS_FORMAT, "two records point at the region at %llu", LLU(location->pointer));
    }
    lookup->matched[index] = 1;
    uint64_t size = entry_at(lookup, index).size;
    if (location->size_known && size != location->size) {
        FAIL(STATUS_FORMAT, "the value has %llu bytes by its %s and %llu by the allocation table", LLU(location->size),
             field->kind == BETON_ARRAY || field->kind == BETON_TENSOR ? "shape" : "record", LLU(size));
    }
    *entry_of = index;
    return STATUS_OK;
}

static Status match_values(Lookup *lookup) {
    BetonReader *reader = lookup->reader;
    uint64_t *entry_of = reader->entry_of;
    for (uint64_t sample = 0; sample < reader->num_samples; sample++) {
        for (size_t i = 0; i < reader->num_fields; i++) {
            BetonField *field = &reader->fields[i];
            if (!field->has_data) continue;
            FieldLocation location;
            TRY(table_locate(reader, field, sample, &location));
            *entry_of = READER_NO_ENTRY;
            if (!location.size_known || location.size != 0) {
                Status status = match_value(lookup, field, sample, &location, entry_of);
                if (status != STATUS_OK) return at_record(lookup, status, field, sample);
                location.size = entry_at(lookup, *entry_of).size;
            }
            table_observe(reader, field, sample, location.size);
            entry_of++;
        }
    }
    return STATUS_OK;
}

/* After the values have taken theirs: one-byte entries that stand for an empty value of their sample. */
static Status match_reserved(Lookup *lookup) {
    BetonReader *reader = lookup->reader;
    for (uint64_t sample = 0; sample < reader->num_samples; sample++) {
        if (lookup->begin[sample] == lookup->begin[sample + 1]) continue;
        for (size_t i = 0; i < reader->num_fields; i++) {
            const BetonField *field = &reader->fields[i];
            if (!field->has_data) continue;
            FieldLocation location;
            TRY(table_locate(reader, field, sample, &location));
            if (!location.may_reserve || location.size != 0) continue;
            uint64_t index = find_of_sample(lookup, sample, location.pointer);
            if (index == READER_NO_ENTRY || entry_at(lookup, index).size != 1 || lookup->matched[index]) continue;
            lookup->matched[index] = 1;
            reader->entry_of[sample * reader->num_data_fields + field->data_index] = index;
        }
    }
    return STATUS_OK;
}

static Status check_all_matched(const Lookup *lookup) {
    for (uint64_t i = 0; i < lookup->num_items; i++) {
        uint64_t index = lookup->items[i].index;
        if (lookup->matched[index]) continue;
        BetonEntry entry = entry_at(lookup, index);
        Status status = error_fail(STATUS_FORMAT, "no record points at the region of %llu bytes at %llu",
                                   LLU(entry.size), LLU(entry.pointer));
        return at_entry(lookup, error_at_sample(status, (int64_t)entry.sample), index);
    }
    return STATUS_OK;
}

static void lookup_fini(Lookup *lookup) {
    memory_free(lookup->items);
    memory_free(lookup->spare);
    memory_free(lookup->begin);
    memory_free(lookup->matched);
}

Status table_check_unsorted(BetonReader *reader) {
    Status status = STATUS_OK;
    bool sorted;
    Lookup lookup = {.reader = reader};
    size_t entries = (size_t)reader->num_entries;
    if (entries == 0) return STATUS_OK;
    TRY_GOTO(memory_alloc(entries, sizeof *lookup.items, &lookup.items));
    TRY_GOTO(memory_alloc(entries, sizeof *lookup.spare, &lookup.spare));
    TRY_GOTO(memory_calloc((size_t)reader->num_samples + 1, sizeof *lookup.begin, &lookup.begin));
    TRY_GOTO(memory_calloc(entries, 1, &lookup.matched));
    TRY_GOTO(memory_alloc(entries, sizeof *reader->entry_of, &reader->entry_of));
    TRY_GOTO(collect(&lookup, &sorted));
    if (!sorted && lookup.num_items > 1) sort_by_pointer(&lookup);
    TRY_GOTO(check_overlaps(&lookup));
    deal_out(&lookup);
    TRY_GOTO(match_values(&lookup));
    TRY_GOTO(match_reserved(&lookup));
    TRY_GOTO(check_all_matched(&lookup));
done:
    lookup_fini(&lookup);
    return status;
}
