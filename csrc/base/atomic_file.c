/* Temporary file, sync, rename. Owns the descriptor and the two names. Where the file system can, the file has no name
 * until it is complete, so that nothing remains of it when the process is killed. */
#include "base/atomic_file.h"

#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/memory.h"

#define NAME_ATTEMPTS 100
#define SUFFIX_BYTES 32
#define DIRECTORY_BYTES 4096

struct AtomicFile {
    int descriptor;
    pid_t owner;     /* a forked child that inherits the handle must not delete the file */
    bool named;      /* whether the temporary file has its name */
    char *path;      /* owned */
    char *temporary; /* owned */
};

static Status draw_name(AtomicFile *file) {
    uint64_t noise = 0;
    if (getrandom(&noise, sizeof noise, 0) != (ssize_t)sizeof noise) FAIL_ERRNO("getrandom");
    snprintf(file->temporary, strlen(file->path) + SUFFIX_BYTES, "%s.%016llx.tmp", file->path,
             (unsigned long long)noise);
    return STATUS_OK;
}

/* The directory of the path: "." and "/" where the path names none. */
static Status directory_of(const char *path, char *out, size_t size) {
    const char *slash = strrchr(path, '/');
    size_t length = slash == NULL ? 0 : (size_t)(slash - path);
    if (length + 2 > size) FAIL(STATUS_ARGUMENT, "the directory's name is too long");
    memcpy(out, path, length);
    snprintf(out + length, 2, "%s", slash == NULL ? "." : length == 0 ? "/" : "");
    return STATUS_OK;
}

/* The name under which the descriptor can be linked. */
static void descriptor_name(const AtomicFile *file, char *out, size_t size) {
    snprintf(out, size, "/proc/self/fd/%d", file->descriptor);
}

/* A file without a name; false where the system cannot make one or could not name it later. */
static bool open_nameless(AtomicFile *file) {
    char directory[DIRECTORY_BYTES], own[32];
    if (directory_of(file->path, directory, sizeof directory) != STATUS_OK) return false;
    file->descriptor = open(directory, O_RDWR | O_TMPFILE | O_CLOEXEC, 0666);
    if (file->descriptor < 0) return false;
    descriptor_name(file, own, sizeof own);
    if (access(own, F_OK) == 0) return true;
    close(file->descriptor);
    file->descriptor = -1;
    return false;
}

static Status open_temporary(AtomicFile *file) {
    if (open_nameless(file)) return STATUS_OK;
    for (int attempt = 0; attempt < NAME_ATTEMPTS; attempt++) {
        TRY(draw_name(file));
        file->descriptor = open(file->temporary, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        file->named = file->descriptor >= 0;
        if (file->named) return STATUS_OK;
        if (errno != EEXIST) FAIL_ERRNO("cannot create %s", file->temporary);
    }
    FAIL(STATUS_IO, "no free temporary name beside %s", file->path);
}

/* rename() needs a name, and link() cannot replace a file: so first a name beside the target. */
static Status give_name(AtomicFile *file) {
    char own[32];
    descriptor_name(file, own, sizeof own);
    for (int attempt = 0; attempt < NAME_ATTEMPTS && !file->named; attempt++) {
        TRY(draw_name(file));
        file->named = linkat(AT_FDCWD, own, AT_FDCWD, file->temporary, AT_SYMLINK_FOLLOW) == 0;
        if (!file->named && errno != EEXIST) FAIL_ERRNO("cannot name the finished file %s", file->temporary);
    }
    if (!file->named) FAIL(STATUS_IO, "no free temporary name beside %s", file->path);
    return STATUS_OK;
}

Status atomic_file_create(const char *path, AtomicFile **out) {
    Status status = STATUS_OK;
    AtomicFile *file = NULL;
    struct stat there;
    size_t size = strlen(path) + 1;
    if (size == 1) FAIL(STATUS_ARGUMENT, "an empty file name");
    if (stat(path, &there) == 0 && S_ISDIR(there.st_mode)) {
        return error_at_path(error_fail_errno(STATUS_IO, EISDIR, "cannot replace a folder by a file"), path);
    }
    TRY(memory_calloc(1, sizeof *file, &file));
    file->descriptor = -1;
    file->owner = getpid();
    TRY_GOTO(memory_alloc(size, 1, &file->path));
    memcpy(file->path, path, size);
    TRY_GOTO(memory_calloc(size + SUFFIX_BYTES, 1, &file->temporary));
    TRY_GOTO(open_temporary(file));
    *out = file;
    file = NULL;
done:
    atomic_file_abort(file);
    return error_at_path(status, path);
}

Status atomic_file_write_at(AtomicFile *file, const void *data, size_t size, uint64_t offset) {
    const char *at = data;
    while (size > 0) {
        ssize_t written;
        RETRY_EINTR(written, pwrite(file->descriptor, at, size, (off_t)offset));
        if (written < 0) {
            return error_at_path(error_fail_errno(STATUS_IO, errno, "cannot write %zu bytes", size), file->path);
        }
        at += written;
        size -= (size_t)written;
        offset += (uint64_t)written;
    }
    return STATUS_OK;
}

Status atomic_file_read_at(const AtomicFile *file, void *out, size_t size, uint64_t offset) {
    char *at = out;
    while (size > 0) {
        ssize_t got;
        RETRY_EINTR(got, pread(file->descriptor, at, size, (off_t)offset));
        if (got < 0) {
            return error_at_path(error_fail_errno(STATUS_IO, errno, "cannot read back %zu bytes", size), file->path);
        }
        if (got == 0) return error_at_path(error_fail(STATUS_IO, "the file ends before its own data"), file->path);
        at += got;
        size -= (size_t)got;
        offset += (uint64_t)got;
    }
    return STATUS_OK;
}

void atomic_file_start_sync(const AtomicFile *file, uint64_t offset, uint64_t size) {
    (void)sync_file_range(file->descriptor, (off64_t)offset, (off64_t)size, SYNC_FILE_RANGE_WRITE);
}

Status atomic_file_truncate(AtomicFile *file, uint64_t size) {
    int result;
    RETRY_EINTR(result, ftruncate(file->descriptor, (off_t)size));
    if (result == 0) return STATUS_OK;
    return error_at_path(
        error_fail_errno(STATUS_IO, errno, "cannot set the length to %llu bytes", (unsigned long long)size),
        file->path);
}

static void release(AtomicFile *file) {
    if (file->descriptor >= 0) close(file->descriptor);
    memory_free(file->temporary);
    memory_free(file->path);
    memory_free(file);
}

/* The rename itself is durable only once the directory is synced. */
static Status sync_directory(const char *path) {
    char name[DIRECTORY_BYTES];
    TRY(directory_of(path, name, sizeof name));
    int descriptor = open(name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (descriptor < 0) FAIL_ERRNO("cannot open directory %s", name);
    int result = fsync(descriptor), error = errno;
    close(descriptor);
    /* Some file systems cannot sync a directory; the file itself is safe there. */
    if (result != 0 && error != EINVAL && error != ENOTSUP) {
        return error_fail_errno(STATUS_IO, error, "cannot sync directory %s", name);
    }
    return STATUS_OK;
}

static Status commit(AtomicFile *file, bool sync) {
    Status status = STATUS_OK;
    int result = 0;
    if (sync) RETRY_EINTR(result, fsync(file->descriptor));
    if (result != 0) FAIL_ERRNO_GOTO("cannot sync the file");
    TRY_GOTO(give_name(file));
    result = close(file->descriptor);
    file->descriptor = -1;
    if (result != 0) FAIL_ERRNO_GOTO("cannot close the file");
    if (rename(file->temporary, file->path) != 0) FAIL_ERRNO_GOTO("cannot rename %s", file->temporary);
    file->named = false;
    if (sync) TRY_GOTO(sync_directory(file->path));
done:
    status = error_at_path(status, file->path);
    if (file->named) unlink(file->temporary);
    release(file);
    return status;
}

Status atomic_file_commit(AtomicFile *file) { return commit(file, true); }

Status atomic_file_commit_unsynced(AtomicFile *file) { return commit(file, false); }

void atomic_file_abort(AtomicFile *file) {
    if (file == NULL) return;
    if (file->named && file->owner == getpid()) unlink(file->temporary);
    release(file);
}
