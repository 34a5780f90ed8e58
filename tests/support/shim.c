/* Preloaded: stands between a program and the system calls that put a file on the disk.
 * SHIM_LOG=FILE: each call is noted there as a line, "fsync file", "linkat", ...
 * SHIM_FAIL=NAME:N:ERRNO: the N-th call of that name (1 is the first, 0 means all) fails with that error number.
 * A program may also ask for itself: after shim_arm the N-th call of all that concern a folder fails. */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP; /* note() itself opens and writes */
static unsigned calls;                                                /* of the name in SHIM_FAIL */
static char armed[4096];                                              /* the folder of shim_arm; "" is none */
static unsigned armed_calls, armed_nth;
static int armed_error;
static char armed_name[32]; /* of the call that failed */

static void note(const char *name) {
    const char *path = getenv("SHIM_LOG");
    char line[64];
    if (path == NULL) return;
    int descriptor = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    int length = snprintf(line, sizeof line, "%s\n", name);
    if (descriptor < 0 || write(descriptor, line, (size_t)length) != length) abort();
    close(descriptor);
}

/* Notes the call; whether it should fail, with errno set. */
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

/* Whether the path, or what the descriptor stands for if it is NULL, lies in the folder of shim_arm. */
static int concerns(int descriptor, const char *path) {
    char link[32], target[4096];
    if (armed[0] == '\0') return 0;
    if (path == NULL || path[0] != '/') {
        snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
        ssize_t length = readlinkat(AT_FDCWD, link, target, sizeof target - 1);
        if (length < 0) return 0;
        target[length] = '\0';
        path = target;
    }
    return strncmp(path, armed, strlen(armed)) == 0;
}

/* Whether an armed call should fail, with errno set. */
static int armed_fails(const char *name, int descriptor, const char *path) {
    pthread_mutex_lock(&lock);
    int before = errno, failed = concerns(descriptor, path) && ++armed_calls == armed_nth;
    if (failed) snprintf(armed_name, sizeof armed_name, "%s", name);
    pthread_mutex_unlock(&lock);
    errno = failed ? armed_error : before;
    return failed;
}

void shim_arm(const char *folder, unsigned nth, int error);
unsigned shim_disarm(const char **failed);

void shim_arm(const char *folder, unsigned nth, int error) {
    pthread_mutex_lock(&lock);
    armed_calls = 0, armed_nth = nth, armed_error = error, armed_name[0] = '\0';
    snprintf(armed, sizeof armed, "%s", folder);
    pthread_mutex_unlock(&lock);
}

/* How many calls there were, and the name of the one that failed, or "". */
unsigned shim_disarm(const char **failed) {
    pthread_mutex_lock(&lock);
    armed[0] = '\0';
    *failed = armed_name;
    unsigned count = armed_calls;
    pthread_mutex_unlock(&lock);
    return count;
}

/* `descriptor` and `path` (or NULL) say what the call concerns. */
#define SHIM(result, call, parameters, arguments, name, descriptor, path)                                              \
    result call parameters {                                                                                           \
        static result(*real) parameters;                                                                               \
        if (real == NULL) real = (result(*) parameters)dlsym(RTLD_NEXT, #call);                                        \
        return armed_fails(name, descriptor, path) || fails(name) ? -1 : real arguments;                               \
    }
/* The same for calls that SHIM_LOG and SHIM_FAIL do not know. */
#define SHIM_ARMED(result, call, parameters, arguments, name, descriptor, path, failure)                               \
    result call parameters {                                                                                           \
        static result(*real) parameters;                                                                               \
        if (real == NULL) real = (result(*) parameters)dlsym(RTLD_NEXT, #call);                                        \
        return armed_fails(name, descriptor, path) ? (failure) : real arguments;                                       \
    }

static const char *fsync_name(int descriptor) {
    struct stat there;
    return fstat(descriptor, &there) == 0 && S_ISDIR(there.st_mode) ? "fsync folder" : "fsync file";
}

/* clang-format off */
SHIM(int, fsync, (int descriptor), (descriptor), fsync_name(descriptor), descriptor, NULL)
SHIM(int, linkat, (int from, const char *old, int to, const char *name, int flags), (from, old, to, name, flags),
     "linkat", to, name)
SHIM(int, renameat, (int from, const char *old, int to, const char *name), (from, old, to, name), "rename", to, name)
SHIM(int, rename, (const char *old, const char *name), (old, name), "rename", -1, name)
SHIM(int, ftruncate, (int descriptor, off_t size), (descriptor, size), "ftruncate", descriptor, NULL)
SHIM(ssize_t, pwrite, (int descriptor, const void *data, size_t size, off_t at), (descriptor, data, size, at), "pwrite",
     descriptor, NULL)

#define MMAP(call)                                                                                                     \
    SHIM_ARMED(void *, call, (void *at, size_t size, int protection, int flags, int descriptor, off_t offset),         \
               (at, size, protection, flags, descriptor, offset), "mmap", descriptor, NULL, (void *)-1)
#define STAT(call, type)                                                                                               \
    SHIM_ARMED(int, call, (const char *path, struct type *out), (path, out), "stat", -1, path, -1)
#define FSTAT(call, type)                                                                                              \
    SHIM_ARMED(int, call, (int descriptor, struct type *out), (descriptor, out), "fstat", descriptor, NULL, -1)
MMAP(mmap)
MMAP(mmap64)
STAT(stat, stat)
STAT(stat64, stat64)
STAT(lstat, stat)
STAT(lstat64, stat64)
FSTAT(fstat, stat)
FSTAT(fstat64, stat64)
SHIM_ARMED(int, fstatat, (int folder, const char *path, struct stat *out, int flags), (folder, path, out, flags),
           "fstatat", folder, path, -1)
SHIM_ARMED(ssize_t, pread, (int descriptor, void *out, size_t size, off_t at), (descriptor, out, size, at), "pread",
           descriptor, NULL, -1)
SHIM_ARMED(ssize_t, read, (int descriptor, void *out, size_t size), (descriptor, out, size), "read", descriptor, NULL,
           -1)
SHIM_ARMED(ssize_t, write, (int descriptor, const void *data, size_t size), (descriptor, data, size), "write",
           descriptor, NULL, -1)
/* clang-format on */

/* Their third argument is there only if a file may be made; one more is passed on then. */
#define OPEN(call)                                                                                                     \
    int call(const char *path, int flags, ...) {                                                                       \
        static int (*real)(const char *, int, ...);                                                                    \
        va_list rest;                                                                                                  \
        va_start(rest, flags);                                                                                         \
        mode_t mode = va_arg(rest, mode_t);                                                                            \
        va_end(rest);                                                                                                  \
        if (real == NULL) real = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, #call);                             \
        return armed_fails("open", -1, path) ? -1 : real(path, flags, mode);                                           \
    }
#define OPENAT(call)                                                                                                   \
    int call(int folder, const char *path, int flags, ...) {                                                           \
        static int (*real)(int, const char *, int, ...);                                                               \
        va_list rest;                                                                                                  \
        va_start(rest, flags);                                                                                         \
        mode_t mode = va_arg(rest, mode_t);                                                                            \
        va_end(rest);                                                                                                  \
        if (real == NULL) real = (int (*)(int, const char *, int, ...))dlsym(RTLD_NEXT, #call);                        \
        return armed_fails("openat", folder, path) ? -1 : real(folder, path, flags, mode);                             \
    }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)

/* Fails after it has closed, as on NFS. */
int close(int descriptor) {
    static int (*real)(int);
    if (real == NULL) real = (int (*)(int))dlsym(RTLD_NEXT, "close");
    int failed = armed_fails("close", descriptor, NULL), error = errno, result = real(descriptor);
    if (!failed) return result;
    errno = error;
    return -1;
}
