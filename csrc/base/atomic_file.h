/* A file that appears whole or not at all: written under a temporary name beside its target, synced, then
 * renamed over it. A crash or a failure leaves the old file, or none, and no temporary file after abort. */
#ifndef CGXFFCV_BASE_ATOMIC_FILE_H
#define CGXFFCV_BASE_ATOMIC_FILE_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

typedef struct AtomicFile AtomicFile;

/* Creates the temporary file in the target's directory (mode 0666 less the umask). */
Status atomic_file_create(const char *path, AtomicFile **out);

/* Writes all `size` bytes at `offset`; safe from several threads on disjoint ranges. */
Status atomic_file_write_at(AtomicFile *file, const void *data, size_t size, uint64_t offset);

/* Sets the file's length; the new bytes read as zero. */
Status atomic_file_truncate(AtomicFile *file, uint64_t size);

/* fsync, rename, fsync of the directory; the handle is gone afterwards, also on failure (then the temporary
 * file is too). */
Status atomic_file_commit(AtomicFile *file);

/* Deletes the temporary file; NULL is fine. */
void atomic_file_abort(AtomicFile *file);

#endif
