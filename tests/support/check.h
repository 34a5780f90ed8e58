/* The smallest harness: CHECK reports and counts, main returns check_result(). */
#ifndef CGXFFCV_TESTS_CHECK_H
#define CGXFFCV_TESTS_CHECK_H

#include <stdio.h>

#include "base/status.h"

static int check_failures, check_count;

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        check_count++;                                                                                                 \
        if (!(condition)) {                                                                                            \
            check_failures++;                                                                                          \
            fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #condition);                                    \
        }                                                                                                              \
    } while (0)

#define CHECK_OK(call)                                                                                                 \
    do {                                                                                                               \
        Status check_status_ = (call);                                                                                 \
        check_count++;                                                                                                 \
        if (check_status_ != STATUS_OK) {                                                                              \
            check_failures++;                                                                                          \
            fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #call, error_record()->message);                    \
        }                                                                                                              \
    } while (0)

static inline int check_result(void) {
    printf("%d checks, %d failures\n", check_count, check_failures);
    return check_count == 0 || check_failures != 0;
}

#endif
