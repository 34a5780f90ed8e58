/* Settings from the environment. A variable that is unset or empty leaves *value at the caller's default; one that is
 * malformed or out of range gives STATUS_ARGUMENT, with a message that names it and the values it may have. */
#ifndef CGXFFCV_BASE_ENVIRONMENT_H
#define CGXFFCV_BASE_ENVIRONMENT_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

/* A whole number of `unit` ("KiB") from `least` to `most`. */
Status environment_whole(const char *name, const char *unit, int64_t least, int64_t most, int64_t *value);

/* Seconds above 0, up to `most`, with a decimal point whatever the locale. */
Status environment_seconds(const char *name, double most, double *value);

/* 0 or 1. */
Status environment_switch(const char *name, bool *value);

/* Some of `words` (at most 32, then NULL), separated by commas: *value gets bit i for words[i]. */
Status environment_words(const char *name, const char *const *words, uint32_t *value);

#endif
