/* Keeps fault handlers across the opening of a library: UCX, underneath Open MPI, installs its own in place of Python's
 * faulthandler and of the guard of mapped files (guard.h). A signal that had no handler is left to the library. */
#ifndef CGXFFCV_BASE_HANDLERS_H
#define CGXFFCV_BASE_HANDLERS_H

#include <signal.h>

#define HANDLERS_SAVED 6

typedef struct Handlers {
    struct sigaction before[HANDLERS_SAVED];
} Handlers;

void handlers_save(Handlers *handlers);
void handlers_restore(const Handlers *handlers);

#endif
