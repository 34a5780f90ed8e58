/* The one place that allocates. Every pointer from here goes back through memory_free. */
#ifndef CGXFFCV_BASE_MEMORY_H
#define CGXFFCV_BASE_MEMORY_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

#define MEMORY_ALIGNMENT 64

/* `count` * `size` bytes, zeroed, 64-byte aligned, overflow checked; *out is never NULL on success. */
Status memory_calloc(size_t count, size_t size, void *out);

/* As memory_calloc, with unspecified contents. */
Status memory_alloc(size_t count, size_t size, void *out);

/* Grows or shrinks; the old contents stay up to the smaller size (`old_bytes` of them are copied). */
Status memory_resize(void *pointer_to_pointer, size_t old_bytes, size_t new_bytes);

/* Sees to it that there are `count` items of `size` bytes where *room have been so far. More items lie elsewhere, and
 * what the old ones held is lost; after a failure there are none. */
Status memory_reserve(void *pointer_to_pointer, size_t *room, size_t count, size_t size);

/* The bytes of the machine's memory: a wish for more is a mistake, or somebody's trick, and is refused before the
 * system ends the process for it. */
uint64_t memory_of_machine(void);

/* Does nothing if NULL. */
void memory_free(void *pointer);

#endif
