/* Reading mapped files that others may truncate. Touching bytes of a mapping that the file no longer has raises SIGBUS,
 * which ends the process; between guard_enter and guard_leave the thread reads zeros there instead, and `lost` is set.
 * The handler is installed for the whole process and passes on every signal that does not come from a guarded read. */
#ifndef CGXFFCV_BASE_GUARD_H
#define CGXFFCV_BASE_GUARD_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct Guard {
    uintptr_t begin, end;
    atomic_bool *lost;   /* borrowed; set before any thread can read zeros, never cleared here */
    struct Guard *outer; /* borrowed: the thread's guard around this one */
} Guard;

/* Call before the first guard; later calls do nothing. A handler that anyone installs afterwards takes precedence. */
void guard_install(void);

/* `guard` must stay at its address until guard_leave, called by the same thread. `memory` is at the start of one of the
 * mapping's pages; from the missing page to the end of [memory, memory + size), zero pages replace the file's for all
 * threads, until they are unmapped. */
void guard_enter(Guard *guard, const void *memory, size_t size, atomic_bool *lost);
void guard_leave(const Guard *guard);

#endif
