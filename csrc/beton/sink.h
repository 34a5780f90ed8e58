/* Turns many small regions into few large writes: neighbours in both file and memory become one write, small ones are
 * gathered in a buffer. Private to beton/. */
#ifndef CGXFFCV_BETON_SINK_H
#define CGXFFCV_BETON_SINK_H

#include <stdbool.h>

#include "base/atomic_file.h"

typedef struct Sink {
    AtomicFile *file; /* borrowed */
    bool start_sync;
    unsigned char *stage; /* owned */
    size_t staged;
    uint64_t stage_offset;
    const unsigned char *run; /* borrowed until beton_sink_settle */
    uint64_t run_bytes, run_offset;
    uint64_t written_begin, written_end; /* of the file, whose sync has not been started */
} Sink;

Status beton_sink_init(Sink *sink, AtomicFile *file, bool start_sync);
void beton_sink_fini(Sink *sink);

/* Takes `size` bytes for `offset` of the file; offsets must increase. The data is borrowed until beton_sink_settle. */
Status beton_sink_put(Sink *sink, const void *data, uint64_t size, uint64_t offset);

/* Afterwards nothing of the caller's is borrowed any more. */
Status beton_sink_settle(Sink *sink);

/* Writes what is left. */
Status beton_sink_flush(Sink *sink);

#endif
