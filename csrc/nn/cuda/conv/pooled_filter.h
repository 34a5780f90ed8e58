/* The filter gradient of a convolution directly before a norm with its pool: computed from the gradient of the norm's
 * output, without the gradient between the two, three quarters of which are zeros. */
#ifndef CGXFFCV_NN_CUDA_CONV_POOLED_FILTER_H
#define CGXFFCV_NN_CUDA_CONV_POOLED_FILTER_H

#include "nn/cuda/norm/norm.h"

/* The shape's maps are the convolution's output, of the same size as its input: 3 x 3, stride 1, padding 1. */
typedef struct PooledFilter {
    const void *input;            /* (images, height, width, in_channels) */
    const void *saved, *gradient; /* as in NormBackward, pooled */
    const uint8_t *index;
    const float *terms;
    float *partials;        /* of the blocks */
    float factor;           /* multiplies the result */
    float *filter_gradient; /* (channels, 3, 3, in_channels) */
} PooledFilter;

/* Whether there is a kernel for this on the current GPU; how many floats it needs for partial sums. */
bool nn_cuda_pooled_filter_fits(const NormShape *shape, int in_channels);
size_t nn_cuda_pooled_filter_partial_elems(const NormShape *shape, int in_channels);

/* Computes the final sums in float32, in an order that depends only on the shapes. Only enqueues work on the stream. */
Status nn_cuda_pooled_filter(const NormShape *shape, int in_channels, PooledFilter args, DeviceStream *stream);

#endif
