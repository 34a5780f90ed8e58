/* Private to beton/: a reader of several files. */
#ifndef CGXFFCV_BETON_SET_H
#define CGXFFCV_BETON_SET_H

#include "beton/reader_private.h"

/* The number of the file that has the sample. */
size_t beton_set_part(const BetonReader *set, uint64_t sample);

/* The reader of the sample's file; *sample becomes its number in that. */
static inline const BetonReader *beton_set_reader(const BetonReader *reader, uint64_t *sample) {
    if (reader->num_parts == 0) return reader;
    const BetonReader *part = reader->parts[beton_set_part(reader, *sample)];
    *sample -= part->first;
    return part;
}

/* Closes the files, which the set owns. */
void beton_set_close(BetonReader *set);

/* Like those of a single file's reader. */
Status beton_set_check_length(const BetonReader *set);
Status beton_set_copy(const BetonReader *set, BetonSpan span, unsigned char *to);

#endif
