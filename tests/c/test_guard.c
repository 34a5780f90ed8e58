// rooms: base
/* Files that are cut while they are mapped: zeros and a word inside a guard, the former handler or death outside. */
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/guard.h"
#include "check.h"

enum { PAGES = 4 };
static size_t page;

static unsigned char *map_file(int *descriptor) {
    char name[] = "/tmp/cgxffcv-guard-XXXXXX";
    *descriptor = mkstemp(name);
    unlink(name);
    unsigned char ones[4096];
    memset(ones, 1, sizeof ones);
    for (size_t at = 0; at < PAGES * page; at += sizeof ones) CHECK(write(*descriptor, ones, sizeof ones) > 0);
    void *map = mmap(NULL, PAGES * page, PROT_READ, MAP_SHARED, *descriptor, 0);
    CHECK(map != MAP_FAILED);
    return map;
}

static int byte_at(const volatile unsigned char *map, size_t at) { return map[at]; }

static void test_cut_inside(void) {
    int descriptor, other_descriptor;
    atomic_bool lost = false, other_lost = false;
    unsigned char *map = map_file(&descriptor), *other = map_file(&other_descriptor);
    Guard outer, inner;
    guard_enter(&outer, map, PAGES * page, &lost);
    guard_enter(&inner, other, PAGES * page, &other_lost);
    CHECK(byte_at(map, 3 * page) == 1 && !lost);
    CHECK(ftruncate(descriptor, (off_t)(2 * page)) == 0);
    CHECK(byte_at(map, 2 * page + 5) == 0 && lost && !other_lost);
    CHECK(byte_at(map, 4 * page - 1) == 0 && byte_at(map, 2 * page - 1) == 1 && byte_at(other, 3 * page) == 1);
    guard_leave(&inner);
    guard_leave(&outer);
    CHECK(byte_at(map, 2 * page) == 0); /* stays harmless */
    munmap(map, PAGES * page);
    munmap(other, PAGES * page);
    close(descriptor);
    close(other_descriptor);
}

static void former(int number) { _exit(number == SIGBUS ? 42 : 43); }

/* Dies of the bytes that are missing, or of a signal that somebody sends inside a guard. */
static void fall(bool fault) {
    int descriptor;
    atomic_bool lost = false;
    Guard guard;
    unsigned char *map = map_file(&descriptor);
    guard_enter(&guard, map, page, &lost);
    if (!fault) kill(getpid(), SIGBUS);
    CHECK(ftruncate(descriptor, (off_t)page) == 0);
    (void)byte_at(map, page); /* the first byte beyond the guard */
    _exit(0);
}

static int status_of_child(void (*handler)(int), bool fault) {
    int status = 0;
    pid_t child = fork();
    if (child == 0) {
        signal(SIGBUS, handler);
        guard_install();
        fall(fault);
    }
    CHECK(child > 0 && waitpid(child, &status, 0) == child);
    return status;
}

int main(void) {
    page = (size_t)sysconf(_SC_PAGESIZE);
    for (int fault = 0; fault < 2; fault++) {
        int status = status_of_child(former, fault);
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 42);
        status = status_of_child(SIG_DFL, fault);
        CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS);
    }
    CHECK(WIFSIGNALED(status_of_child(SIG_IGN, true)));
    guard_install();
    guard_install();
    test_cut_inside();
    return check_result();
}
