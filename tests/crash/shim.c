/* Preloaded: stands between a program and the system calls that put a file on the disk.
 * SHIM_LOG=FILE: each call is noted there as a line, "fsync file", "linkat", ...
 * SHIM_FAIL=NAME:N:ERRNO: the N-th call of that name (1 is the first, 0 means all) fails with that error number. */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static unsigned calls; /* of the name in SHIM_FAIL */

static void note(const char *name) {
    const char *path = getenv("SHIM_LOG");
    char line[64];
    if (path == NULL) return;
    int descriptor = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    int length = snprintf(line, sizeof line, "%s\n", name);
    if (descriptor < 0 || write(descriptor, line, (size_t)length) != length) abort();
    close(descriptor);
}

/* Notes the call; whether it shall fail, with errno set. */
static int fails(const char *name) {
    const char *wish = getenv("SHIM_FAIL");
    char wanted[32] = "";
    unsigned nth = 0;
    int error = 0, failed = 0;
    pthread_mutex_lock(&lock);
    note(name);
    if (wish != NULL && sscanf(wish, "%31[^:]:%u:%d", wanted, &nth, &error) == 3 && strcmp(name, wanted) == 0) {
        calls++;
        failed = nth == 0 || calls == nth;
    }
    pthread_mutex_unlock(&lock);
    if (failed) errno = error;
    return failed;
}

#define SHIM(result, call, parameters, arguments, name)                                                                \
    result call parameters {                                                                                           \
        static result(*real) parameters;                                                                               \
        if (real == NULL) real = (result(*) parameters)dlsym(RTLD_NEXT, #call);                                        \
        return fails(name) ? -1 : real arguments;                                                                      \
    }

static const char *fsync_name(int descriptor) {
    struct stat there;
    return fstat(descriptor, &there) == 0 && S_ISDIR(there.st_mode) ? "fsync folder" : "fsync file";
}

SHIM(int, fsync, (int descriptor), (descriptor), fsync_name(descriptor))
SHIM(int, linkat, (int from, const char *old, int to, const char *name, int flags), (from, old, to, name, flags),
     "linkat")
SHIM(int, renameat, (int from, const char *old, int to, const char *name), (from, old, to, name), "rename")
SHIM(int, rename, (const char *old, const char *name), (old, name), "rename")
SHIM(int, ftruncate, (int descriptor, off_t size), (descriptor, size), "ftruncate")
SHIM(ssize_t, pwrite, (int descriptor, const void *data, size_t size, off_t at), (descriptor, data, size, at), "pwrite")
