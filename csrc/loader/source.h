/* Private to loader/: between the reader and the decoders: where the bytes of samples come from. They are in the file's
 * mapping, which never moves, or in a thread's read buffer; what a decoder gets of them is valid from enter to leave,
 * in the same thread. */
#ifndef CGXFFCV_LOADER_SOURCE_H
#define CGXFFCV_LOADER_SOURCE_H

#include "loader/read_buffer.h"

typedef struct LoaderSource {
    const BetonReader *reader;     /* borrowed, or `own`: fields, numbers and records */
    BetonReader *own;              /* owned, or NULL */
    bool reads;                    /* samples are read into the threads' read buffers */
    bool whole_pages;              /* whole pages of the file are read ahead */
    const ReadBuffer *read_buffer; /* borrowed, in a thread's copy of this: what has been read; or NULL */
} LoaderSource;

/* A source of the file at `path`, or of an open one, which is borrowed until loader_source_close. */
Status loader_source_open(LoaderSource *source, const char *path, const BetonReader *open);
void loader_source_close(LoaderSource *source);

/* Called around everything that reads samples; leaving gives STATUS_FORMAT, whatever `status` is, if bytes were
 * missing. */
void loader_source_enter(const LoaderSource *source, Guard *guard);
Status loader_source_leave(const LoaderSource *source, const Guard *guard, Status status);

/* The bytes of a value, and those of an image with its size. */
Status loader_source_region(const LoaderSource *source, size_t field, uint64_t sample, BetonRegion *out);
Status loader_source_image(const LoaderSource *source, size_t field, uint64_t sample, BetonImage *out);

/* A hint that these samples are needed soon. */
void loader_source_read_ahead(const LoaderSource *source, const uint64_t *ids, size_t count);

/* Checks that the bytes read so far were the file's: STATUS_FORMAT if the file has become shorter. */
Status loader_source_check(const LoaderSource *source);

#endif
