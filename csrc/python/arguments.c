#include "python/arguments.h"

#include <string.h>

static PyObject *copy(PyObject *sequence, Py_ssize_t count) {
    PyObject *tuple = PyTuple_New(count);
    for (Py_ssize_t i = 0; tuple != NULL && i < count; i++) {
        PyObject *item = PySequence_GetItem(sequence, i);
        if (item == NULL) {
            Py_CLEAR(tuple);
        } else {
            PyTuple_SET_ITEM(tuple, i, item);
        }
    }
    return tuple;
}

PyObject *arguments_tuple(PyObject *sequence, const char *argument, Py_ssize_t least, Py_ssize_t most) {
    if (!PySequence_Check(sequence)) {
        return PyErr_Format(PyExc_TypeError, "%s must be a sequence, not %.100s", argument, Py_TYPE(sequence)->tp_name);
    }
    Py_ssize_t count = PySequence_Size(sequence);
    if (count < 0) return NULL;
    if (count < least || count > most) {
        return least == most ? PyErr_Format(PyExc_ValueError, "%s: %zd expected, not %zd", argument, most, count)
                             : PyErr_Format(PyExc_ValueError, "there must be %zd to %zd %s, not %zd", least, most,
                                            argument, count);
    }
    return PyTuple_CheckExact(sequence) ? Py_NewRef(sequence) : copy(sequence, count);
}

int arguments_unpack(PyObject *item, const char *format, ...) {
    if (!PyTuple_Check(item)) {
        const char *what = strchr(format, ';');
        PyErr_Format(PyExc_TypeError, "%s, not %.100s", what == NULL ? "a tuple is expected" : what + 1,
                     Py_TYPE(item)->tp_name);
        return -1;
    }
    va_list to;
    va_start(to, format);
    int parsed = PyArg_VaParse(item, format, to);
    va_end(to);
    return parsed ? 0 : -1;
}
