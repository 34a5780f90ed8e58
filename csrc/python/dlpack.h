/* DLPack: capsules in which frameworks pass arrays to each other. */
#ifndef CGXFFCV_PYTHON_DLPACK_H
#define CGXFFCV_PYTHON_DLPACK_H

#include "python/tensor.h"

#define DLPACK_CPU 1
#define DLPACK_CUDA 2

/* What was taken out of a capsule, until it is given back. */
typedef struct DlpackLoan {
    void *managed; /* NULL: nothing */
    bool versioned;
} DlpackLoan;

/* Empties a capsule, either of version 1 or unversioned; -1 with an exception set. As an unversioned one does not say,
 * its array counts as writable. */
int py_dlpack_import(ModuleState *state, PyObject *capsule, PyTensor *out, DlpackLoan *loan);
void py_dlpack_release(DlpackLoan *loan);

/* A capsule of a tensor that lives as long as `owner`, to which it holds a reference; NULL with an exception set. */
PyObject *py_dlpack_export(PyObject *owner, const PyTensor *tensor, bool versioned);

#endif
