/* Temporary file, sync, rename. Owns the descriptors of the file and its folder, and the names. Where the file system
 * supports it, the file has no name until it is complete, so nothing is left behind if the process is killed. All names
 * are resolved in the folder that was opened first, even if the working directory or the path changes meanwhile. */
#include "base/atomic_file.h"

#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/memory.h"

#define NAME_ATTEMPTS 100
#define LINK_LIMIT 40 /* the kernel's limit */
#define TEMPORARY_BYTES 40

struct AtomicFile {
    int descriptor;
    int folder;   /* the target's */
    pid_t owner;  /* a forked child that inherits the handle must not delete the file */
    bool named;   /* the temporary file has its name */
    char *path;   /* owned; as given by the caller, for messages */
    char *target; /* owned; the target's name in the folder */
    char temporary[TEMPORARY_BYTES];
};

/* Unguessable, and short enough for any folder, however long the target's name is. */
static Status draw_name(AtomicFile *file) {
    uint64_t noise = 0;
    if (getrandom(&noise, sizeof noise, 0) != (ssize_t)sizeof noise) FAIL_ERRNO("getrandom");
    snprintf(file->temporary, sizeof file->temporary, ".cgxffcv-%016llx.tmp", (unsigned long long)noise);
    return STATUS_OK;
}

/* The name under which the descriptor can be linked. */
static void descriptor_name(const AtomicFile *file, char *out, size_t size) {
    snprintf(out, size, "/proc/self/fd/%d", file->descriptor);
}

/* Opens a file without a name; false where the system cannot create one or could not name it later. */
static bool open_unnamed(AtomicFile *file) {
    char own[32];
    file->descriptor = openat(file->folder, ".", O_RDWR | O_TMPFILE | O_CLOEXEC, 0666);
    if (file->descriptor < 0) return false;
    descriptor_name(file, own, sizeof own);
    if (access(own, F_OK) == 0) return true;
    close(file->descriptor);
    file->descriptor = -1;
    return false;
}

static Status open_temporary(AtomicFile *file) {
    if (open_unnamed(file)) return STATUS_OK;
    for (int attempt = 0; attempt < NAME_ATTEMPTS; attempt++) {
        TRY(draw_name(file));
        int flags = O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC;
        file->descriptor = openat(file->folder, file->temporary, flags, 0666);
        file->named = file->descriptor >= 0;
        if (file->named) return STATUS_OK;
        if (errno != EEXIST) FAIL_ERRNO("cannot create a file in the folder");
    }
    FAIL(STATUS_IO, "no free temporary name in the folder");
}

/* rename() needs a name, and link() cannot replace a file, so the file first gets a name next to the target. */
static Status link_temporary(AtomicFile *file) {
    char own[32];
    descriptor_name(file, own, sizeof own);
    for (int attempt = 0; attempt < NAME_ATTEMPTS && !file->named; attempt++) {
        TRY(draw_name(file));
        file->named = linkat(AT_FDCWD, own, file->folder, file->temporary, AT_SYMLINK_FOLLOW) == 0;
        if (!file->named && errno != EEXIST) FAIL_ERRNO("cannot name the finished file %s", file->temporary);
    }
    if (!file->named) FAIL(STATUS_IO, "no free temporary name in the folder");
    return STATUS_OK;
}

/* Refuses to replace anything other than a regular file. */
static Status check_replaceable(mode_t mode) {
    const char *what = S_ISDIR(mode)    ? "a folder"
                       : S_ISFIFO(mode) ? "a FIFO"
                       : S_ISSOCK(mode) ? "a socket"
                       : S_ISCHR(mode)  ? "a character device"
                       : S_ISBLK(mode)  ? "a block device"
                                        : "a symbolic link that was made meanwhile";
    if (S_ISREG(mode)) return STATUS_OK;
    return error_fail_errno(STATUS_IO, S_ISDIR(mode) ? EISDIR : EINVAL,
                            "there is %s, which a file must not replace; give the name of a file", what);
}

/* Replaces `target`, the name of a symbolic link, by what it points to, resolved relative to the link's folder. */
static Status follow_link(char target[PATH_MAX]) {
    char text[PATH_MAX];
    ssize_t length = readlink(target, text, sizeof text - 1);
    if (length < 0) FAIL_ERRNO("cannot read the symbolic link %s", target);
    text[length] = '\0';
    char *slash = strrchr(target, '/');
    size_t keep = text[0] == '/' || slash == NULL ? 0 : (size_t)(slash + 1 - target);
    if (keep + (size_t)length >= PATH_MAX) {
        return error_fail_errno(STATUS_IO, ENAMETOOLONG, "cannot follow the symbolic link %s", target);
    }
    memcpy(target + keep, text, (size_t)length + 1);
    return STATUS_OK;
}

/* Finds the file that writing to `path` creates: links are followed, even to a file that does not exist yet. stat()
 * comes first because the kernel refuses links that others have planted in a folder like /tmp. */
static Status find_target(const char *path, char target[PATH_MAX]) {
    struct stat end, here;
    bool exists = stat(path, &end) == 0;
    if (!exists && errno != ENOENT) FAIL_ERRNO("cannot look at what is there");
    if (exists) TRY(check_replaceable(end.st_mode));
    if (strlen(path) >= PATH_MAX) return error_fail_errno(STATUS_IO, ENAMETOOLONG, "cannot use this name");
    memcpy(target, path, strlen(path) + 1);
    for (int links = 0; links <= LINK_LIMIT; links++) {
        bool found = lstat(target, &here) == 0;
        if (!found && errno == ENOENT && (!exists || links == 0)) return STATUS_OK;
        if (!found) FAIL_ERRNO("cannot follow its symbolic links to %s", target);
        if (!S_ISLNK(here.st_mode)) return check_replaceable(here.st_mode);
        TRY(follow_link(target));
    }
    return error_fail_errno(STATUS_IO, ELOOP, "cannot follow its symbolic links");
}

/* Opens the folder of `target` and splits off the name; a file can be created even in a folder that cannot be read. */
static Status open_folder(char *target, int *folder, const char **name) {
    char *slash = strrchr(target, '/');
    const char *path = slash == NULL ? "." : slash == target ? "/" : target;
    *name = slash == NULL ? target : slash + 1;
    if (**name == '\0') return error_fail_errno(STATUS_IO, EISDIR, "the name of a file must not end in /");
    if (slash != NULL) *slash = '\0';
    *folder = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (*folder < 0 && errno == EACCES) *folder = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (*folder < 0) FAIL_ERRNO("cannot open the folder %s", path);
    return STATUS_OK;
}

static Status copy_text(const char *text, char **out) {
    size_t size = strlen(text) + 1;
    TRY(memory_alloc(size, 1, out));
    memcpy(*out, text, size);
    return STATUS_OK;
}

/* Takes ownership of the folder's descriptor, even on failure. */
static Status create_in(int folder, const char *path, const char *target, AtomicFile **out) {
    Status status = STATUS_OK;
    AtomicFile *file = NULL;
    TRY_GOTO(memory_calloc(1, sizeof *file, &file));
    file->descriptor = -1;
    file->folder = folder;
    file->owner = getpid();
    folder = -1;
    TRY_GOTO(copy_text(path, &file->path));
    TRY_GOTO(copy_text(target, &file->target));
    TRY_GOTO(open_temporary(file));
    *out = file;
    file = NULL;
done:
    if (folder >= 0) close(folder);
    atomic_file_abort(file);
    return status;
}

static Status atomic_file_open_new(const char *path, AtomicFile **out) {
    char target[PATH_MAX];
    const char *name;
    int folder = -1;
    if (path[0] == '\0') FAIL(STATUS_ARGUMENT, "an empty file name");
    TRY(find_target(path, target));
    TRY(open_folder(target, &folder, &name));
    return create_in(folder, path, name, out);
}

Status atomic_file_create(const char *path, AtomicFile **out) {
    return error_at_path(atomic_file_open_new(path, out), path);
}

Status atomic_file_create_again(const AtomicFile *other, AtomicFile **out) {
    int folder = fcntl(other->folder, F_DUPFD_CLOEXEC, 0);
    if (folder < 0) return error_at_path(error_fail_errno(STATUS_IO, errno, "cannot copy a descriptor"), other->path);
    return error_at_path(create_in(folder, other->path, other->target, out), other->path);
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
    if (file->named && file->owner == getpid()) unlinkat(file->folder, file->temporary, 0);
    if (file->descriptor >= 0) close(file->descriptor);
    if (file->folder >= 0) close(file->folder);
    memory_free(file->target);
    memory_free(file->path);
    memory_free(file);
}

/* The rename itself is durable only once the folder is synced; returns errno's value if that fails. Some file systems
 * cannot sync a folder, and a folder that cannot be read cannot be synced; the file itself is safe there. */
static int sync_folder(const AtomicFile *file) {
    int result;
    RETRY_EINTR(result, fsync(file->folder));
    return result == 0 || errno == EINVAL || errno == ENOTSUP || errno == EBADF ? 0 : errno;
}

/* Moves the file into place. Must not fail after the rename, when the old file is gone. */
static Status rename_into_place(AtomicFile *file) {
    struct stat there;
    TRY(link_temporary(file));
    int result = close(file->descriptor);
    file->descriptor = -1;
    if (result != 0) FAIL_ERRNO("cannot close the file");
    if (fstatat(file->folder, file->target, &there, AT_SYMLINK_NOFOLLOW) == 0) TRY(check_replaceable(there.st_mode));
    if (renameat(file->folder, file->temporary, file->folder, file->target) != 0) {
        FAIL_ERRNO("cannot rename %s", file->temporary);
    }
    file->named = false;
    return STATUS_OK;
}

Status atomic_file_commit(AtomicFile *file, int *unsynced) {
    Status status = STATUS_OK;
    int result;
    RETRY_EINTR(result, fsync(file->descriptor));
    if (result != 0) FAIL_ERRNO_GOTO("cannot sync the file");
    TRY_GOTO(rename_into_place(file));
    *unsynced = sync_folder(file);
done:
    status = error_at_path(status, file->path);
    release(file);
    return status;
}

Status atomic_file_commit_unsynced(AtomicFile *file) {
    Status status = error_at_path(rename_into_place(file), file->path);
    release(file);
    return status;
}

void atomic_file_abort(AtomicFile *file) {
    if (file != NULL) release(file);
}
