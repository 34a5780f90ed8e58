/* Pieces of the file; neighbours become one. */
#include "loader/read_buffer.h"

#include "base/checked.h"
#include "base/memory.h"

#define GAP 4096 /* bytes that are cheaper to read along than to skip with another read */
#define FIRST_ROOM 64

void loader_read_buffer_fini(ReadBuffer *buffer) {
    memory_free(buffer->pieces);
    memory_free(buffer->bytes);
    *buffer = (ReadBuffer){0};
}

size_t loader_read_buffer_bytes(const ReadBuffer *buffer) {
    return buffer->room * sizeof *buffer->pieces + buffer->capacity;
}

void loader_read_buffer_clear(ReadBuffer *buffer) { buffer->count = buffer->used = 0; }

static Status grow(ReadBuffer *buffer) {
    const size_t room = buffer->room == 0 ? FIRST_ROOM : 2 * buffer->room;
    TRY(memory_resize(&buffer->pieces, buffer->room * sizeof *buffer->pieces, room * sizeof *buffer->pieces));
    buffer->room = room;
    return STATUS_OK;
}

Status loader_read_buffer_add(ReadBuffer *buffer, const BetonRegion *region) {
    const BetonSpan span = {region->offset, region->offset + region->size};
    ReadBufferPiece *last = buffer->count > 0 ? &buffer->pieces[buffer->count - 1] : NULL;
    if (region->size == 0) return STATUS_OK;
    if (last != NULL && span.begin >= last->span.end && span.begin - last->span.end <= GAP) {
        buffer->used += (size_t)(span.end - last->span.end);
        last->span.end = span.end;
        return STATUS_OK;
    }
    if (buffer->count == buffer->room) TRY(grow(buffer));
    buffer->pieces[buffer->count++] = (ReadBufferPiece){span, buffer->used};
    buffer->used += (size_t)region->size;
    return STATUS_OK;
}

Status loader_read_buffer_read(ReadBuffer *buffer, const BetonReader *reader) {
    TRY(memory_reserve(&buffer->bytes, &buffer->capacity, buffer->used, 1));
    for (size_t i = 0; i < buffer->count; i++) {
        TRY(beton_reader_copy(reader, buffer->pieces[i].span, buffer->bytes + buffer->pieces[i].at));
    }
    return STATUS_OK;
}

const unsigned char *loader_read_buffer_find(const ReadBuffer *buffer, const BetonRegion *region) {
    for (size_t i = 0; i < buffer->count; i++) {
        const ReadBufferPiece *piece = &buffer->pieces[i];
        if (region->offset < piece->span.begin || !checked_within(region->offset, region->size, piece->span.end)) {
            continue;
        }
        return buffer->bytes + piece->at + (region->offset - piece->span.begin);
    }
    return NULL;
}
