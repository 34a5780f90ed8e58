/* Which handlers are saved, and how they are restored. */
#include "base/handlers.h"

#include <stdbool.h>
#include <stddef.h>

static const int saved[HANDLERS_SAVED] = {SIGBUS, SIGSEGV, SIGILL, SIGFPE, SIGABRT, SIGTRAP};

void handlers_save(Handlers *handlers) {
    for (int i = 0; i < HANDLERS_SAVED; i++) (void)sigaction(saved[i], NULL, &handlers->before[i]);
}

static bool is_set(const struct sigaction *action) {
    return (action->sa_flags & SA_SIGINFO) != 0 || (action->sa_handler != SIG_DFL && action->sa_handler != SIG_IGN);
}

void handlers_restore(const Handlers *handlers) {
    for (int i = 0; i < HANDLERS_SAVED; i++) {
        if (is_set(&handlers->before[i])) (void)sigaction(saved[i], &handlers->before[i], NULL);
    }
}
