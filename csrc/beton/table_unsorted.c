/* The allocation table in any order: non-empty entries sorted by pointer (overlaps), then dealt out to their samples;
 * each record looks its pointer up among its own sample's entries. Linear except for the look-ups. */
#include <string.h>

#include "base/memory.h"
#include "beton/table.h"

#define LLU(x) ((unsigned long long)(x))
#define DIGIT_BITS 11
#define DIGITS (1u << DIGIT_BITS)

/* A non-empty entry. */
typedef struct Item {
    uint64_t pointer, size, sample, index;
} Item;

typedef struct Lookup {
    BetonReader *reader; /* borrowed */
    Item *items;         /* owned: by pointer */
    Item *dealt;         /* owned: by sample and pointer */
    uint64_t num_items;
    uint64_t *begin;        /* owned, num_samples + 1: the samples' ranges in `dealt` */
    unsigned char *matched; /* owned, as `dealt` */
} Lookup;

#define NOT_FOUND UINT64_MAX

static Status at_entry(const Lookup *lookup, Status status, uint64_t index) {
    return error_at_offset(status, (int64_t)(lookup->reader->table + index * BETON_ENTRY_BYTES));
}

static Status at_record(const Lookup *lookup, Status status, const BetonField *field, uint64_t sample) {
    error_at_offset(status, beton_reader_record(lookup->reader, field, sample) - lookup->reader->map);
    error_at_sample(status, (int64_t)sample);
    return error_at_field(status, field->name);
}

/* The bits of *varying are those in which pointers differ; *sorted: whether they ascend. */
static Status collect(Lookup *lookup, bool *sorted, uint64_t *varying) {
    const BetonReader *reader = lookup->reader;
    uint64_t previous = 0, count = 0;
    *sorted = true;
    *varying = 0;
    for (uint64_t i = 0; i < reader->num_entries; i++) {
        BetonEntry entry = beton_entry_load(reader->map + reader->table, i);
        if (entry.size == 0) continue;
        TRY(beton_table_check_entry(reader, i, entry));
        if (entry.sample >= reader->num_samples) {
            return at_entry(lookup,
                            error_fail(STATUS_FORMAT, "the allocation table names sample %llu, but the file has %llu",
                                       LLU(entry.sample), LLU(reader->num_samples)),
                            i);
        }
        if (entry.pointer < previous) *sorted = false;
        previous = entry.pointer;
        lookup->items[count++] = (Item){entry.pointer, entry.size, entry.sample, i};
        *varying |= entry.pointer ^ lookup->items[0].pointer;
    }
    lookup->num_items = count;
    return STATUS_OK;
}

/* One stable pass on the digit at `shift`. */
static void radix_pass(const Item *from, Item *to, uint64_t count, int shift) {
    uint64_t start[DIGITS] = {0}, sum = 0;
    for (uint64_t i = 0; i < count; i++) start[(from[i].pointer >> shift) & (DIGITS - 1)]++;
    for (unsigned d = 0; d < DIGITS; d++) {
        uint64_t here = start[d];
        start[d] = sum;
        sum += here;
    }
    for (uint64_t i = 0; i < count; i++) to[start[(from[i].pointer >> shift) & (DIGITS - 1)]++] = from[i];
}

static void sort_by_pointer(Lookup *lookup, uint64_t varying) {
    for (int shift = 0; shift < 64; shift += DIGIT_BITS) {
        if (((varying >> shift) & (DIGITS - 1)) == 0) continue;
        radix_pass(lookup->items, lookup->dealt, lookup->num_items, shift);
        Item *swap = lookup->items;
        lookup->items = lookup->dealt;
        lookup->dealt = swap;
    }
}

static Status check_overlaps(const Lookup *lookup) {
    for (uint64_t i = 1; i < lookup->num_items; i++) {
        const Item *left = &lookup->items[i - 1], *right = &lookup->items[i];
        if (left->size <= right->pointer - left->pointer) continue;
        Status status = error_fail(STATUS_FORMAT, "the regions at %llu (%llu bytes, sample %llu) and at %llu overlap",
                                   LLU(left->pointer), LLU(left->size), LLU(left->sample), LLU(right->pointer));
        return at_entry(lookup, error_at_sample(status, (int64_t)right->sample), right->index);
    }
    return STATUS_OK;
}

/* Counting sort by sample; within a sample the order by pointer stays. */
static void deal_out(Lookup *lookup) {
    uint64_t *begin = lookup->begin, samples = lookup->reader->num_samples;
    for (uint64_t i = 0; i < lookup->num_items; i++) begin[lookup->items[i].sample + 1]++;
    for (uint64_t s = 0; s < samples; s++) begin[s + 1] += begin[s];
    for (uint64_t i = 0; i < lookup->num_items; i++) {
        lookup->dealt[begin[lookup->items[i].sample]++] = lookup->items[i];
    }
    memmove(begin + 1, begin, samples * sizeof *begin);
    begin[0] = 0;
}

/* The place of `pointer` among items [low, high), or NOT_FOUND. */
static uint64_t find(const Item *items, uint64_t low, uint64_t high, uint64_t pointer) {
    while (low < high) {
        uint64_t middle = low + (high - low) / 2;
        if (items[middle].pointer == pointer) return middle;
        if (items[middle].pointer < pointer)
            low = middle + 1;
        else
            high = middle;
    }
    return NOT_FOUND;
}

static uint64_t find_of_sample(const Lookup *lookup, uint64_t sample, uint64_t pointer) {
    return find(lookup->dealt, lookup->begin[sample], lookup->begin[sample + 1], pointer);
}

static Status refuse_pointer(const Lookup *lookup, uint64_t pointer) {
    uint64_t other = find(lookup->items, 0, lookup->num_items, pointer);
    if (other == NOT_FOUND) {
        FAIL(STATUS_FORMAT, "the record points at %llu, which is not in the allocation table", LLU(pointer));
    }
    FAIL(STATUS_FORMAT, "the record points at %llu, which the allocation table gives to sample %llu", LLU(pointer),
         LLU(lookup->items[other].sample));
}

/* Finds the value's entry and its size. */
static Status match_value(Lookup *lookup, const BetonField *field, uint64_t sample, const FieldLocation *location,
                          uint64_t *entry_of, uint64_t *size) {
    uint64_t place = find_of_sample(lookup, sample, location->pointer);
    if (place == NOT_FOUND) return refuse_pointer(lookup, location->pointer);
    const Item *item = &lookup->dealt[place];
    if (lookup->matched[place]) {
        FAIL(STATUS_FORMAT, "two records point at the region at %llu", LLU(location->pointer));
    }
    lookup->matched[place] = 1;
    if (location->size_known && item->size != location->size) {
        FAIL(STATUS_FORMAT,
             "the value has %llu bytes according to its %s, but %llu according to the allocation "
             "table",
             LLU(location->size), field->kind == BETON_ARRAY || field->kind == BETON_TENSOR ? "shape" : "record",
             LLU(item->size));
    }
    *entry_of = item->index;
    *size = item->size;
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
            TRY(beton_table_locate(reader, field, sample, &location));
            *entry_of = READER_NO_ENTRY;
            if (!location.size_known || location.size != 0) {
                Status status = match_value(lookup, field, sample, &location, entry_of, &location.size);
                if (status != STATUS_OK) return at_record(lookup, status, field, sample);
            }
            beton_table_observe(reader, field, sample, sample == 0, location.size);
            entry_of++;
        }
    }
    return STATUS_OK;
}

/* After the values have been matched: one-byte entries that stand for an empty value of their sample. */
static Status match_reserved(Lookup *lookup) {
    BetonReader *reader = lookup->reader;
    for (uint64_t sample = 0; sample < reader->num_samples; sample++) {
        if (lookup->begin[sample] == lookup->begin[sample + 1]) continue;
        for (size_t i = 0; i < reader->num_fields; i++) {
            const BetonField *field = &reader->fields[i];
            if (!field->has_data) continue;
            FieldLocation location;
            TRY(beton_table_locate(reader, field, sample, &location));
            if (!location.may_reserve || location.size != 0) continue;
            uint64_t place = find_of_sample(lookup, sample, location.pointer);
            if (place == NOT_FOUND || lookup->dealt[place].size != 1 || lookup->matched[place]) continue;
            lookup->matched[place] = 1;
            reader->entry_of[sample * reader->num_data_fields + field->data_index] = lookup->dealt[place].index;
        }
    }
    return STATUS_OK;
}

static Status check_all_matched(const Lookup *lookup) {
    for (uint64_t i = 0; i < lookup->num_items; i++) {
        if (lookup->matched[i]) continue;
        const Item *item = &lookup->dealt[i];
        Status status = error_fail(STATUS_FORMAT, "no record points at the region of %llu bytes at %llu",
                                   LLU(item->size), LLU(item->pointer));
        return at_entry(lookup, error_at_sample(status, (int64_t)item->sample), item->index);
    }
    return STATUS_OK;
}

static void lookup_fini(Lookup *lookup) {
    memory_free(lookup->items);
    memory_free(lookup->dealt);
    memory_free(lookup->begin);
    memory_free(lookup->matched);
}

Status beton_table_check_unsorted(BetonReader *reader) {
    Status status = STATUS_OK;
    bool sorted;
    uint64_t varying;
    Lookup lookup = {.reader = reader};
    size_t entries = (size_t)reader->num_entries;
    TRY_GOTO(memory_alloc(entries, sizeof *lookup.items, &lookup.items));
    TRY_GOTO(memory_alloc(entries, sizeof *lookup.dealt, &lookup.dealt));
    TRY_GOTO(memory_calloc((size_t)reader->num_samples + 1, sizeof *lookup.begin, &lookup.begin));
    TRY_GOTO(memory_calloc(entries, 1, &lookup.matched));
    TRY_GOTO(collect(&lookup, &sorted, &varying));
    if (!sorted) sort_by_pointer(&lookup, varying);
    TRY_GOTO(check_overlaps(&lookup));
    deal_out(&lookup);
    TRY_GOTO(match_values(&lookup));
    TRY_GOTO(match_reserved(&lookup));
    TRY_GOTO(check_all_matched(&lookup));
done:
    lookup_fini(&lookup);
    return status;
}
