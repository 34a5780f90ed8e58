/* 3 x 3 convolutions to maps with 64 channels, forward and for data gradients, by Hopper's warp group products (wgmma).
 * For 16-bit storage. */
#ifndef CGXFFCV_NN_CUDA_CONV_NARROW_H
#define CGXFFCV_NN_CUDA_CONV_NARROW_H

#include "nn/cuda/conv/conv.h"

/* Whether there is a kernel for this shape and pass that runs on the current device. */
bool nn_cuda_conv_narrow_fits(const CudaConvShape *shape);

/* Runs on the first `images` of the shape's: forward from the input, for data gradients from the output's gradient. */
Status nn_cuda_conv_narrow(const CudaConvShape *shape, int images, const void *from, const void *filters, void *to,
                           DeviceStream *stream);

#endif
