/* An on-disk cache of the results of the search for the fastest convolutions: lines of text by key, one file per GPU
 * model and library version, in $CGXFFCV_CACHE, else $XDG_CACHE_HOME/cgxffcv, else ~/.cache/cgxffcv.
 *
 * The file is only an aid: a missing, damaged or foreign one counts as empty, and if none can be written, results are
 * kept in memory only. It appears whole or not at all; if several processes write at the same time, the last one wins,
 * including what the others had written before. Independent of the GPU and its library. */
#ifndef CGXFFCV_NN_CUDA_CONV_PLANS_H
#define CGXFFCV_NN_CUDA_CONV_PLANS_H

#include <stdbool.h>

#include "base/status.h"

#define CONV_PLANS_KEY_BYTES 160   /* with the terminating zero */
#define CONV_PLANS_VALUE_BYTES 480 /* likewise */
#define CONV_PLANS_MAX_ENTRIES 4096
#define CONV_PLANS_PATH_BYTES 1024
#define CONV_PLANS_NOTE_BYTES 1900

typedef struct ConvPlans ConvPlans;

typedef struct ConvPlansReport {
    int hits, misses; /* of nn_cuda_plans_find */
    int entries;
    char path[CONV_PLANS_PATH_BYTES]; /* "": no directory is known */
    char note[CONV_PLANS_NOTE_BYTES]; /* the first problem with the file or its directory; "" if there was
                                         none */
} ConvPlansReport;

/* Reads the file for this device and library version (any strings). Fails only if memory runs out. */
Status nn_cuda_plans_open(const char *device, const char *library, ConvPlans **out);
/* Does nothing if NULL. */
void nn_cuda_plans_close(ConvPlans *plans);

/* Copies the key's value and counts a hit, or returns false and counts a miss. `own`: this process stored it. This and
 * the functions below are thread-safe. */
bool nn_cuda_plans_find(ConvPlans *plans, const char *key, char value[CONV_PLANS_VALUE_BYTES], bool *own);

/* Stores a value, replacing an older one, and writes the file. Key and value are printable ASCII, not empty. Failing to
 * write the file is not an error. */
Status nn_cuda_plans_store(ConvPlans *plans, const char *key, const char *value);

void nn_cuda_plans_report(ConvPlans *plans, ConvPlansReport *out);

#endif
