/* Private to loader/: some values of the file in a thread's own memory, read instead of mapped, so that of a large file
 * a process holds only what its threads work on.
 *
 *     loader_window_clear(window);
 *     TRY(loader_window_add(window, region)) for each value, best in the file's order;
 *     TRY(loader_window_read(window, reader));
 *     bytes = loader_window_find(window, region); */
#ifndef CGXFFCV_LOADER_WINDOW_H
#define CGXFFCV_LOADER_WINDOW_H

#include "beton/reader.h"

typedef struct WindowPiece {
    BetonSpan span; /* of the file */
    size_t at;      /* where it begins in `bytes` */
} WindowPiece;

typedef struct Window {
    WindowPiece *pieces; /* owned */
    size_t count, room;
    unsigned char *bytes; /* owned */
    size_t used, capacity;
} Window;

void loader_window_fini(Window *window);

/* The bytes of memory that it holds. */
size_t loader_window_bytes(const Window *window);

void loader_window_clear(Window *window);
Status loader_window_add(Window *window, const BetonRegion *region);

/* Reads what was added; the bytes stay until loader_window_clear. */
Status loader_window_read(Window *window, const BetonReader *reader);

/* NULL if the region was not added. */
const unsigned char *loader_window_find(const Window *window, const BetonRegion *region);

#endif
