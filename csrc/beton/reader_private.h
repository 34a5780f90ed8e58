/* The reader's internals, shared by the files that validate and those that fetch. Private to beton/. */
#ifndef CGXFFCV_BETON_READER_PRIVATE_H
#define CGXFFCV_BETON_READER_PRIVATE_H

#include <stdatomic.h>
#include <sys/stat.h>

#include "beton/field.h"

struct BetonReader {
    char *path; /* owned */
    int descriptor;
    const unsigned char *map; /* owned mapping of `size` bytes */
    uint64_t size;
    atomic_bool lost; /* bytes of the mapping were missing when they were read; now they are zeros */
    uint32_t page_size;
    uint64_t num_samples;
    size_t num_fields, num_data_fields;
    uint64_t metadata, metadata_end, data, table; /* the format's M, E, D, A */
    uint64_t record_bytes;                        /* R */
    uint64_t num_entries;
    BetonField *fields; /* owned, num_fields */
    /* owned, num_samples * num_data_fields, entry of (sample, data_index), READER_NO_ENTRY for an empty value without a
     * reserved byte; NULL if the table is in exactly that order */
    uint64_t *entry_of;
    /* the extension block and its region checksums in (sample, data field) order, in the mapping; NULL without one */
    const unsigned char *extension, *checksums;
    /* Of a set of files: one reader each, owned; the set itself has no records and no table. */
    BetonReader **parts;
    size_t num_parts;
    /* Of a file in a set: the number of its first sample, the offset of its first byte, and whether its mapping is
     * within the set's. */
    uint64_t first, base;
    bool in_set_mapping;
};

#define READER_NO_ENTRY UINT64_MAX

static inline const unsigned char *beton_reader_record(const BetonReader *reader, const BetonField *field,
                                                       uint64_t sample) {
    return reader->map + reader->metadata + sample * reader->record_bytes + field->record_offset;
}

/* validate.c: header and descriptors; fills everything but entry_of and the fields' extremes. */
Status beton_reader_validate_head(BetonReader *reader, const BetonCustom *custom, size_t num_custom);

/* table.c: records against the allocation table; fills entry_of and the fields' extremes. */
Status beton_reader_validate_table(BetonReader *reader);

#endif
