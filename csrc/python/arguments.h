/* Arguments that hold other objects. Converting one item may run Python code, which may change the list that it came
 * from: no file but arguments.c reads items of a sequence that is not a tuple (tests/lint/test_binding.py). */
#ifndef CGXFFCV_PYTHON_ARGUMENTS_H
#define CGXFFCV_PYTHON_ARGUMENTS_H

#include <stdint.h>

#include "python/module.h"

/* What the sequence holds now, `least` to `most` items, as a tuple: a new reference that keeps them alive. NULL with an
 * exception that names `argument`, a plural. */
PyObject *py_arguments_tuple(PyObject *sequence, const char *argument, Py_ssize_t least, Py_ssize_t most);

/* The same for any iterable, even an endless one. */
PyObject *py_arguments_collect(PyObject *iterable, const char *argument, Py_ssize_t most);

/* PyArg_ParseTuple for an item of such a tuple, which may be anything; the format ends with ";what it must be". The
 * results are borrowed from the item. 0, or -1 with an exception. */
int py_arguments_unpack(PyObject *item, const char *format, ...);

/* Fills `out`, an array of structs of `bytes` each, from the items of a sequence; their number, or -1 with an
 * exception. */
int py_arguments_fill(PyObject *sequence, const char *argument, Py_ssize_t least, Py_ssize_t most,
                      int (*fill)(PyObject *item, void *out), void *out, size_t bytes);

/* The same for exactly `count` numbers. */
int py_arguments_floats(PyObject *sequence, const char *argument, int count, float *out);

/* A whole number within a range, never wrapped or rounded; a negative one is returned as the bits of its int64_t. 0, or
 * -1 with a TypeError or ValueError that names `argument`. */
int py_arguments_whole(PyObject *object, const char *argument, int64_t least, uint64_t most, uint64_t *out);

/* An argument for the format "O&" with py_arguments_number: a whole number from 0 to `most`. */
typedef struct ArgumentsNumber {
    const char *argument;
    uint64_t most;
    uint64_t value; /* the result */
} ArgumentsNumber;
int py_arguments_number(PyObject *object, void *number);

#endif
