/* The Python form of outputs and image operations. */
#ifndef CGXFFCV_PYTHON_LOADER_SPEC_H
#define CGXFFCV_PYTHON_LOADER_SPEC_H

#include "loader/loader.h"
#include "python/module.h"

#define LOADER_SPEC_MAX_OUTPUTS 64

typedef struct LoaderSpec {
    size_t count;
    LoaderOutput outputs[LOADER_SPEC_MAX_OUTPUTS]; /* field names borrowed from the Python objects */
    AugmentSpec images[LOADER_SPEC_MAX_OUTPUTS];
    LoaderFunction functions[LOADER_SPEC_MAX_OUTPUTS];
} LoaderSpec;

/* From a sequence of (field, decoder, fast_jpeg, more), where `more` is None or, of images, (operations, normalisation,
 * type, layout), operations as operations.h has them and normalisation None or ((3 means), (3 stds), type); of a
 * function (address, dtype, shape). 0, or -1 with an exception set. */
int loader_spec_parse(PyObject *sequence, LoaderSpec *out);

#endif
