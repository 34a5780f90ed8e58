/* Several files as one: each is opened and validated separately and then mapped again, at a place of its own in one
 * address range, so that every byte of the set has one offset. Code that fetches values finds a sample's file here. */
#include "beton/set.h"

#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/memory.h"

/* ---- finding ---- */

size_t beton_set_part(const BetonReader *set, uint64_t sample) {
    size_t first = 0, end = set->num_parts;
    while (end - first > 1) { /* the last that does not begin after the sample */
        const size_t middle = first + (end - first) / 2;
        if (set->parts[middle]->first <= sample)
            first = middle;
        else
            end = middle;
    }
    return first;
}

size_t beton_reader_num_files(const BetonReader *reader) { return reader->num_parts == 0 ? 1 : reader->num_parts; }

uint64_t beton_reader_first_sample(const BetonReader *reader, size_t file) {
    return reader->num_parts == 0 ? 0 : reader->parts[file]->first;
}

const char *beton_reader_path_of(const BetonReader *reader, uint64_t sample) {
    if (reader->num_parts == 0 || sample >= reader->num_samples) return reader->path;
    return reader->parts[beton_set_part(reader, sample)]->path;
}

/* ---- what files of a set have in common ---- */

static bool same_shape(const BetonField *a, const BetonField *b) {
    return a->dtype == b->dtype && a->ndim == b->ndim &&
           memcmp(a->shape, b->shape, (size_t)a->ndim * sizeof *a->shape) == 0;
}

static void print_shape(const BetonField *field, char *to, size_t room) {
    size_t used = (size_t)snprintf(to, room, "%s (", beton_dtype_name((int)field->dtype));
    for (int i = 0; i < field->ndim && used < room; i++) {
        used +=
            (size_t)snprintf(to + used, room - used, "%s%llu", i == 0 ? "" : ", ", (unsigned long long)field->shape[i]);
    }
    if (used < room) snprintf(to + used, room - used, ")");
}

/* Refuses a field that differs from the first file's. */
static Status check_field(const BetonReader *first, const BetonField *wanted, const BetonField *field) {
    if (strcmp(wanted->name, field->name) != 0) {
        FAIL(STATUS_ARGUMENT, "its fields are not those of %s, in the same order: it has '%s' where that has '%s'",
             first->path, field->name, wanted->name);
    }
    if (wanted->kind != field->kind) {
        FAIL(STATUS_ARGUMENT, "the field holds %s, but %s in %s", beton_kind_name(field->kind),
             beton_kind_name(wanted->kind), first->path);
    }
    if ((field->kind == BETON_ARRAY || field->kind == BETON_TENSOR) && !same_shape(wanted, field)) {
        char own[128], others[128];
        print_shape(field, own, sizeof own);
        print_shape(wanted, others, sizeof others);
        FAIL(STATUS_ARGUMENT, "the field holds %s, but %s in %s", own, others, first->path);
    }
    if (field->kind == BETON_CUSTOM && memcmp(wanted->arguments, field->arguments, BETON_ARGUMENT_BYTES) != 0) {
        FAIL(STATUS_ARGUMENT, "the field's arguments are not those that it has in %s", first->path);
    }
    return STATUS_OK;
}

static Status check_fields(const BetonReader *first, const BetonReader *part) {
    if (part->num_fields != first->num_fields) {
        FAIL(STATUS_ARGUMENT, "it has %zu fields, but %s has %zu: the files of a set must have the same fields",
             part->num_fields, first->path, first->num_fields);
    }
    for (size_t i = 0; i < part->num_fields; i++) {
        TRY(error_at_field(check_field(first, &first->fields[i], &part->fields[i]), part->fields[i].name));
    }
    return STATUS_OK;
}

static Status check_part(const BetonReader *set, const BetonReader *part) {
    const BetonReader *first = set->parts[0];
    Guard one, other;
    if (part == first) return STATUS_OK;
    beton_reader_enter(first, &one);
    beton_reader_enter(part, &other);
    Status status = beton_reader_leave(part, &other, check_fields(first, part));
    return error_at_path(beton_reader_leave(first, &one, status), part->path);
}

#define LEAST(a, b) ((a) < (b) ? (a) : (b))
#define MOST(a, b) ((a) > (b) ? (a) : (b))

/* The extremes over both; those of a file without samples mean nothing. */
static void join_field(BetonField *to, const BetonField *own, bool none_before) {
    if (none_before) {
        *to = *own;
        return;
    }
    to->min_bytes = LEAST(to->min_bytes, own->min_bytes);
    to->max_bytes = MOST(to->max_bytes, own->max_bytes);
    to->min_width = LEAST(to->min_width, own->min_width);
    to->max_width = MOST(to->max_width, own->max_width);
    to->min_height = LEAST(to->min_height, own->min_height);
    to->max_height = MOST(to->max_height, own->max_height);
    to->num_jpeg += own->num_jpeg;
    to->num_raw += own->num_raw;
}

static Status set_add_part(BetonReader *set, BetonReader *part) {
    set->parts[set->num_parts++] = part;
    TRY(check_part(set, part));
    part->first = set->num_samples;
    if (!checked_add(set->num_samples, part->num_samples, &set->num_samples) || set->num_samples > INT64_MAX) {
        FAIL(STATUS_ARGUMENT, "together the files have more samples than 64-bit numbers can count");
    }
    set->page_size = MOST(set->page_size, part->page_size);
    for (size_t i = 0; i < part->num_fields; i++) {
        if (part->num_samples == 0 && set->num_parts > 1) continue;
        join_field(&set->fields[i], &part->fields[i], set->num_samples == part->num_samples);
    }
    return STATUS_OK;
}

/* ---- addresses ---- */

/* Each file begins on a page boundary of the set, so that two files never share a page. */
static Status place_parts(BetonReader *set) {
    const uint64_t unit = MOST((uint64_t)set->page_size, (uint64_t)sysconf(_SC_PAGESIZE));
    for (size_t i = 0; i < set->num_parts; i++) {
        BetonReader *part = set->parts[i];
        part->base = set->size;
        if (checked_add(part->base, part->size, &set->size) && checked_round_up(set->size, unit, &set->size)) continue;
        FAIL(STATUS_ARGUMENT, "together the files are larger than the address space of a process");
    }
    return STATUS_OK;
}

/* Moves a pointer from the old mapping to the new one. */
static void rebase(const unsigned char **pointer, const BetonReader *part, const unsigned char *map) {
    if (*pointer != NULL) *pointer = map + (*pointer - part->map);
}

static Status map_into_set(BetonReader *set, BetonReader *part) {
    unsigned char *at = (unsigned char *)(uintptr_t)set->map + part->base;
    const unsigned char *old = part->map;
    void *map = mmap(at, (size_t)part->size, PROT_READ, MAP_SHARED | MAP_FIXED, part->descriptor, 0);
    if (map == MAP_FAILED) FAIL_ERRNO("cannot map the file's %llu bytes", (unsigned long long)part->size);
    for (size_t i = 0; i < part->num_fields; i++) rebase(&part->fields[i].arguments, part, map);
    rebase(&part->extension, part, map);
    rebase(&part->checksums, part, map);
    part->map = map;
    part->in_set_mapping = true;
    munmap((void *)(uintptr_t)old, (size_t)part->size);
    return STATUS_OK;
}

static Status map_parts(BetonReader *set) {
    TRY(place_parts(set));
    void *map = mmap(NULL, (size_t)set->size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED) {
        FAIL_ERRNO("cannot reserve addresses for %llu bytes of %zu files", (unsigned long long)set->size,
                   set->num_parts);
    }
    set->map = map;
    for (size_t i = 0; i < set->num_parts; i++) {
        TRY(error_at_path(map_into_set(set, set->parts[i]), set->parts[i]->path));
    }
    for (size_t i = 0; i < set->num_fields; i++) set->fields[i].arguments = set->parts[0]->fields[i].arguments;
    return STATUS_OK;
}

/* ---- opening ---- */

static Status name_set(BetonReader *set, const char *first, size_t count) {
    const size_t room = strlen(first) + 48;
    TRY(memory_alloc(room, 1, &set->path));
    snprintf(set->path, room, "%s (and %zu more)", first, count - 1);
    return STATUS_OK;
}

static Status open_parts(BetonReader *set, const char *const *paths, size_t count, const BetonCustom *custom,
                         size_t num_custom) {
    BetonReader *part = NULL;
    TRY(memory_calloc(count, sizeof *set->parts, &set->parts));
    for (size_t i = 0; i < count; i++) {
        TRY(beton_reader_open(paths[i], custom, num_custom, &part));
        if (i == 0) {
            Status status = memory_calloc(part->num_fields, sizeof *set->fields, &set->fields);
            if (status != STATUS_OK) {
                beton_reader_close(part);
                return status;
            }
            set->num_fields = part->num_fields;
        }
        TRY(set_add_part(set, part));
    }
    return STATUS_OK;
}

Status beton_reader_open_set(const char *const *paths, size_t count, const BetonCustom *custom, size_t num_custom,
                             BetonReader **out) {
    Status status = STATUS_OK;
    BetonReader *set = NULL;
    if (count < 1) FAIL(STATUS_ARGUMENT, "a set needs at least one file");
    if (count == 1) return beton_reader_open(paths[0], custom, num_custom, out);
    TRY(memory_calloc(1, sizeof *set, &set));
    set->descriptor = -1;
    TRY_GOTO(name_set(set, paths[0], count));
    TRY_GOTO(open_parts(set, paths, count, custom, num_custom));
    TRY_GOTO(map_parts(set));
    *out = set;
    set = NULL;
done:
    beton_reader_close(set);
    return status;
}

void beton_set_close(BetonReader *set) {
    for (size_t i = 0; i < set->num_parts; i++) beton_reader_close(set->parts[i]);
    memory_free(set->parts);
}

/* ---- bytes ---- */

Status beton_set_check_length(const BetonReader *set) {
    for (size_t i = 0; i < set->num_parts; i++) TRY(beton_reader_check_length(set->parts[i]));
    return STATUS_OK;
}

/* There is nothing between two files: those bytes of `to` stay as they are. */
Status beton_set_copy(const BetonReader *set, BetonSpan span, unsigned char *to) {
    for (size_t i = 0; i < set->num_parts; i++) {
        const BetonReader *part = set->parts[i];
        const uint64_t begin = MOST(span.begin, part->base), end = LEAST(span.end, part->base + part->size);
        if (begin >= end) continue;
        const BetonSpan own = {begin - part->base, end - part->base};
        TRY(beton_reader_copy(part, own, to + (begin - span.begin)));
    }
    return STATUS_OK;
}
