/* The SIGBUS handler and each thread's current guard. Owns the process's disposition of SIGBUS. */
#include "base/guard.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

static _Thread_local Guard *current;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static struct sigaction previous;
static uintptr_t page_bytes;

static void pass_on(int number, siginfo_t *info, void *context) {
    if ((previous.sa_flags & SA_SIGINFO) != 0) {
        previous.sa_sigaction(number, info, context);
        return;
    }
    if (previous.sa_handler == SIG_IGN && info->si_code <= 0) return; /* sent by kill(), not a fault */
    if (previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN) {
        previous.sa_handler(number);
        return;
    }
    signal(number, SIG_DFL); /* blocked until this handler returns, then it ends the process */
    raise(number);
}

/* Makes only system calls, as a signal handler must. */
static void on_missing_bytes(int number, siginfo_t *info, void *context) {
    const uintptr_t at = (uintptr_t)info->si_addr;
    const Guard *guard = info->si_code > 0 ? current : NULL;
    while (guard != NULL && (at < guard->begin || at >= guard->end)) guard = guard->outer;
    if (guard != NULL) {
        const int before = errno;
        const uintptr_t page = at - at % page_bytes;
        atomic_store(guard->lost, true);
        void *zeros = mmap((void *)page, guard->end - page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        errno = before;
        if (zeros != MAP_FAILED) return;
    }
    pass_on(number, info, context);
}

static void install(void) {
    struct sigaction action = {.sa_sigaction = on_missing_bytes, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    page_bytes = (uintptr_t)sysconf(_SC_PAGESIZE);
    sigemptyset(&action.sa_mask);
    (void)sigaction(SIGBUS, NULL, &previous); /* first: the handler may run as soon as it is installed */
    (void)sigaction(SIGBUS, &action, NULL);
}

void guard_install(void) { pthread_once(&once, install); }

void guard_enter(Guard *guard, const void *memory, size_t size, atomic_bool *lost) {
    *guard = (Guard){(uintptr_t)memory, (uintptr_t)memory + size, lost, current};
    current = guard;
    atomic_signal_fence(memory_order_seq_cst);
}

void guard_leave(const Guard *guard) {
    atomic_signal_fence(memory_order_seq_cst);
    current = guard->outer;
}
