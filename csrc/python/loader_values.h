/* Values of any length of a loader's file. */
#ifndef CGXFFCV_PYTHON_LOADER_VALUES_H
#define CGXFFCV_PYTHON_LOADER_VALUES_H

#include "loader/loader.h"
#include "python/module.h"

/* (bytes, offsets) of these samples, an array of numbers; gives up the GIL meanwhile. NULL with an exception set. */
PyObject *py_loader_read(ModuleState *state, const Loader *loader, const char *field, PyObject *ids);

#endif
