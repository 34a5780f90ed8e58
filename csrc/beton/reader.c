/* Opening and closing: maps the file, has it validated once. Owns descriptor, mapping, field list. */
#include "beton/reader.h"

#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/memory.h"
#include "beton/extension.h"
#include "beton/set.h"

static Status open_file(BetonReader *reader) {
    struct stat info;
    /* without O_NONBLOCK a pipe would wait for its writer */
    RETRY_EINTR(reader->descriptor, open(reader->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK));
    if (reader->descriptor < 0) FAIL_ERRNO("cannot open the file");
    if (fstat(reader->descriptor, &info) != 0) FAIL_ERRNO("cannot get the file's size");
    if (S_ISDIR(info.st_mode)) return error_fail_errno(STATUS_IO, EISDIR, "cannot open the file");
    if (!S_ISREG(info.st_mode)) FAIL(STATUS_FORMAT, "not a regular file");
    reader->size = (uint64_t)info.st_size;
    return STATUS_OK;
}

static Status map_file(BetonReader *reader) {
    if (reader->size == 0) return beton_damaged(error_fail(STATUS_FORMAT, "the file is empty"));
    void *map = mmap(NULL, (size_t)reader->size, PROT_READ, MAP_SHARED, reader->descriptor, 0);
    if (map == MAP_FAILED) FAIL_ERRNO("cannot map the file's %llu bytes", (unsigned long long)reader->size);
    reader->map = map;
    return STATUS_OK;
}

/* Records and table are read once, from end to end. */
static void read_ahead(const BetonReader *reader) {
    beton_reader_read_ahead(reader, (BetonSpan){0, reader->metadata_end});
    beton_reader_read_ahead(reader, (BetonSpan){reader->table, reader->size});
}

static Status validate_guarded(BetonReader *reader, const BetonCustom *custom, size_t num_custom) {
    TRY(beton_reader_validate_head(reader, custom, num_custom));
    read_ahead(reader);
    TRY(beton_damaged(beton_reader_validate_table(reader)));
    return beton_damaged(beton_extension_open(reader));
}

static Status validate(BetonReader *reader, const BetonCustom *custom, size_t num_custom) {
    Guard guard;
    beton_reader_enter(reader, &guard);
    TRY(beton_reader_leave(reader, &guard, validate_guarded(reader, custom, num_custom)));
    return beton_reader_check_length(reader);
}

Status beton_reader_open(const char *path, const BetonCustom *custom, size_t num_custom, BetonReader **out) {
    Status status = STATUS_OK;
    BetonReader *reader = NULL;
    size_t length = strlen(path) + 1;
    TRY(memory_calloc(1, sizeof *reader, &reader));
    reader->descriptor = -1;
    TRY_GOTO(memory_alloc(length, 1, &reader->path));
    memcpy(reader->path, path, length);
    TRY_GOTO(open_file(reader));
    TRY_GOTO(map_file(reader));
    guard_install();
    TRY_GOTO(validate(reader, custom, num_custom));
    *out = reader;
    reader = NULL;
done:
    beton_reader_close(reader);
    return error_at_path(status, path);
}

void beton_reader_close(BetonReader *reader) {
    if (reader == NULL) return;
    beton_set_close(reader);
    if (reader->map != NULL && !reader->in_set_mapping) munmap((void *)(uintptr_t)reader->map, (size_t)reader->size);
    if (reader->descriptor >= 0) close(reader->descriptor);
    memory_free(reader->entry_of);
    memory_free(reader->fields);
    memory_free(reader->path);
    memory_free(reader);
}

const char *beton_reader_path(const BetonReader *reader) { return reader->path; }

uint64_t beton_reader_num_samples(const BetonReader *reader) { return reader->num_samples; }

size_t beton_reader_num_fields(const BetonReader *reader) { return reader->num_fields; }

const BetonField *beton_reader_field(const BetonReader *reader, size_t field) { return &reader->fields[field]; }

int64_t beton_reader_find_field(const BetonReader *reader, const char *name) {
    for (size_t i = 0; i < reader->num_fields; i++) {
        if (strcmp(reader->fields[i].name, name) == 0) return (int64_t)i;
    }
    return -1;
}

uint64_t beton_reader_page_size(const BetonReader *reader) { return reader->page_size; }

BetonSpan beton_reader_data_span(const BetonReader *reader) {
    /* without a region, the first page may be beyond the table */
    return (BetonSpan){reader->data < reader->table ? reader->data : reader->table, reader->table};
}

void beton_reader_read_ahead(const BetonReader *reader, BetonSpan span) {
    uint64_t unit = (uint64_t)sysconf(_SC_PAGESIZE);
    if (span.end > reader->size) span.end = reader->size;
    span.begin -= span.begin % unit;
    if (span.begin >= span.end) return;
    (void)madvise((void *)(uintptr_t)(reader->map + span.begin), (size_t)(span.end - span.begin), MADV_WILLNEED);
}

static Status fail_short(const BetonReader *reader, uint64_t bytes) {
    Status status =
        error_fail(STATUS_FORMAT, "the file has become shorter since it was opened: %llu bytes of %llu; write it again",
                   (unsigned long long)bytes, (unsigned long long)reader->size);
    return error_at_path(status, reader->path);
}

Status beton_reader_copy(const BetonReader *reader, BetonSpan span, void *to) {
    unsigned char *at = to;
    if (reader->num_parts > 0) return beton_set_copy(reader, span, to);
    while (span.begin < span.end) {
        ssize_t got;
        RETRY_EINTR(got, pread(reader->descriptor, at, (size_t)(span.end - span.begin), (off_t)span.begin));
        if (got < 0) {
            return error_at_path(error_fail_errno(STATUS_IO, errno, "cannot read the file"), reader->path);
        }
        if (got == 0) return fail_short(reader, span.begin);
        span.begin += (uint64_t)got;
        at += got;
    }
    return STATUS_OK;
}

Status beton_damaged(Status status) {
    if (status != STATUS_FORMAT) return status;
    return error_advise(status, "; the file is damaged or incomplete: write it again");
}

Status beton_damaged_image(Status status) {
    if (status != STATUS_FORMAT) return status;
    return error_advise(status, "; the stored image is damaged: write it again from a sound one");
}

static bool lost(const BetonReader *reader) { return atomic_load_explicit(&reader->lost, memory_order_relaxed); }

static Status fail_lost(const BetonReader *reader) {
    Status status =
        error_fail(STATUS_FORMAT, "the file was shorter for a while, or its disk has failed; open it again");
    return error_at_path(status, reader->path);
}

Status beton_reader_check_length(const BetonReader *reader) {
    struct stat info;
    if (reader->num_parts > 0) {
        TRY(beton_set_check_length(reader));
        return lost(reader) ? fail_lost(reader) : STATUS_OK;
    }
    if (fstat(reader->descriptor, &info) != 0) {
        return error_at_path(error_fail_errno(STATUS_IO, errno, "cannot get the file's size"), reader->path);
    }
    if ((uint64_t)info.st_size < reader->size) return fail_short(reader, (uint64_t)info.st_size);
    return lost(reader) ? fail_lost(reader) : STATUS_OK;
}

void beton_reader_enter(const BetonReader *reader, Guard *guard) {
    guard_enter(guard, reader->map, (size_t)reader->size, (atomic_bool *)(uintptr_t)&reader->lost);
}

Status beton_reader_leave(const BetonReader *reader, const Guard *guard, Status status) {
    guard_leave(guard);
    return lost(reader) ? beton_reader_check_length(reader) : status;
}
