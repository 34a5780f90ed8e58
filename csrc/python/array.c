/* The one file that includes NumPy's headers. Arrays leave as NumPy views, and enter through the buffer protocol. */
#include "python/array.h"

#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#define NPY_TARGET_VERSION NPY_2_0_API_VERSION
#include <numpy/arrayobject.h>

#include <string.h>

static const struct {
    int number;
    size_t item_bytes;
    const char *name;
} types[ARRAY_TYPES] = {
    [ARRAY_BOOL] = {NPY_BOOL, 1, "bool"},          [ARRAY_I8] = {NPY_INT8, 1, "int8"},
    [ARRAY_U8] = {NPY_UINT8, 1, "uint8"},          [ARRAY_I16] = {NPY_INT16, 2, "int16"},
    [ARRAY_U16] = {NPY_UINT16, 2, "uint16"},       [ARRAY_I32] = {NPY_INT32, 4, "int32"},
    [ARRAY_U32] = {NPY_UINT32, 4, "uint32"},       [ARRAY_I64] = {NPY_INT64, 8, "int64"},
    [ARRAY_U64] = {NPY_UINT64, 8, "uint64"},       [ARRAY_F16] = {NPY_FLOAT16, 2, "float16"},
    [ARRAY_F32] = {NPY_FLOAT32, 4, "float32"},     [ARRAY_F64] = {NPY_FLOAT64, 8, "float64"},
    [ARRAY_C64] = {NPY_COMPLEX64, 8, "complex64"}, [ARRAY_C128] = {NPY_COMPLEX128, 16, "complex128"},
};

PyObject *py_array_new(ArrayType type, int ndim, const int64_t *shape) {
    npy_intp dims[ARRAY_MAX_DIMS];
    for (int i = 0; i < ndim; i++) dims[i] = (npy_intp)shape[i];
    return PyArray_EMPTY(ndim, dims, types[type].number, 0);
}

void *py_array_data(PyObject *array) { return PyArray_DATA((PyArrayObject *)array); }

PyObject *py_array_wrap(ArrayType type, int ndim, const int64_t *shape, const int64_t *strides, void *data,
                        PyObject *owner, bool writable) {
    npy_intp dims[ARRAY_MAX_DIMS], steps[ARRAY_MAX_DIMS];
    for (int i = 0; i < ndim; i++) dims[i] = (npy_intp)shape[i];
    for (int i = 0; strides != NULL && i < ndim; i++) steps[i] = (npy_intp)strides[i];
    PyObject *array = PyArray_New(&PyArray_Type, ndim, dims, types[type].number, strides == NULL ? NULL : steps, data,
                                  0, writable ? NPY_ARRAY_WRITEABLE : 0, NULL);
    if (array == NULL) return NULL;
    PyArray_UpdateFlags((PyArrayObject *)array, NPY_ARRAY_C_CONTIGUOUS | NPY_ARRAY_F_CONTIGUOUS | NPY_ARRAY_ALIGNED);
    Py_INCREF(owner);
    if (PyArray_SetBaseObject((PyArrayObject *)array, owner) < 0) Py_CLEAR(array);
    return array;
}

int py_array_type_of(const Py_buffer *buffer) {
    const char *format = buffer->format == NULL ? "B" : buffer->format;
    if (format[0] == '@' || format[0] == '=' || format[0] == '<') format++;
    if (strcmp(format, "Zf") == 0) return ARRAY_C64;
    if (strcmp(format, "Zd") == 0) return ARRAY_C128;
    if (format[0] == '\0' || format[1] != '\0') return -1;
    Py_ssize_t size = buffer->itemsize;
    if (format[0] == '?') return ARRAY_BOOL;
    if (format[0] == 'e') return ARRAY_F16;
    if (format[0] == 'f') return ARRAY_F32;
    if (format[0] == 'd') return ARRAY_F64;
    if (strchr("bhilqn", format[0]) != NULL) {
        return size == 1 ? ARRAY_I8 : size == 2 ? ARRAY_I16 : size == 4 ? ARRAY_I32 : ARRAY_I64;
    }
    if (strchr("BHILQNc", format[0]) != NULL) {
        return size == 1 ? ARRAY_U8 : size == 2 ? ARRAY_U16 : size == 4 ? ARRAY_U32 : ARRAY_U64;
    }
    return -1;
}

static int refuse_type(const char *argument, const Py_buffer *buffer, unsigned mask) {
    char wanted[160] = "";
    for (int i = 0; i < ARRAY_TYPES; i++) {
        if ((mask & (1u << i)) == 0) continue;
        size_t used = strlen(wanted);
        PyOS_snprintf(wanted + used, sizeof wanted - used, "%s%s", used == 0 ? "" : " or ", types[i].name);
    }
    int found = py_array_type_of(buffer);
    return PY_REFUSE(PyExc_TypeError, "%s must be an array of %s, not of %s", argument, wanted,
                     found < 0 ? (buffer->format == NULL ? "bytes" : buffer->format) : types[found].name);
}

static int check_view(const char *argument, unsigned mask, int ndim, ArrayView *view) {
    int type = py_array_type_of(&view->buffer);
    unsigned wanted = mask & ~ARRAY_UNALIGNED;
    if (type < 0 || (wanted != 0 && (wanted & (1u << type)) == 0)) return refuse_type(argument, &view->buffer, wanted);
    if (view->buffer.ndim > ARRAY_MAX_DIMS || (ndim >= 0 && view->buffer.ndim != ndim)) {
        return PY_REFUSE(PyExc_ValueError, "%s must have %d dimensions, not %d", argument, ndim, view->buffer.ndim);
    }
    size_t alignment = types[type].item_bytes > sizeof(double) ? sizeof(double) : types[type].item_bytes;
    if ((mask & ARRAY_UNALIGNED) == 0 && (uintptr_t)view->buffer.buf % alignment != 0) {
        return PY_REFUSE(PyExc_ValueError,
                         "%s is not aligned in memory: its address must be a multiple of %zu (copy() makes "
                         "an array that is)",
                         argument, alignment);
    }
    view->data = view->buffer.buf;
    view->type = (ArrayType)type;
    view->ndim = view->buffer.ndim;
    view->item_bytes = view->buffer.itemsize;
    view->elems = 1;
    for (int i = 0; i < view->ndim; i++) {
        view->shape[i] = view->buffer.shape[i];
        view->elems *= view->shape[i];
    }
    return 0;
}

int py_array_acquire(PyObject *object, const char *argument, unsigned mask, int ndim, bool writable, ArrayView *out) {
    int flags = PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | (writable ? PyBUF_WRITABLE : 0);
    if (PyObject_GetBuffer(object, &out->buffer, flags) < 0) {
        if (!PyErr_ExceptionMatches(PyExc_TypeError) && !PyErr_ExceptionMatches(PyExc_ValueError) &&
            !PyErr_ExceptionMatches(PyExc_BufferError)) {
            return -1;
        }
        return PY_REFUSE(PyExc_TypeError,
                         "%s must be a C-contiguous%s array (numpy.ascontiguousarray makes one), not %.100s", argument,
                         writable ? ", writable" : "", Py_TYPE(object)->tp_name);
    }
    if (check_view(argument, mask, ndim, out) == 0) return 0;
    PyBuffer_Release(&out->buffer);
    return -1;
}

void py_array_release(ArrayView *view) { PyBuffer_Release(&view->buffer); }

int py_array_add(PyObject *Py_UNUSED(module)) { return PyArray_ImportNumPyAPI(); }
