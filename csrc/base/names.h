/* The names of an enum that counts from 0, for messages and for Python. */
#ifndef CGXFFCV_BASE_NAMES_H
#define CGXFFCV_BASE_NAMES_H

#include <stddef.h>

/* Returns the name of a number; NULL past the last one, so that the first NULL ends the list. */
typedef const char *(*NamesOf)(int number);

/* Defines such a function. */
#define NAMES_DEFINE(function, ...)                                                                                    \
    const char *function(int number) {                                                                                 \
        static const char *const names[] = {__VA_ARGS__};                                                              \
        return number >= 0 && (size_t)number < sizeof names / sizeof *names ? names[number] : NULL;                    \
    }

#endif
