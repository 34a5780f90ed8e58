/* Lists and tuples that bindings return, item by item. The first two functions take over the reference to the item,
 * which is NULL if making it has failed; they return the list or tuple that they got, or release it and return NULL
 * with the exception set. So a loop runs while it is not NULL. */
#ifndef CGXFFCV_PYTHON_RESULTS_H
#define CGXFFCV_PYTHON_RESULTS_H

#include "python/module.h"

PyObject *py_results_append(PyObject *list, PyObject *item);

/* Item `index` of a tuple that has just been made. */
PyObject *py_results_put(PyObject *tuple, Py_ssize_t index, PyObject *item);

/* A shape as a new tuple; NULL with an exception set. */
PyObject *py_results_shape(const int64_t *sides, int count);

#endif
