/* The files that a loader reads as one. */
#ifndef CGXFFCV_PYTHON_LOADER_FILES_H
#define CGXFFCV_PYTHON_LOADER_FILES_H

#include "beton/reader.h"
#include "python/module.h"

/* One path, or a sequence of them, as a tuple of bytes; NULL with an exception set. */
PyObject *py_loader_paths(PyObject *given);

/* Opens the file, or the files as one; releases the GIL meanwhile. `paths` is such a tuple. */
Status py_loader_open(PyObject *paths, const BetonCustom *customs, size_t custom_count, BetonReader **out);

#endif
