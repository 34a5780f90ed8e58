/* What the two ways of checking the allocation table share. Private to beton/. */
#ifndef CGXFFCV_BETON_TABLE_H
#define CGXFFCV_BETON_TABLE_H

#include "beton/reader_private.h"

/* A region of non-zero size must lie inside the data pages and inside one page. */
Status beton_table_check_entry(const BetonReader *reader, uint64_t index, BetonEntry entry);

/* Reads a record; a failure knows its place. */
Status beton_table_locate(const BetonReader *reader, const BetonField *field, uint64_t sample, FieldLocation *out);

/* Widens the field's extremes by one sample's value; samples come in order. */
void beton_table_observe(const BetonReader *reader, BetonField *field, uint64_t sample, uint64_t size);

/* table_unsorted.c: the check for a table in any order; fills entry_of. */
Status beton_table_check_unsorted(BetonReader *reader);

#endif
