/* The CUDA array interface, by which frameworks take arrays that lie on a GPU. */
#ifndef CGXFFCV_PYTHON_CUDA_ARRAY_H
#define CGXFFCV_PYTHON_CUDA_ARRAY_H

#include "python/tensor.h"

/* Why a tensor cannot be described, or NULL. */
const char *py_cuda_array_refusal(const PyTensor *tensor);

/* What version 3 says of a tensor that py_cuda_array_refusal finds nothing against. `ordered`: the default stream has
 * waited for what fills it; else there is nothing to wait for. NULL with an exception set. */
PyObject *py_cuda_array_describe(const PyTensor *tensor, bool ordered);

#endif
