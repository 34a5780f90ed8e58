/* Values of any length from a loader's file. */
#ifndef CGXFFCV_PYTHON_LOADER_VALUES_H
#define CGXFFCV_PYTHON_LOADER_VALUES_H

#include "loader/loader.h"
#include "python/module.h"

/* (bytes, offsets) of the samples `ids`, an array of numbers; releases the GIL meanwhile. NULL with an exception
 * set. */
PyObject *py_loader_read(ModuleState *state, const Loader *loader, const char *field, PyObject *ids);

#endif
