/* The CUDA array interface, through which frameworks take arrays on a GPU. */
#ifndef CGXFFCV_PYTHON_CUDA_ARRAY_H
#define CGXFFCV_PYTHON_CUDA_ARRAY_H

#include "python/tensor.h"

/* Why a tensor cannot be described, or NULL. */
const char *py_cuda_array_refusal(const PyTensor *tensor);

/* The version 3 description of a tensor that py_cuda_array_refusal does not refuse. `ordered`: the default stream has
 * waited for what fills it; otherwise there is nothing to wait for. NULL with an exception set. */
PyObject *py_cuda_array_describe(const PyTensor *tensor, bool ordered);

#endif
