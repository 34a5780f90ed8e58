/* Lists and tuples that bindings return, item by item. Both functions take over the reference to the item, which is
 * NULL if making it has failed; they return what they got, or release it and return NULL with the exception set. So a
 * loop runs while it is not NULL. */
#ifndef CGXFFCV_PYTHON_RESULTS_H
#define CGXFFCV_PYTHON_RESULTS_H

#include "python/module.h"

PyObject *py_results_append(PyObject *list, PyObject *item);

/* Item `index` of a tuple that has just been made. */
PyObject *py_results_put(PyObject *tuple, Py_ssize_t index, PyObject *item);

/* A shape as a tuple. */
PyObject *py_results_shape(const int64_t *sides, int count);

#endif
