/* Parses from dicts what a loader is to do. */
#ifndef CGXFFCV_PYTHON_LOADER_SPEC_H
#define CGXFFCV_PYTHON_LOADER_SPEC_H

#include "loader/loader.h"
#include "python/module.h"

/* An output with what it points to. */
typedef struct LoaderColumn {
    LoaderOutput output;
    PyObject *keep; /* borrowed: the spec's */
    char field[BETON_NAME_BYTES];
    AugmentSpec image;
    AugmentOp labels[LOADER_MAX_LABEL_OPS];
    LoaderFunction function;
    LoaderCrop crop;
    LoaderStep steps[LOADER_MAX_STEPS];
} LoaderColumn;

typedef struct LoaderSpec {
    LoaderConfig config;   /* borrows from the rest; operations borrow from what `keep` holds */
    PyObject *keep;        /* owned; who uses the operations longer than the spec keeps a reference */
    LoaderOutput *outputs; /* owned, like the columns */
    LoaderColumn *columns;
} LoaderSpec;

/* `outputs`: a sequence of dicts, as cgxffcv/pipeline/compile.py makes them; `settings`: keyword arguments, as
 * cgxffcv/loader/settings.py gives them. Reader and samples keep their defaults. 0, or -1 with an exception set; the
 * spec is to be cleared in both cases. */
int py_loader_spec_parse(PyObject *outputs, PyObject *settings, LoaderSpec *out);
void py_loader_spec_clear(LoaderSpec *spec);

#endif
