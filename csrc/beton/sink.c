/* A run is data that is contiguous both in memory and in the file; long runs are written from where they are. */
#include "beton/sink.h"

#include <string.h>

#include "base/memory.h"

#define STAGE_BYTES ((size_t)1 << 20)
#define DIRECT_BYTES ((uint64_t)256 << 10)
#define SYNC_BYTES ((uint64_t)8 << 20)

Status beton_sink_init(Sink *sink, AtomicFile *file, bool start_sync) {
    *sink = (Sink){.file = file, .start_sync = start_sync};
    return memory_alloc(STAGE_BYTES, 1, &sink->stage);
}

void beton_sink_fini(Sink *sink) {
    memory_free(sink->stage);
    sink->stage = NULL;
}

static Status write_out(Sink *sink, const unsigned char *data, uint64_t size, uint64_t offset) {
    TRY(atomic_file_write_at(sink->file, data, (size_t)size, offset));
    if (!sink->start_sync) return STATUS_OK;
    if (offset != sink->written_end) {
        /* a new range; the old one is left to the commit */
        sink->written_begin = offset;
    }
    sink->written_end = offset + size;
    if (sink->written_end - sink->written_begin >= SYNC_BYTES) {
        atomic_file_start_sync(sink->file, sink->written_begin, sink->written_end - sink->written_begin);
        sink->written_begin = sink->written_end;
    }
    return STATUS_OK;
}

static Status flush_stage(Sink *sink) {
    if (sink->staged == 0) return STATUS_OK;
    TRY(write_out(sink, sink->stage, sink->staged, sink->stage_offset));
    sink->staged = 0;
    return STATUS_OK;
}

Status beton_sink_settle(Sink *sink) {
    const unsigned char *data = sink->run;
    uint64_t size = sink->run_bytes, offset = sink->run_offset;
    if (size == 0) return STATUS_OK;
    sink->run_bytes = 0;
    bool fits = sink->staged == 0 || sink->stage_offset + sink->staged == offset;
    if (!fits || size >= DIRECT_BYTES || size > STAGE_BYTES - sink->staged) TRY(flush_stage(sink));
    if (size >= DIRECT_BYTES) return write_out(sink, data, size, offset);
    if (sink->staged == 0) sink->stage_offset = offset;
    memcpy(sink->stage + sink->staged, data, (size_t)size);
    sink->staged += (size_t)size;
    return STATUS_OK;
}

Status beton_sink_put(Sink *sink, const void *data, uint64_t size, uint64_t offset) {
    const unsigned char *bytes = data;
    if (size == 0) return STATUS_OK;
    if (sink->run_bytes != 0 && sink->run + sink->run_bytes == bytes && sink->run_offset + sink->run_bytes == offset) {
        sink->run_bytes += size;
        return STATUS_OK;
    }
    TRY(beton_sink_settle(sink));
    sink->run = bytes;
    sink->run_bytes = size;
    sink->run_offset = offset;
    return STATUS_OK;
}

Status beton_sink_flush(Sink *sink) {
    TRY(beton_sink_settle(sink));
    return flush_stage(sink);
}
