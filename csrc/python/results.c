#include "python/results.h"

PyObject *py_results_append(PyObject *list, PyObject *item) {
    if (item == NULL || PyList_Append(list, item) < 0) Py_CLEAR(list);
    Py_XDECREF(item);
    return list;
}

PyObject *py_results_put(PyObject *tuple, Py_ssize_t index, PyObject *item) {
    if (item == NULL) {
        Py_CLEAR(tuple);
    } else {
        PyTuple_SET_ITEM(tuple, index, item);
    }
    return tuple;
}

PyObject *py_results_shape(const int64_t *sides, int count) {
    PyObject *shape = PyTuple_New(count);
    for (int i = 0; shape != NULL && i < count; i++) shape = py_results_put(shape, i, PyLong_FromLongLong(sides[i]));
    return shape;
}
