/* Convolutions between activations on the GPU, through cuDNN's graph API (cudnn.c), channels-last: the fastest of its
 * plans for each shape and pass, found once by timing and cached on disk (plans.c). */
#ifndef CGXFFCV_NN_CUDA_CONV_CONV_H
#define CGXFFCV_NN_CUDA_CONV_CONV_H

#include "device/device.h"
#include "nn/model.h"

typedef enum CudaConvPass { CUDA_CONV_FORWARD, CUDA_CONV_DATA, CUDA_CONV_FILTER } CudaConvPass;

/* Input (images, in_height, in_width, in_channels), filters (out_channels, kernel, kernel, in_channels), output
 * (images, out_height, out_width, out_channels), all in `precision`; sums in float32. */
typedef struct CudaConvShape {
    int images;
    int in_height, in_width, in_channels;
    int out_height, out_width, out_channels;
    int kernel, stride, padding;
    CudaConvPass pass;
    Precision precision; /* float32: no TensorFloat-32 */
    bool deterministic;
} CudaConvShape;

typedef struct CudaConvs CudaConvs; /* the library's handle and the cached plans; one per context */
typedef struct CudaConv CudaConv;   /* one plan, ready to run */

Status nn_cuda_convs_create(DeviceStream *stream, CudaConvs **out);
void nn_cuda_convs_destroy(CudaConvs *convs); /* call after destroying its convolutions; does nothing if NULL */
void nn_cuda_convs_describe(const CudaConvs *convs, NnPlanLibrary *out);

/* Chooses the plan: from the cache, else by timing the candidates (which waits for the stream). */
Status nn_cuda_conv_create(CudaConvs *convs, const CudaConvShape *shape, CudaConv **out);
void nn_cuda_conv_destroy(CudaConv *conv);

/* The memory that a run needs in addition to its operands. */
size_t nn_cuda_conv_workspace_bytes(const CudaConv *conv);

/* Describes the chosen plan: "engine 38 knobs ...", its time. Strings are valid until nn_cuda_conv_destroy. */
void nn_cuda_conv_describe(const CudaConv *conv, NnAlgorithm *out);

/* Forward: a = input, b = filters, to = output. Data: a = output gradient, b = filters, to = input gradient. Filter:
 * a = input, b = output gradient, to = filter gradient. Overwrites all of `to`. Only enqueues work on the stream. */
Status nn_cuda_conv_run(CudaConv *conv, const void *a, const void *b, void *to, void *workspace);

#endif
