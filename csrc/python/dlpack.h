/* DLPack: capsules in which frameworks hand arrays to each other. */
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

/* Empties a capsule, of version 1 or from before there were versions; -1 with an exception set. In one of the latter,
 * which does not tell, the array counts as writable. */
int py_dlpack_take(ModuleState *state, PyObject *capsule, PyTensor *out, DlpackLoan *loan);
void py_dlpack_return(DlpackLoan *loan);

/* A capsule of a tensor that lives as long as `owner`, of which it holds a reference; NULL with an exception set. */
PyObject *py_dlpack_give(PyObject *owner, const PyTensor *tensor, bool versioned);

#endif
