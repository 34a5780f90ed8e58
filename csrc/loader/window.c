/* Pieces of the file; neighbours become one. */
#include "loader/window.h"

#include "base/checked.h"
#include "base/memory.h"

#define GAP 4096 /* bytes that are cheaper to read along than to skip with another read */
#define FIRST_ROOM 64

void loader_window_fini(Window *window) {
    memory_free(window->pieces);
    memory_free(window->bytes);
    *window = (Window){0};
}

size_t loader_window_bytes(const Window *window) { return window->room * sizeof *window->pieces + window->capacity; }

void loader_window_clear(Window *window) { window->count = window->used = 0; }

static Status grow(Window *window) {
    const size_t room = window->room == 0 ? FIRST_ROOM : 2 * window->room;
    TRY(memory_resize(&window->pieces, window->room * sizeof *window->pieces, room * sizeof *window->pieces));
    window->room = room;
    return STATUS_OK;
}

Status loader_window_add(Window *window, const BetonRegion *region) {
    const BetonSpan span = {region->offset, region->offset + region->size};
    WindowPiece *last = window->count > 0 ? &window->pieces[window->count - 1] : NULL;
    if (region->size == 0) return STATUS_OK;
    if (last != NULL && span.begin >= last->span.end && span.begin - last->span.end <= GAP) {
        window->used += (size_t)(span.end - last->span.end);
        last->span.end = span.end;
        return STATUS_OK;
    }
    if (window->count == window->room) TRY(grow(window));
    window->pieces[window->count++] = (WindowPiece){span, window->used};
    window->used += (size_t)region->size;
    return STATUS_OK;
}

Status loader_window_read(Window *window, const BetonReader *reader) {
    TRY(memory_reserve(&window->bytes, &window->capacity, window->used, 1));
    for (size_t i = 0; i < window->count; i++) {
        TRY(beton_reader_copy(reader, window->pieces[i].span, window->bytes + window->pieces[i].at));
    }
    return STATUS_OK;
}

const unsigned char *loader_window_find(const Window *window, const BetonRegion *region) {
    for (size_t i = 0; i < window->count; i++) {
        const WindowPiece *piece = &window->pieces[i];
        if (region->offset < piece->span.begin || !checked_within(region->offset, region->size, piece->span.end)) {
            continue;
        }
        return window->bytes + piece->at + (region->offset - piece->span.begin);
    }
    return NULL;
}
