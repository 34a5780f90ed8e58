/* 3 x 3 convolutions from maps to maps with 64 channels, forward and for data gradients, by Hopper's products of warp
 * groups. For 16-bit storage. */
#ifndef CGXFFCV_NN_CUDA_CONV_NARROW_H
#define CGXFFCV_NN_CUDA_CONV_NARROW_H

#include "nn/cuda/conv/conv.h"

/* Whether there is a kernel for this shape and pass that runs on the current device. */
bool nn_cuda_conv_narrow_fits(const CudaConvShape *shape);

/* The first `images` of the shape's: forward from the input, for data gradients from the output's gradient. */
Status nn_cuda_conv_narrow(const CudaConvShape *shape, int images, const void *from, const void *filters, void *to,
                           DeviceStream *stream);

#endif
