#include "python/loader_files.h"

#include "base/memory.h"
#include "python/arguments.h"
#include "python/results.h"

Status py_loader_open(PyObject *paths, const BetonCustom *customs, size_t custom_count, BetonReader **out) {
    const size_t count = (size_t)PyTuple_GET_SIZE(paths);
    const char **texts = NULL;
    Status status;
    TRY(memory_alloc(count, sizeof *texts, &texts));
    for (size_t i = 0; i < count; i++) texts[i] = PyBytes_AS_STRING(PyTuple_GET_ITEM(paths, (Py_ssize_t)i));
    Py_BEGIN_ALLOW_THREADS status = beton_reader_open_set(texts, count, customs, custom_count, out);
    Py_END_ALLOW_THREADS memory_free(texts);
    return status;
}

PyObject *py_loader_paths(PyObject *given) {
    const bool many = PyTuple_Check(given) || PyList_Check(given);
    PyObject *list = many ? py_arguments_tuple(given, "paths", 1, PY_SSIZE_T_MAX) : PyTuple_Pack(1, given);
    PyObject *paths = list == NULL ? NULL : PyTuple_New(PyTuple_GET_SIZE(list));
    for (Py_ssize_t i = 0; paths != NULL && i < PyTuple_GET_SIZE(list); i++) {
        PyObject *path = NULL;
        paths = py_results_put(paths, i, PyUnicode_FSConverter(PyTuple_GET_ITEM(list, i), &path) ? path : NULL);
    }
    Py_XDECREF(list);
    return paths;
}
