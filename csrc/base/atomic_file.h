/* A file that appears whole or not at all: written next to its target under a temporary name, or none, synced, then
 * renamed over it. A crash or a failure leaves the old file (or no file, if there was none) in place. No temporary file
 * remains after an abort, nor after a kill if the file system supports files without names (ext4, xfs, btrfs, tmpfs).
 * All files that must never be seen half written are written through this. */
#ifndef CGXFFCV_BASE_ATOMIC_FILE_H
#define CGXFFCV_BASE_ATOMIC_FILE_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

typedef struct AtomicFile AtomicFile;

/* Creates the temporary file (mode 0666 less the umask) in the target's folder. Symbolic links are followed, even to a
 * file that does not exist yet; a target that is a folder, FIFO, socket or device is refused, now and at the commit. */
Status atomic_file_create(const char *path, AtomicFile **out);

/* A second temporary file for the target of `other`, even if the working directory or the links have changed since. */
Status atomic_file_create_again(const AtomicFile *other, AtomicFile **out);

/* Writes all `size` bytes at `offset`; safe from several threads on disjoint ranges. */
Status atomic_file_write_at(AtomicFile *file, const void *data, size_t size, uint64_t offset);

/* Reads back exactly `size` bytes that were written at `offset`. */
Status atomic_file_read_at(const AtomicFile *file, void *out, size_t size, uint64_t offset);

/* Starts writing the range to disk without waiting, so that the commit has less to wait for; only a hint. */
void atomic_file_start_sync(const AtomicFile *file, uint64_t offset, uint64_t size);

/* Sets the file's length; the new bytes read as zero. */
Status atomic_file_truncate(AtomicFile *file, uint64_t size);

/* fsync, rename, fsync of the folder; the handle is gone afterwards, even on failure (temporary file deleted, old file
 * unchanged). Once renamed, the new file stays: failing to sync the folder is not a failure, but sets
 * *unsynced to its errno value (0 otherwise); after a power failure the old file may then be back. */
Status atomic_file_commit(AtomicFile *file, int *unsynced);

/* Like atomic_file_commit without the syncs: whole or absent after a crash of the process, but not of the machine. */
Status atomic_file_commit_unsynced(AtomicFile *file);

/* Deletes the temporary file; does nothing if NULL. */
void atomic_file_abort(AtomicFile *file);

#endif
