/* What the search for the fastest convolutions found, remembered on disk: lines of text by key, one file for each kind
 * of GPU and version of the library, in $CGXFFCV_CACHE, else $XDG_CACHE_HOME/cgxffcv, else ~/.cache/cgxffcv.
 *
 * The file is only a help: one that is missing, damaged or foreign counts as empty, and where none can be written the
 * memory of this process must do. It appears whole or not at all; of several processes that write at once the last one
 * wins, with what the others had written before. Knows neither the GPU nor its library. */
#ifndef CGXFFCV_NN_CUDA_CONV_PLANS_H
#define CGXFFCV_NN_CUDA_CONV_PLANS_H

#include <stdbool.h>

#include "base/status.h"

#define CONV_PLANS_KEY_BYTES 160   /* with the zero behind */
#define CONV_PLANS_VALUE_BYTES 480 /* likewise */
#define CONV_PLANS_MAX_ENTRIES 4096
#define CONV_PLANS_PATH_BYTES 1024
#define CONV_PLANS_NOTE_BYTES 1900

typedef struct ConvPlans ConvPlans;

typedef struct ConvPlansReport {
    int hits, misses; /* of nn_cuda_plans_find */
    int entries;
    char path[CONV_PLANS_PATH_BYTES]; /* "": no directory is known */
    char note[CONV_PLANS_NOTE_BYTES]; /* the first thing that was wrong with the file or its directory; "" if nothing
                                         was */
} ConvPlansReport;

/* Reads the file of this device and version of the library (names of any text). Fails only for lack of memory. */
Status nn_cuda_plans_open(const char *device, const char *library, ConvPlans **out);
/* Does nothing if NULL. */
void nn_cuda_plans_close(ConvPlans *plans);

/* Copies the value of the key and counts a hit; false counts a miss. `own`: it was stored by this process. Safe from
 * several threads, as are all below. */
bool nn_cuda_plans_find(ConvPlans *plans, const char *key, char value[CONV_PLANS_VALUE_BYTES], bool *own);

/* Remembers, in place of an older value, and writes the file. Key and value are printable ASCII, not empty; an
 * unwritable file is no failure. */
Status nn_cuda_plans_store(ConvPlans *plans, const char *key, const char *value);

void nn_cuda_plans_report(ConvPlans *plans, ConvPlansReport *out);

#endif
