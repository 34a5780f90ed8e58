/* Kernels by storage type: that in which the CUDA backend stores activations, their gradients and packed filters. */
#ifndef CGXFFCV_NN_CUDA_STORAGE_CUH
#define CGXFFCV_NN_CUDA_STORAGE_CUH

#include "device/kernel.cuh"

extern "C" {
#include "nn/model.h"
}

/* Runs the statements (which may TRY) with T as the storage type of `precision`:
 * DISPATCH_STORAGE(precision, T, { TRY(LAUNCH(scale<T>, blocks, 256, 0, stream, (T *)values, count)); }) */
#define DISPATCH_STORAGE(precision, T, ...)                                                                            \
    do {                                                                                                               \
        switch (precision) {                                                                                           \
        case PRECISION_FLOAT32: {                                                                                      \
            typedef float T;                                                                                           \
            __VA_ARGS__                                                                                                \
        } break;                                                                                                       \
        case PRECISION_BFLOAT16: {                                                                                     \
            typedef __nv_bfloat16 T;                                                                                   \
            __VA_ARGS__                                                                                                \
        } break;                                                                                                       \
        case PRECISION_FLOAT16: {                                                                                      \
            typedef __half T;                                                                                          \
            __VA_ARGS__                                                                                                \
        } break;                                                                                                       \
        default:                                                                                                       \
            return error_fail(STATUS_ARGUMENT, "%d is not a precision of the CUDA backend", (int)(precision));         \
        }                                                                                                              \
    } while (0)

#endif
