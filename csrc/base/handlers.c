/* Which handlers are kept, and how they are restored. */
#include "base/handlers.h"

#include <stdbool.h>
#include <stddef.h>

static const int kept[HANDLERS_KEPT] = {SIGBUS, SIGSEGV, SIGILL, SIGFPE, SIGABRT, SIGTRAP};

void handlers_keep(Handlers *handlers) {
    for (int i = 0; i < HANDLERS_KEPT; i++) (void)sigaction(kept[i], NULL, &handlers->before[i]);
}

static bool is_set(const struct sigaction *action) {
    return (action->sa_flags & SA_SIGINFO) != 0 || (action->sa_handler != SIG_DFL && action->sa_handler != SIG_IGN);
}

void handlers_put_back(const Handlers *handlers) {
    for (int i = 0; i < HANDLERS_KEPT; i++) {
        if (is_set(&handlers->before[i])) (void)sigaction(kept[i], &handlers->before[i], NULL);
    }
}
