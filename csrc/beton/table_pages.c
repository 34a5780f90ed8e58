/* The allocation table as several writing processes leave it, each with pages of its own: the entries of a sample
 * follow one another in the order of its fields, and those of a page are sorted by pointer; samples and pages are in
 * any order. One pass, without sorting. */
#include "base/memory.h"
#include "beton/table.h"

typedef struct Walk {
    BetonReader *reader; /* borrowed */
    uint64_t *ends;      /* owned: of each page, where its last region so far ends */
    unsigned char *seen; /* owned, num_samples */
} Walk;

/* False if the region is invalid, or not after those of its page so far. */
static bool goes_on(Walk *walk, BetonEntry entry) {
    const BetonReader *reader = walk->reader;
    if (!beton_table_is_region(reader, entry)) return false;
    uint64_t *end = &walk->ends[(entry.pointer - reader->data) >> __builtin_ctz(reader->page_size)];
    if (entry.pointer < *end) return false;
    *end = entry.pointer + entry.size;
    return true;
}

/* Takes the entries from `index` on as those of the sample that the first one names; false if they are not. */
static bool take_sample(Walk *walk, uint64_t index, bool first) {
    BetonReader *reader = walk->reader;
    const unsigned char *table = reader->map + reader->table;
    uint64_t sample = beton_entry_load(table, index).sample;
    if (sample >= reader->num_samples || walk->seen[sample]) return false;
    walk->seen[sample] = 1;
    uint64_t *entry_of = reader->entry_of + sample * reader->num_data_fields;
    for (size_t i = 0; i < reader->num_fields; i++) {
        BetonField *field = &reader->fields[i];
        if (!field->has_data) continue;
        FieldLocation location;
        BetonEntry entry = beton_entry_load(table, index);
        if (beton_table_locate(reader, field, sample, &location) != STATUS_OK) return false;
        if (!beton_table_is_own(&location, sample, entry)) return false;
        if (entry.size != 0 && !goes_on(walk, entry)) return false;
        beton_table_observe(reader, field, sample, first, location.size_known ? location.size : entry.size);
        *entry_of++ = entry.size == 0 ? READER_NO_ENTRY : index;
        index++;
    }
    return true;
}

static void take_all(Walk *walk, bool *fits) {
    const BetonReader *reader = walk->reader;
    *fits = true;
    for (uint64_t i = 0; i < reader->num_samples && *fits; i++) {
        *fits = take_sample(walk, i * reader->num_data_fields, i == 0);
    }
}

Status beton_table_check_pages(BetonReader *reader, bool *fits) {
    Status status = STATUS_OK;
    Walk walk = {.reader = reader};
    uint64_t bytes = reader->table > reader->data ? reader->table - reader->data : 0;
    uint64_t pages = bytes / reader->page_size + 1;
    *fits = pages <= reader->num_entries; /* so `ends` takes no more memory than the entries */
    if (!*fits) return STATUS_OK;
    TRY_GOTO(memory_calloc((size_t)pages, sizeof *walk.ends, &walk.ends));
    TRY_GOTO(memory_calloc((size_t)reader->num_samples, 1, &walk.seen));
    take_all(&walk, fits);
done:
    memory_free(walk.ends);
    memory_free(walk.seen);
    return status;
}
