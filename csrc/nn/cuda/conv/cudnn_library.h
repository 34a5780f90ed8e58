/* cuDNN's functions, looked up when the first convolution is created, so that this module loads without cuDNN. */
#ifndef CGXFFCV_NN_CUDA_CONV_CUDNN_LIBRARY_H
#define CGXFFCV_NN_CUDA_CONV_CUDNN_LIBRARY_H

#include <cudnn.h>

#include "base/library.h"

#define NN_CUDNN_CALLS(X)                                                                                              \
    X(cudnnGetVersion)                                                                                                 \
    X(cudnnGetCudartVersion)                                                                                           \
    X(cudnnGetErrorString)                                                                                             \
    X(cudnnGetLastErrorString)                                                                                         \
    X(cudnnCreate)                                                                                                     \
    X(cudnnSetStream)                                                                                                  \
    X(cudnnBackendCreateDescriptor)                                                                                    \
    X(cudnnBackendDestroyDescriptor)                                                                                   \
    X(cudnnBackendFinalize)                                                                                            \
    X(cudnnBackendGetAttribute)                                                                                        \
    X(cudnnBackendSetAttribute)                                                                                        \
    X(cudnnBackendExecute)

typedef struct NnCudnn {
#define NN_CUDNN_MEMBER(name) __typeof__(name) *name;
    NN_CUDNN_CALLS(NN_CUDNN_MEMBER)
#undef NN_CUDNN_MEMBER
} NnCudnn;

/* Filled by nn_cudnn_open. */
extern NnCudnn nn_cudnn;

/* Opens cuDNN once per process. NOT_BUILT, with the reason and the remedy, if it is missing or does not match this
 * build's versions of cuDNN and CUDA. */
Status nn_cudnn_open(void);

#endif
