/* A file that appears whole or not at all: written beside its target under a temporary name, or none, synced, then
 * renamed over it. A crash or a failure leaves the old file, or none, and no temporary file after abort;
 * nor after a kill, where the file system has files without names (ext4, xfs, btrfs, tmpfs).
 * The one place that writes files which must not be seen half written. */
#ifndef CGXFFCV_BASE_ATOMIC_FILE_H
#define CGXFFCV_BASE_ATOMIC_FILE_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

typedef struct AtomicFile AtomicFile;

/* Creates the temporary file (mode 0666 less the umask) in the target's folder. Symbolic links are followed, also to a
 * file that does not exist yet; a target that is a folder, FIFO, socket or device is refused, now and at the commit. */
Status atomic_file_create(const char *path, AtomicFile **out);

/* A second temporary file for the target of `other`, wherever the process, or the links, have gone meanwhile. */
Status atomic_file_create_again(const AtomicFile *other, AtomicFile **out);

/* Writes all `size` bytes at `offset`; safe from several threads on disjoint ranges. */
Status atomic_file_write_at(AtomicFile *file, const void *data, size_t size, uint64_t offset);

/* Reads back exactly `size` bytes that were written at `offset`. */
Status atomic_file_read_at(const AtomicFile *file, void *out, size_t size, uint64_t offset);

/* Starts writing the range to the disk without waiting, so that the commit has less to wait for; only a hint. */
void atomic_file_start_sync(const AtomicFile *file, uint64_t offset, uint64_t size);

/* Sets the file's length; the new bytes read as zero. */
Status atomic_file_truncate(AtomicFile *file, uint64_t size);

/* fsync, rename, fsync of the folder; the handle is gone afterwards, also on failure (then the temporary file is gone
 * and the old file in its place). Once renamed, the new file stands: a folder that cannot be synced is no failure, but
 * *unsynced is its errno's value then, else 0: after a power failure the old file may be back. */
Status atomic_file_commit(AtomicFile *file, int *unsynced);

/* As atomic_file_commit without the syncs: whole or absent after a crash of the process, but not of the machine. */
Status atomic_file_commit_unsynced(AtomicFile *file);

/* Deletes the temporary file; does nothing if NULL. */
void atomic_file_abort(AtomicFile *file);

#endif
