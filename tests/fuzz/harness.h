/* For the fuzz programs: a file in memory that is changed in place and opened again and again. */
#ifndef CGXFFCV_TESTS_FUZZ_HARNESS_H
#define CGXFFCV_TESTS_FUZZ_HARNESS_H

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/philox.h"
#include "image/jpeg.h"

#define DIE(...)                                                                                                       \
    do {                                                                                                               \
        fprintf(stderr, __VA_ARGS__);                                                                                  \
        fprintf(stderr, "\n");                                                                                         \
        exit(1);                                                                                                       \
    } while (0)

typedef struct Victim {
    int descriptor;
    char path[64];
    unsigned char *bytes; /* as it should be */
    size_t size;
} Victim;

static inline Victim victim_load(const char *path) {
    Victim victim = {0};
    FILE *file = fopen(path, "rb");
    if (file == NULL) DIE("cannot open %s", path);
    fseek(file, 0, SEEK_END);
    victim.size = (size_t)ftell(file);
    rewind(file);
    victim.bytes = malloc(victim.size);
    if (fread(victim.bytes, 1, victim.size, file) != victim.size) DIE("cannot read %s", path);
    fclose(file);
    victim.descriptor = memfd_create("victim", MFD_CLOEXEC);
    snprintf(victim.path, sizeof victim.path, "/proc/self/fd/%d", victim.descriptor);
    if (pwrite(victim.descriptor, victim.bytes, victim.size, 0) != (ssize_t)victim.size) DIE("cannot copy %s", path);
    return victim;
}

static inline void victim_put(const Victim *victim, const void *bytes, size_t size, size_t at) {
    if (pwrite(victim->descriptor, bytes, size, (off_t)at) != (ssize_t)size) DIE("pwrite");
}

#endif
