/* Values of any length as one array, and where each begins. */
#include "python/loader_values.h"

#include "python/array.h"

static PyObject *read_values(ModuleState *state, const Loader *loader, const char *field, const ArrayView *ids) {
    const size_t count = (size_t)ids->elems;
    const int64_t places = (int64_t)count + 1;
    Status status;
    PyObject *result = NULL, *values = NULL, *offsets = py_array_new(ARRAY_I64, 1, &places);
    if (offsets == NULL) return NULL;
    int64_t *place = py_array_data(offsets);
    Py_BEGIN_ALLOW_THREADS status = loader_place(loader, field, ids->data, count, place);
    Py_END_ALLOW_THREADS;
    if (status == STATUS_OK) {
        values = py_array_new(ARRAY_U8, 1, &place[count]);
        unsigned char *bytes = values == NULL ? NULL : py_array_data(values);
        if (values == NULL) goto done;
        Py_BEGIN_ALLOW_THREADS status = loader_read(loader, field, ids->data, count, place, bytes);
        Py_END_ALLOW_THREADS;
    }
    result = status == STATUS_OK ? PyTuple_Pack(2, values, offsets) : py_errors_raise(state, status);
done:
    Py_XDECREF(values);
    Py_DECREF(offsets);
    return result;
}

PyObject *py_loader_read(ModuleState *state, const Loader *loader, const char *field, PyObject *ids) {
    ArrayView view;
    if (py_array_acquire(ids, "ids", 1u << ARRAY_I64 | 1u << ARRAY_U64, 1, false, &view) < 0) return NULL;
    PyObject *result = read_values(state, loader, field, &view);
    py_array_release(&view);
    return result;
}
