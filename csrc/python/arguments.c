#include "python/arguments.h"

#include <stdbool.h>
#include <string.h>

#include "python/results.h"

static PyObject *copy(PyObject *sequence, Py_ssize_t count) {
    PyObject *tuple = PyTuple_New(count);
    for (Py_ssize_t i = 0; tuple != NULL && i < count; i++) {
        tuple = py_results_put(tuple, i, PySequence_GetItem(sequence, i));
    }
    return tuple;
}

PyObject *py_arguments_tuple(PyObject *sequence, const char *argument, Py_ssize_t least, Py_ssize_t most) {
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

/* Appends all items; 0 or -1. */
static int take_all(PyObject *iterator, PyObject *list, const char *argument, Py_ssize_t most) {
    PyObject *item;
    int result = 0;
    for (Py_ssize_t count = 0; result == 0 && (item = PyIter_Next(iterator)) != NULL; count++) {
        result = count < most ? PyList_Append(list, item) : -1;
        Py_DECREF(item);
        if (count == most) PyErr_Format(PyExc_ValueError, "there must be at most %zd %s", most, argument);
    }
    return PyErr_Occurred() ? -1 : 0;
}

PyObject *py_arguments_collect(PyObject *iterable, const char *argument, Py_ssize_t most) {
    PyObject *iterator = PyObject_GetIter(iterable), *list = PyList_New(0), *tuple = NULL;
    if (iterator != NULL && list != NULL && take_all(iterator, list, argument, most) == 0) tuple = PyList_AsTuple(list);
    Py_XDECREF(iterator);
    Py_XDECREF(list);
    return tuple;
}

int py_arguments_unpack(PyObject *item, const char *format, ...) {
    if (!PyTuple_Check(item)) {
        const char *what = strchr(format, ';');
        return PY_REFUSE(PyExc_TypeError, "%s, not %.100s", what == NULL ? "a tuple is expected" : what + 1,
                         Py_TYPE(item)->tp_name);
    }
    va_list to;
    va_start(to, format);
    int parsed = PyArg_VaParse(item, format, to);
    va_end(to);
    return parsed ? 0 : -1;
}

int py_arguments_fill(PyObject *sequence, const char *argument, Py_ssize_t least, Py_ssize_t most,
                      int (*fill)(PyObject *item, void *out), void *out, size_t bytes) {
    PyObject *tuple = py_arguments_tuple(sequence, argument, least, most);
    if (tuple == NULL) return -1;
    Py_ssize_t count = PyTuple_GET_SIZE(tuple);
    int result = (int)count;
    for (Py_ssize_t i = 0; i < count && result >= 0; i++) {
        if (fill(PyTuple_GET_ITEM(tuple, i), (char *)out + (size_t)i * bytes) < 0) result = -1;
    }
    Py_DECREF(tuple);
    return result;
}

static int fill_float(PyObject *item, void *out) {
    double value = PyFloat_AsDouble(item);
    *(float *)out = (float)value;
    return value == -1.0 && PyErr_Occurred() ? -1 : 0;
}

int py_arguments_floats(PyObject *sequence, const char *argument, int count, float *out) {
    return py_arguments_fill(sequence, argument, count, count, fill_float, out, sizeof *out) < 0 ? -1 : 0;
}

/* Writes a limit the way people do. */
static void write_limit(bool negative, uint64_t size, char text[24]) {
    bool below = (size & (size + 1)) == 0; /* 2^n - 1 */
    int bits = 0;
    while (bits < 64 && size >> bits != 0) bits++;
    if (size <= UINT16_MAX || (!below && (size & (size - 1)) != 0)) {
        PyOS_snprintf(text, 24, "%s%llu", negative ? "-" : "", (unsigned long long)size);
    } else {
        PyOS_snprintf(text, 24, "%s2^%d%s", negative ? "-" : "", below ? bits : bits - 1, below ? "-1" : "");
    }
}

int py_arguments_whole(PyObject *object, const char *argument, int64_t least, uint64_t most, uint64_t *out) {
    int overflow = 0;
    if (!PyIndex_Check(object)) {
        return PY_REFUSE(PyExc_TypeError, "%s must be a whole number, not %.100s", argument, Py_TYPE(object)->tp_name);
    }
    PyObject *number = PyNumber_Index(object);
    if (number == NULL) return -1;
    long long low = PyLong_AsLongLongAndOverflow(number, &overflow);
    bool fits = overflow == 0 && low >= least && (low < 0 || (uint64_t)low <= most);
    *out = (uint64_t)low;
    if (overflow > 0) {
        *out = PyLong_AsUnsignedLongLong(number);
        fits = !PyErr_Occurred() && *out <= most;
        PyErr_Clear();
    }
    if (!fits) {
        char low_text[24], high_text[24];
        write_limit(least < 0, least < 0 ? 0 - (uint64_t)least : (uint64_t)least, low_text);
        write_limit(false, most, high_text);
        PyErr_Format(PyExc_ValueError, "%s must be in %s..%s, not %S", argument, low_text, high_text, number);
    }
    Py_DECREF(number);
    return fits ? 0 : -1;
}

int py_arguments_number(PyObject *object, void *number) {
    ArgumentsNumber *to = number;
    return py_arguments_whole(object, to->argument, 0, to->most, &to->value) == 0;
}
