/* The only place that allocates. Every pointer from here is freed by memory_free. */
#ifndef CGXFFCV_BASE_MEMORY_H
#define CGXFFCV_BASE_MEMORY_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

#define MEMORY_ALIGNMENT 64

/* `count` * `size` bytes, zeroed, 64-byte aligned; *out is never NULL on success. STATUS_MEMORY for more than this
 * machine has. */
Status memory_calloc(size_t count, size_t size, void *out);

/* Like memory_calloc, with unspecified contents. */
Status memory_alloc(size_t count, size_t size, void *out);

/* Grows or shrinks a block; the old contents are kept up to the smaller of the two sizes. */
Status memory_resize(void *pointer_to_pointer, size_t old_bytes, size_t new_bytes);

/* Ensures room for `count` items of `size` bytes; *room is the current capacity. Growing reallocates, and the old
 * contents are lost; after a failure the capacity is 0. */
Status memory_reserve(void *pointer_to_pointer, size_t *room, size_t count, size_t size);

/* The machine's memory in bytes: a request for more is a mistake or an attack, and is refused before the system kills
 * the process for it. */
uint64_t memory_of_machine(void);

/* Does nothing if NULL. */
void memory_free(void *pointer);

#endif
