/* A 3 x 3 convolution, the 2 x 2 pool after it, and its norm's use of the result, in one kernel: the convolution's
 * output, four times as large as the pool's, never goes through device memory. For 16-bit storage. */
#ifndef CGXFFCV_NN_CUDA_CONV_POOL_H
#define CGXFFCV_NN_CUDA_CONV_POOL_H

#include <stdint.h>

#include "device/device.h"
#include "nn/cuda/norm/norm.h"

typedef struct ConvPoolShape {
    Precision precision;
    int images, height, width; /* of the input; the convolution's output has the same */
    int in_channels, out_channels;
} ConvPoolShape;

/* Whether there is a kernel for this shape that runs on the current device. Stride and padding are 1. */
bool nn_cuda_conv_pool_fits(const ConvPoolShape *shape);

typedef struct ConvPool {
    const void *input, *filters;
    /* Statistics: the largest value of each window, its index, and the same as from nn_cuda_norm_statistics. */
    void *pooled;
    uint8_t *index;
    NormClose close;
    /* Output: the largest value of each window, normalised by the terms (see norm.h) and activated. */
    const float *terms;
    void *output;
    Activation activation;
} ConvPool;
Status nn_cuda_conv_pool_statistics(const ConvPoolShape *shape, ConvPool args, DeviceStream *stream);
Status nn_cuda_conv_pool_output(const ConvPoolShape *shape, ConvPool args, DeviceStream *stream);

#endif
