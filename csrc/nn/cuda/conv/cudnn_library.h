/* cuDNN's functions, found in its library when the first convolution is made, so that this module loads without it. */
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

/* Opens it once in this process. NOT_BUILT, with the reason and the remedy, if it is not there or not of this build's
 * versions of cuDNN and CUDA. */
Status nn_cudnn_open(void);

#endif
