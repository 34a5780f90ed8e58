/* Reading mapped files that others may cut short. Touching bytes of a mapping that the file no longer has raises
 * SIGBUS, which ends the process; between guard_enter and guard_leave the thread reads zeros there instead, and `lost`
 * says so. The handler is this library's for the whole process, and passes on whatever does not come from a guarded
 * read. */
#ifndef CGXFFCV_BASE_GUARD_H
#define CGXFFCV_BASE_GUARD_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct Guard {
    uintptr_t begin, end;
    atomic_bool *lost;   /* borrowed; set before anybody can read zeros, and never cleared here */
    struct Guard *outer; /* borrowed: the thread's guard around this one */
} Guard;

/* Once, before the first guard; later calls do nothing. A handler that somebody installs afterwards stays in front. */
void guard_install(void);

/* `guard` stays where it is until guard_leave, by the same thread. Bytes [memory, memory + size) begin a mapping's
 * page; from the missing page on they are replaced by zero pages for all threads, until they are unmapped. */
void guard_enter(Guard *guard, const void *memory, size_t size, atomic_bool *lost);
void guard_leave(const Guard *guard);

#endif
