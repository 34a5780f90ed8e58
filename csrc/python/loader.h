/* A _cgxffcv.Loader, used by another type. */
#ifndef CGXFFCV_PYTHON_LOADER_H
#define CGXFFCV_PYTHON_LOADER_H

#include "loader/loader.h"
#include "python/module.h"

/* The C loader of an argument that must be a _cgxffcv.Loader, for one call that may release the GIL, until
 * py_loader_object_release; NULL with an exception set. Borrowed. */
Loader *py_loader_object_acquire(ModuleState *state, PyObject *object);
void py_loader_object_release(PyObject *object);

#endif
