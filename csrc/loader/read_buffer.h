/* Private to loader/: some values of the file in a thread's own memory, read instead of mapped, so that of a large file
 * a process holds only what its threads work on.
 *
 *     loader_read_buffer_clear(buffer);
 *     TRY(loader_read_buffer_add(buffer, region)) for each value, best in the file's order;
 *     TRY(loader_read_buffer_read(buffer, reader));
 *     bytes = loader_read_buffer_find(buffer, region); */
#ifndef CGXFFCV_LOADER_READ_BUFFER_H
#define CGXFFCV_LOADER_READ_BUFFER_H

#include "beton/reader.h"

typedef struct ReadBufferPiece {
    BetonSpan span; /* of the file */
    size_t at;      /* where it begins in `bytes` */
} ReadBufferPiece;

typedef struct ReadBuffer {
    ReadBufferPiece *pieces; /* owned */
    size_t count, room;
    unsigned char *bytes; /* owned */
    size_t used, capacity;
} ReadBuffer;

void loader_read_buffer_fini(ReadBuffer *buffer);

/* The bytes of memory that it holds. */
size_t loader_read_buffer_bytes(const ReadBuffer *buffer);

void loader_read_buffer_clear(ReadBuffer *buffer);
Status loader_read_buffer_add(ReadBuffer *buffer, const BetonRegion *region);

/* Reads what was added; the bytes stay until loader_read_buffer_clear. */
Status loader_read_buffer_read(ReadBuffer *buffer, const BetonReader *reader);

/* NULL if the region was not added. */
const unsigned char *loader_read_buffer_find(const ReadBuffer *buffer, const BetonRegion *region);

#endif
