/* For the fuzz targets: LLVMFuzzerTestOneInput is the one entry of each, for libFuzzer (clang) and for replay.c (any
 * compiler). A file in memory whose mapping ends, for AddressSanitizer, with its last byte. */
#ifndef CGXFFCV_TESTS_FUZZ_FUZZ_H
#define CGXFFCV_TESTS_FUZZ_FUZZ_H

#include <stdint.h>

#include "harness.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size); /* libFuzzer's, or replay.c's */

/* Ends the program, which is how a target says that something is wrong; libFuzzer then keeps the input. */
#define WRONG(...)                                                                                                     \
    do {                                                                                                               \
        fprintf(stderr, __VA_ARGS__);                                                                                  \
        fprintf(stderr, "\n");                                                                                         \
        abort();                                                                                                       \
    } while (0)

/* One of the codes that bad input may end in; anything else is a fault of ours. */
static inline void expect_refusal(Status status) {
    if (status == STATUS_FORMAT) return;
    WRONG("status %d where STATUS_FORMAT was expected: %s", (int)status, error_record()->message);
}

/* Reads every byte, so that the sanitizer sees it. */
static inline void touch(const void *bytes, uint64_t size) {
    unsigned char all = 0;
    for (uint64_t i = 0; i < size; i++) all ^= ((const unsigned char *)bytes)[i];
    __asm__ volatile("" : : "r"(all));
}

#endif
