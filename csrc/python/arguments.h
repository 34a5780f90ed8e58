/* Arguments that hold other objects. Converting one item may run Python code, which may change the list that it came
 * from: no file but arguments.c looks into a sequence that is not a tuple (tests/lint/test_binding.py). */
#ifndef CGXFFCV_PYTHON_ARGUMENTS_H
#define CGXFFCV_PYTHON_ARGUMENTS_H

#include "python/module.h"

/* What the sequence holds now, `least` to `most` items, as a tuple: a new reference that keeps them alive. NULL with an
 * exception that names `argument`, a plural. */
PyObject *arguments_tuple(PyObject *sequence, const char *argument, Py_ssize_t least, Py_ssize_t most);

/* The same of anything that can be gone through, which may have no end. */
PyObject *arguments_collect(PyObject *iterable, const char *argument, Py_ssize_t most);

/* PyArg_ParseTuple for an item of such a tuple, which may be anything; the format ends with ";what it must be". What
 * comes out is borrowed from the item. 0, or -1 with an exception. */
int arguments_unpack(PyObject *item, const char *format, ...);

#endif
