/* Temporary file, sync, rename. Owns the descriptor and the two names. */
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

struct AtomicFile {
    int descriptor;
    pid_t owner;     /* a forked child that inherits the handle must not delete the file */
    char *path;      /* owned */
    char *temporary; /* owned */
};

static Status open_temporary(AtomicFile *file) {
    size_t size = strlen(file->path) + SUFFIX_BYTES;
    for (int attempt = 0; attempt < NAME_ATTEMPTS; attempt++) {
        uint64_t noise = 0;
        if (getrandom(&noise, sizeof noise, 0) != (ssize_t)sizeof noise) FAIL_ERRNO("getrandom");
        snprintf(file->temporary, size, "%s.%016llx.tmp", file->path, (unsigned long long)noise);
        file->descriptor = open(file->temporary, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (file->descriptor >= 0) return STATUS_OK;
        if (errno != EEXIST) FAIL_ERRNO("cannot create %s", file->temporary);
    }
    FAIL(STATUS_IO, "no free temporary name beside %s", file->path);
}

Status atomic_file_create(const char *path, AtomicFile **out) {
    Status status = STATUS_OK;
    AtomicFile *file = NULL;
    size_t size = strlen(path) + 1;
    if (size == 1) FAIL(STATUS_ARGUMENT, "an empty file name");
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
    char directory[4096];
    const char *slash = strrchr(path, '/');
    size_t length = slash == NULL ? 0 : (size_t)(slash - path);
    if (length >= sizeof directory) FAIL(STATUS_ARGUMENT, "the directory's name is too long");
    memcpy(directory, path, length);
    directory[length] = '\0';
    const char *name = slash == NULL ? "." : length == 0 ? "/" : directory;
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
    if (result != 0) FAIL_ERRNO_GOTO("cannot sync %s", file->temporary);
    result = close(file->descriptor);
    file->descriptor = -1;
    if (result != 0) FAIL_ERRNO_GOTO("cannot close %s", file->temporary);
    if (rename(file->temporary, file->path) != 0) FAIL_ERRNO_GOTO("cannot rename %s", file->temporary);
    file->temporary[0] = '\0';
    if (sync) TRY_GOTO(sync_directory(file->path));
done:
    status = error_at_path(status, file->path);
    if (file->temporary[0] != '\0') unlink(file->temporary);
    release(file);
    return status;
}

Status atomic_file_commit(AtomicFile *file) { return commit(file, true); }

Status atomic_file_commit_unsynced(AtomicFile *file) { return commit(file, false); }

void atomic_file_abort(AtomicFile *file) {
    if (file == NULL) return;
    if (file->descriptor >= 0 && file->owner == getpid()) unlink(file->temporary);
    release(file);
}
