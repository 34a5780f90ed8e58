/* A chunk as given to the writer, from this process or packed by another. Private to beton/. */
#ifndef CGXFFCV_BETON_CHUNK_H
#define CGXFFCV_BETON_CHUNK_H

#include "beton/encode.h"

/* Reads what beton_chunk_pack made with the same schema: `chunk` then borrows from `bytes`, except for `parts`, which
 * the caller frees with memory_free. */
Status beton_chunk_unpack(const BetonSchema *schema, const unsigned char *bytes, uint64_t size, BetonChunk *chunk);

#endif
