/* Shared by the ways of checking the allocation table. Private to beton/. */
#ifndef CGXFFCV_BETON_TABLE_H
#define CGXFFCV_BETON_TABLE_H

#include "beton/reader_private.h"

/* Whether a region of non-zero size is inside the data pages and inside one page; the second reports what is wrong. */
bool beton_table_is_region(const BetonReader *reader, BetonEntry entry);
Status beton_table_check_entry(const BetonReader *reader, uint64_t index, BetonEntry entry);

/* Reads a record; a failure names its place. */
Status beton_table_locate(const BetonReader *reader, const BetonField *field, uint64_t sample, FieldLocation *out);

/* Whether an entry is the one that an ordered table has for this record. */
bool beton_table_is_own(const FieldLocation *location, uint64_t sample, BetonEntry entry);

/* Widens the field's extremes by one sample's value. */
void beton_table_observe(const BetonReader *reader, BetonField *field, uint64_t sample, bool first, uint64_t size);

/* table_pages.c: for a table as several processes write it. *fits is false as soon as anything differs from that; then
 * entry_of and the extremes are meaningless. */
Status beton_table_check_pages(BetonReader *reader, bool *fits);

/* table_unsorted.c: the check for a table in any order; fills entry_of. */
Status beton_table_check_unsorted(BetonReader *reader);

#endif
