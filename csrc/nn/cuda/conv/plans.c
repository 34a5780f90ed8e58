/* The cache of plans as a text file: a line that names the format, a line for the device and the library, then lines of
 * key, tab, value, and at the end the hash of everything before. Owns the entries; problems with the file are noted. */
#include "nn/cuda/conv/plans.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/atomic_file.h"
#include "base/hash.h"
#include "base/memory.h"

#define FORMAT_LINE "cgxffcv convolution plans 1\n"
#define END_WORD "end "
#define END_BYTES (sizeof END_WORD - 1 + 16 + 1) /* the word, the hash, a newline */
#define MAX_FILE_BYTES (4u << 20)
#define IDENTITY_BYTES 320
#define NAME_BYTES 160
#define DIRECTORY_BYTES (CONV_PLANS_PATH_BYTES - NAME_BYTES - 8)
#define LEAST_ROOM 32

typedef struct Entry {
    char key[CONV_PLANS_KEY_BYTES], value[CONV_PLANS_VALUE_BYTES];
    bool own; /* found by this process: newer than the one on disk */
} Entry;

typedef struct Entries {
    Entry *list; /* owned */
    int count, room;
} Entries;

struct ConvPlans {
    pthread_mutex_t lock;
    Entries entries;
    char directory[DIRECTORY_BYTES], path[CONV_PLANS_PATH_BYTES], identity[IDENTITY_BYTES];
    char note[CONV_PLANS_NOTE_BYTES];
    bool unwritable;
    int hits, misses;
};

static bool printable(const char *text, size_t length, size_t room) {
    if (length == 0 || length >= room) return false;
    for (size_t i = 0; i < length; i++) {
        if (text[i] < ' ' || text[i] > '~') return false;
    }
    return true;
}

static void note(ConvPlans *plans, const char *what, const char *why) {
    if (plans->note[0] == '\0') snprintf(plans->note, sizeof plans->note, "%s %s: %s", what, plans->path, why);
}

static Entry *find_entry(const Entries *entries, const char *key) {
    for (int i = 0; i < entries->count; i++) {
        if (strcmp(entries->list[i].key, key) == 0) return &entries->list[i];
    }
    return NULL;
}

static Status plans_make_room(Entries *entries) {
    if (entries->count == CONV_PLANS_MAX_ENTRIES) { /* drop the oldest */
        entries->count--;
        memmove(entries->list, entries->list + 1, (size_t)entries->count * sizeof *entries->list);
    }
    if (entries->count < entries->room) return STATUS_OK;
    int room = entries->room == 0 ? LEAST_ROOM : 2 * entries->room;
    TRY(memory_resize(&entries->list, (size_t)entries->count * sizeof *entries->list,
                      (size_t)room * sizeof *entries->list));
    entries->room = room;
    return STATUS_OK;
}

/* The caller has checked that key and value fit. */
static Status put_entry(Entries *entries, const char *key, const char *value, bool own) {
    Entry *entry = find_entry(entries, key);
    if (entry == NULL) {
        TRY(plans_make_room(entries));
        entry = &entries->list[entries->count++];
    }
    snprintf(entry->key, sizeof entry->key, "%s", key);
    snprintf(entry->value, sizeof entry->value, "%s", value);
    entry->own = own;
    return STATUS_OK;
}

/* ---- location ---- */

static bool choose_directory(char out[DIRECTORY_BYTES]) {
    const char *own = getenv("CGXFFCV_CACHE"), *xdg = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    int length = -1;
    if (own != NULL && own[0] != '\0') {
        length = snprintf(out, DIRECTORY_BYTES, "%s", own);
    } else if (xdg != NULL && xdg[0] == '/') { /* the specification says to ignore relative paths */
        length = snprintf(out, DIRECTORY_BYTES, "%s/cgxffcv", xdg);
    } else if (home != NULL && home[0] != '\0') {
        length = snprintf(out, DIRECTORY_BYTES, "%s/.cache/cgxffcv", home);
    }
    if (length >= 0 && length < DIRECTORY_BYTES) return true;
    out[0] = '\0';
    return false;
}

/* Replaces everything but letters, digits and dots of the identity by underscores. */
static void file_name(const char *identity, char out[NAME_BYTES]) {
    size_t used = 0;
    for (; identity[used] != '\0' && used + 1 < NAME_BYTES; used++) {
        char c = identity[used];
        bool plain = (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || c == '.';
        out[used] = plain ? c : '_';
    }
    out[used] = '\0';
}

static void choose_path(ConvPlans *plans, const char *device, const char *library) {
    char name[NAME_BYTES];
    snprintf(plans->identity, sizeof plans->identity, "%.150s, %.150s", device, library);
    for (char *c = plans->identity; *c != '\0'; c++) {
        if (*c < ' ' || *c > '~') *c = '_';
    }
    file_name(plans->identity, name);
    if (choose_directory(plans->directory)) {
        snprintf(plans->path, sizeof plans->path, "%s/%s.plans", plans->directory, name);
        return;
    }
    plans->unwritable = true;
    note(plans, "not kept", "no directory is known or its name is too long; set CGXFFCV_CACHE");
}

/* Makes the directory and its parents; errors will show when the file is created. */
static void make_directories(const char *directory) {
    char path[DIRECTORY_BYTES];
    snprintf(path, sizeof path, "%s", directory);
    for (char *slash = strchr(path + 1, '/'); slash != NULL; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        (void)mkdir(path, 0777);
        *slash = '/';
    }
    (void)mkdir(path, 0777);
}

/* ---- reading ---- */

/* Reads the whole file and appends a zero; *out is NULL if there is no file. */
static Status read_file(const char *path, char **out, size_t *size) {
    Status status = STATUS_OK;
    struct stat about;
    char *text = NULL;
    *out = NULL;
    *size = 0;
    int descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (descriptor < 0 && (errno == ENOENT || errno == ENOTDIR)) return STATUS_OK;
    if (descriptor < 0) FAIL_ERRNO("open");
    if (fstat(descriptor, &about) != 0) FAIL_ERRNO_GOTO("stat");
    if (!S_ISREG(about.st_mode)) FAIL_GOTO(STATUS_FORMAT, "it is not a regular file");
    if (about.st_size > (off_t)MAX_FILE_BYTES) FAIL_GOTO(STATUS_FORMAT, "it is too long");
    TRY_GOTO(memory_calloc((size_t)about.st_size + 1, 1, &text));
    while (*size < (size_t)about.st_size) {
        ssize_t got;
        RETRY_EINTR(got, read(descriptor, text + *size, (size_t)about.st_size - *size));
        if (got < 0) FAIL_ERRNO_GOTO("read");
        if (got == 0) break;
        *size += (size_t)got;
    }
    *out = text;
    text = NULL;
done:
    memory_free(text);
    close(descriptor);
    return status;
}

/* Whether the text begins with this line; if so, steps over it. */
static bool take_line(const char **at, const char *end, const char *line) {
    size_t length = strlen(line);
    if ((size_t)(end - *at) < length || memcmp(*at, line, length) != 0) return false;
    *at += length;
    return true;
}

/* Everything is checked before the first entry is used: the hash at the end covers the whole file. */
static Status parse(const char *text, size_t size, const char *identity, Entries *entries) {
    char first[IDENTITY_BYTES + 8], last[END_BYTES + 1];
    snprintf(first, sizeof first, "for %s\n", identity);
    const char *at = text, *end = text + (size < END_BYTES ? 0 : size - END_BYTES);
    snprintf(last, sizeof last, END_WORD "%016llx\n", (unsigned long long)hash_bytes(text, (size_t)(end - text), 0));
    if (size < END_BYTES || memcmp(end, last, END_BYTES) != 0) FAIL(STATUS_FORMAT, "it is damaged");
    if (!take_line(&at, end, FORMAT_LINE)) FAIL(STATUS_FORMAT, "it is of another version");
    if (!take_line(&at, end, first)) FAIL(STATUS_FORMAT, "it belongs to another GPU or library");
    while (at < end) {
        char key[CONV_PLANS_KEY_BYTES], value[CONV_PLANS_VALUE_BYTES];
        const char *line_end = memchr(at, '\n', (size_t)(end - at));
        const char *tab = line_end == NULL ? NULL : memchr(at, '\t', (size_t)(line_end - at));
        if (tab == NULL || !printable(at, (size_t)(tab - at), sizeof key) ||
            !printable(tab + 1, (size_t)(line_end - tab - 1), sizeof value)) {
            FAIL(STATUS_FORMAT, "it has a malformed line");
        }
        snprintf(key, sizeof key, "%.*s", (int)(tab - at), at);
        snprintf(value, sizeof value, "%.*s", (int)(line_end - tab - 1), tab + 1);
        TRY(put_entry(entries, key, value, false));
        at = line_end + 1;
    }
    return STATUS_OK;
}

/* Loads the entries on disk; none, with a note, if the file is unusable. Fails only if memory runs out. */
static Status load_file(ConvPlans *plans, Entries *entries) {
    char *text = NULL;
    size_t size = 0;
    if (plans->path[0] == '\0') return STATUS_OK;
    Status status = read_file(plans->path, &text, &size);
    if (status == STATUS_OK && text != NULL) status = parse(text, size, plans->identity, entries);
    memory_free(text);
    if (status == STATUS_OK || status == STATUS_MEMORY) return status;
    entries->count = 0;
    note(plans, "ignored", error_record()->message);
    return STATUS_OK;
}

/* ---- writing ---- */

static Status plans_format(const ConvPlans *plans, char **out, size_t *size) {
    char *text = NULL;
    size_t room = sizeof FORMAT_LINE + IDENTITY_BYTES + END_BYTES + 16, used;
    for (int i = 0; i < plans->entries.count; i++) {
        room += strlen(plans->entries.list[i].key) + strlen(plans->entries.list[i].value) + 2;
    }
    TRY(memory_alloc(room, 1, &text));
    used = (size_t)snprintf(text, room, FORMAT_LINE "for %s\n", plans->identity);
    for (int i = 0; i < plans->entries.count; i++) {
        const Entry *entry = &plans->entries.list[i];
        used += (size_t)snprintf(text + used, room - used, "%s\t%s\n", entry->key, entry->value);
    }
    uint64_t hash = hash_bytes(text, used, 0);
    used += (size_t)snprintf(text + used, room - used, END_WORD "%016llx\n", (unsigned long long)hash);
    *out = text;
    *size = used;
    return STATUS_OK;
}

static Status write_file(const ConvPlans *plans) {
    Status status = STATUS_OK;
    AtomicFile *file = NULL;
    char *text = NULL;
    size_t size = 0;
    TRY(plans_format(plans, &text, &size));
    make_directories(plans->directory);
    TRY_GOTO(atomic_file_create(plans->path, &file));
    TRY_GOTO(atomic_file_write_at(file, text, size, 0));
    status = atomic_file_commit_unsynced(file);
    file = NULL;
done:
    atomic_file_abort(file);
    memory_free(text);
    return status;
}

/* Merges in what other processes have written since; entries that this process found itself take precedence. */
static Status merge_file(ConvPlans *plans) {
    Status status = STATUS_OK;
    Entries fresh = {0};
    TRY_GOTO(load_file(plans, &fresh));
    for (int i = 0; i < plans->entries.count; i++) {
        const Entry *entry = &plans->entries.list[i];
        if (!entry->own && find_entry(&fresh, entry->key) != NULL) continue;
        TRY_GOTO(put_entry(&fresh, entry->key, entry->value, entry->own));
    }
    memory_free(plans->entries.list);
    plans->entries = fresh;
    fresh = (Entries){0};
done:
    memory_free(fresh.list);
    return status;
}

/* ---- the cache ---- */

Status nn_cuda_plans_open(const char *device, const char *library, ConvPlans **out) {
    Status status = STATUS_OK;
    ConvPlans *plans = NULL;
    TRY(memory_calloc(1, sizeof *plans, &plans));
    int failed = pthread_mutex_init(&plans->lock, NULL);
    if (failed != 0) {
        memory_free(plans);
        return error_fail_errno(STATUS_MEMORY, failed, "pthread_mutex_init");
    }
    choose_path(plans, device, library);
    TRY_GOTO(load_file(plans, &plans->entries));
    *out = plans;
    plans = NULL;
done:
    nn_cuda_plans_close(plans);
    return status;
}

void nn_cuda_plans_close(ConvPlans *plans) {
    if (plans == NULL) return;
    pthread_mutex_destroy(&plans->lock);
    memory_free(plans->entries.list);
    memory_free(plans);
}

bool nn_cuda_plans_find(ConvPlans *plans, const char *key, char value[CONV_PLANS_VALUE_BYTES], bool *own) {
    pthread_mutex_lock(&plans->lock);
    const Entry *entry = find_entry(&plans->entries, key);
    if (entry == NULL) {
        plans->misses++;
    } else {
        plans->hits++;
        memcpy(value, entry->value, sizeof entry->value);
        *own = entry->own;
    }
    pthread_mutex_unlock(&plans->lock);
    return entry != NULL;
}

Status nn_cuda_plans_store(ConvPlans *plans, const char *key, const char *value) {
    if (!printable(key, strlen(key), CONV_PLANS_KEY_BYTES) ||
        !printable(value, strlen(value), CONV_PLANS_VALUE_BYTES)) {
        FAIL(STATUS_ARGUMENT, "a plan's key and value must be one line of text of less than %d and %d bytes",
             CONV_PLANS_KEY_BYTES, CONV_PLANS_VALUE_BYTES);
    }
    pthread_mutex_lock(&plans->lock);
    Status status = put_entry(&plans->entries, key, value, true);
    if (status == STATUS_OK && !plans->unwritable) {
        status = merge_file(plans);
        if (status == STATUS_OK && write_file(plans) != STATUS_OK) {
            plans->unwritable = true;
            note(plans, "cannot write", error_record()->message);
        }
    }
    pthread_mutex_unlock(&plans->lock);
    return status;
}

void nn_cuda_plans_report(ConvPlans *plans, ConvPlansReport *out) {
    pthread_mutex_lock(&plans->lock);
    *out = (ConvPlansReport){.hits = plans->hits, .misses = plans->misses, .entries = plans->entries.count};
    memcpy(out->path, plans->path, sizeof out->path);
    memcpy(out->note, plans->note, sizeof out->note);
    pthread_mutex_unlock(&plans->lock);
}
