/* Private to loader/: values of any length, one after another, where rows would all be as wide as the longest. */
#ifndef CGXFFCV_LOADER_VALUES_H
#define CGXFFCV_LOADER_VALUES_H

#include "loader/source.h"

/* See loader.h; the samples must be in the file. */
Status loader_values_place(const LoaderSource *source, const char *field, const uint64_t *ids, size_t count,
                           int64_t *offsets);
Status loader_values_read(const LoaderSource *source, const char *field, const uint64_t *ids, size_t count,
                          const int64_t *offsets, unsigned char *out);

#endif
