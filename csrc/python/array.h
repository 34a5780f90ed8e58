/* NumPy arrays for the binding files: only array.c includes NumPy's headers. */
#ifndef CGXFFCV_PYTHON_ARRAY_H
#define CGXFFCV_PYTHON_ARRAY_H

#include <stdbool.h>

#include "python/module.h"

/* bfloat16 has no NumPy type: it travels as uint16. */
typedef enum ArrayType {
    ARRAY_BOOL,
    ARRAY_I8,
    ARRAY_U8,
    ARRAY_I16,
    ARRAY_U16,
    ARRAY_I32,
    ARRAY_U32,
    ARRAY_I64,
    ARRAY_U64,
    ARRAY_F16,
    ARRAY_F32,
    ARRAY_F64,
    ARRAY_C64,
    ARRAY_C128,
    ARRAY_TYPES
} ArrayType;

#define ARRAY_UNALIGNED (1u << 31) /* in a mask of types: unaligned addresses are allowed, too */
#define ARRAY_MAX_DIMS 64          /* as in NumPy: a batch has one more than a field */

/* A new C-ordered array with unspecified contents; NULL with an exception set on failure. */
PyObject *py_array_new(ArrayType type, int ndim, const int64_t *shape);

/* The first element of an array that py_array_new or py_array_wrap made. */
void *py_array_data(PyObject *array);

/* A view of memory that lives as long as `owner`, to which the array takes a new reference. `strides` in bytes, or
 * NULL for C order. NULL with an exception set on failure. */
PyObject *py_array_wrap(ArrayType type, int ndim, const int64_t *shape, const int64_t *strides, void *data,
                        PyObject *owner, bool writable);

/* The type that a buffer's format and item size mean, or -1. */
int py_array_type_of(const Py_buffer *buffer);

/* An argument received through the buffer protocol. */
typedef struct ArrayView {
    Py_buffer buffer; /* owned until py_array_release */
    void *data;
    ArrayType type;
    int ndim;
    int64_t shape[ARRAY_MAX_DIMS];
    int64_t elems;
    int64_t item_bytes;
} ArrayView;

/* Takes a C-contiguous array of one of the types in the mask (bits 1 << ArrayType; 0 takes any) and of `ndim`
 * dimensions (-1 takes any), aligned unless the mask says ARRAY_UNALIGNED. On failure returns -1 with an exception that
 * names `argument`; nothing to release. */
int py_array_acquire(PyObject *object, const char *argument, unsigned types, int ndim, bool writable, ArrayView *out);
void py_array_release(ArrayView *view);

/* array.c: loads NumPy's C interface; 0 or -1. */
int py_array_add(PyObject *module);

#endif
