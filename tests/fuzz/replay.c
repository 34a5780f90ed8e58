/* A main for the fuzz targets where there is no libFuzzer: replay FOLDER MUTATIONS runs the target on every file of the
 * folder, and on so many seeded mutations of each. */
#include <dirent.h>

#include "fuzz.h"

#define MAX_BYTES (1 << 16)

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed) __attribute__((weak));

static uint32_t rounds; /* of LLVMFuzzerMutate: the state of the random numbers */

static uint32_t draw(uint32_t below, uint32_t which) {
    return philox_below(philox_at(11, rounds, which, PHILOX_TEST, 2).word[0], below);
}

static size_t change_bytes(uint8_t *data, size_t size, uint32_t at) {
    static const uint8_t extremes[] = {0, 1, 0x7F, 0x80, 0xFF, 0xD9};
    uint32_t length = 1 + draw(8, 2);
    for (uint32_t i = 0; i < length && at + i < size; i++) {
        uint32_t word = draw(1 << 16, 16 + i);
        data[at + i] = word % 3 == 0 ? extremes[word / 3 % sizeof extremes] : (uint8_t)(word >> 8);
    }
    return size;
}

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size) {
    rounds++;
    uint32_t at = size == 0 ? 0 : draw((uint32_t)size, 0), length = 1 + draw(64, 1);
    switch (draw(8, 3)) {
    case 0: /* cut */
        return at;
    case 1: /* take out */
        if (at + length > size) return size;
        memmove(data + at, data + at + length, size - at - length);
        return size - length;
    case 2: /* put in */
        if (size + length > max_size) return size;
        memmove(data + at + length, data + at, size - at);
        return change_bytes(data, size + length, at);
    case 3: /* one bit */
        if (size != 0) data[at] ^= (uint8_t)(1u << draw(8, 4));
        return size;
    default:
        return change_bytes(data, size, at);
    }
}

static void run_mutations(const Victim *victim, unsigned count) {
    uint8_t *data = malloc(MAX_BYTES);
    for (unsigned i = 0; i < count; i++) {
        size_t size = victim->size;
        memcpy(data, victim->bytes, size);
        for (unsigned step = 0; step <= i % 4; step++) {
            size = LLVMFuzzerCustomMutator != NULL ? LLVMFuzzerCustomMutator(data, size, MAX_BYTES, rounds)
                                                   : LLVMFuzzerMutate(data, size, MAX_BYTES);
        }
        uint8_t *exact = malloc(size + (size == 0));
        memcpy(exact, data, size);
        LLVMFuzzerTestOneInput(exact, size);
        free(exact);
    }
    free(data);
}

int main(int argc, char **argv) {
    if (argc != 3) DIE("usage: replay FOLDER MUTATIONS");
    unsigned long executions = 0;
    DIR *folder = opendir(argv[1]);
    if (folder == NULL) DIE("cannot open %s", argv[1]);
    for (struct dirent *entry; (entry = readdir(folder)) != NULL;) {
        char path[4096];
        if (entry->d_name[0] == '.') continue;
        snprintf(path, sizeof path, "%s/%s", argv[1], entry->d_name);
        Victim victim = victim_load(path);
        if (victim.size > MAX_BYTES) DIE("%s is too large", path);
        LLVMFuzzerTestOneInput(victim.bytes, victim.size);
        run_mutations(&victim, (unsigned)atoi(argv[2]));
        executions += 1 + (unsigned long)atoi(argv[2]);
        free(victim.bytes);
        close(victim.descriptor);
    }
    closedir(folder);
    printf("%lu executions\n", executions);
    return 0;
}
