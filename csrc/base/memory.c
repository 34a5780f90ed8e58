/* Aligned allocation over the C library. Owns nothing. */
#include "base/memory.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* Large blocks use huge pages where the system grants them, so that streaming through them causes few TLB misses. */
#define HUGE_PAGE ((size_t)2 * 1024 * 1024)
#define HUGE_FROM (2 * HUGE_PAGE)
#define ASKED_FROM ((size_t)1 << 30) /* smaller blocks fit in any machine: it is not asked for its memory */

Status memory_alloc(size_t count, size_t size, void *out) {
    size_t bytes, rounded;
    if (__builtin_mul_overflow(count, size, &bytes) || __builtin_add_overflow(bytes, HUGE_PAGE, &rounded)) {
        FAIL(STATUS_MEMORY, "cannot allocate %zu items of %zu bytes: the product overflows", count, size);
    }
    if (bytes > ASKED_FROM && bytes > memory_of_machine()) {
        FAIL(STATUS_MEMORY, "cannot allocate %zu bytes: this machine's memory has %llu", bytes,
             (unsigned long long)memory_of_machine());
    }
    size_t alignment = bytes >= HUGE_FROM ? HUGE_PAGE : MEMORY_ALIGNMENT;
    rounded = (bytes + alignment) & ~(alignment - 1);
    void *pointer = aligned_alloc(alignment, rounded);
    if (alignment == HUGE_PAGE && pointer != NULL) madvise(pointer, rounded, MADV_HUGEPAGE);
    if (pointer == NULL) FAIL(STATUS_MEMORY, "cannot allocate %zu bytes", bytes);
    memcpy(out, &pointer, sizeof pointer);
    return STATUS_OK;
}

Status memory_calloc(size_t count, size_t size, void *out) {
    void *pointer = NULL;
    TRY(memory_alloc(count, size, &pointer));
    memset(pointer, 0, count * size);
    memcpy(out, &pointer, sizeof pointer);
    return STATUS_OK;
}

Status memory_resize(void *pointer_to_pointer, size_t old_bytes, size_t new_bytes) {
    void *old = NULL, *fresh = NULL;
    memcpy(&old, pointer_to_pointer, sizeof old);
    TRY(memory_alloc(new_bytes, 1, &fresh));
    if (old != NULL) memcpy(fresh, old, old_bytes < new_bytes ? old_bytes : new_bytes);
    memory_free(old);
    memcpy(pointer_to_pointer, &fresh, sizeof fresh);
    return STATUS_OK;
}

Status memory_reserve(void *pointer_to_pointer, size_t *room, size_t count, size_t size) {
    void *pointer = NULL;
    if (count <= *room) return STATUS_OK;
    memcpy(&pointer, pointer_to_pointer, sizeof pointer);
    memory_free(pointer);
    memset(pointer_to_pointer, 0, sizeof pointer);
    *room = 0;
    TRY(memory_alloc(count, size, pointer_to_pointer));
    *room = count;
    return STATUS_OK;
}

uint64_t memory_of_machine(void) {
    long pages = sysconf(_SC_PHYS_PAGES), bytes = sysconf(_SC_PAGESIZE);
    return pages < 1 || bytes < 1 ? PTRDIFF_MAX : (uint64_t)pages * (uint64_t)bytes;
}

void memory_free(void *pointer) { free(pointer); }
