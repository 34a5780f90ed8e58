/* The kernels of batch norm with its pool, activation and residual: forward.cu, backward.cu, close.cu.
 * All only enqueue work on the stream. Sums over pixels are float32 within a block, double across blocks, in an order
 * that depends only on the shapes. */
#ifndef CGXFFCV_NN_CUDA_NORM_NORM_H
#define CGXFFCV_NN_CUDA_NORM_NORM_H

#include <stdint.h>

#include "device/device.h"
#include "nn/model.h"

/* Per-channel values, one row of `channels` floats each: z = (x - mean) scale + shift; the gradient at x is scale dz +
 * tilt (x - mean) + base; `deviation` is 1 / sqrt(variance + eps). */
typedef enum NormTerm { NORM_MEAN, NORM_SCALE, NORM_SHIFT, NORM_TILT, NORM_BASE, NORM_DEVIATION, NORM_TERMS } NormTerm;

typedef struct NormShape {
    Precision precision;
    Activation activation;
    int images, height, width, channels; /* of the maps before the pool; fewer than 2^31 pixels */
    PoolPlace pool_place;
    int pool; /* window, 2 or 3 */
} NormShape;

/* Room, in floats, for the partial sums that the last block adds up. Must be zero before the first use. */
#define NORM_MOST_BLOCKS 264
static inline size_t nn_cuda_norm_partial_elems(int channels) {
    return (size_t)NORM_MOST_BLOCKS * (2 * (size_t)channels + 1) + 3 * (size_t)channels;
}

/* Computes terms and running statistics from partial statistics; scale NULL: all 1. */
typedef struct NormClose {
    float *partials;
    const float *scale, *shift;
    float *terms, *running_mean, *running_variance;
    double eps, keep;
} NormClose;

/* The final statistics of `input`, or of its pool, which goes to `pooled`, with the elements' indices in `index`. */
Status nn_cuda_norm_statistics(const NormShape *shape, const void *input, void *pooled, uint8_t *index, NormClose close,
                               DeviceStream *stream);

/* Computes the terms of several norms from their running statistics; reads no partial sums. */
#define NORM_RUNNING_MOST 16
typedef struct NormRunning {
    int count;
    int channels[NORM_RUNNING_MOST];
    NormClose norms[NORM_RUNNING_MOST];
} NormRunning;
Status nn_cuda_norm_running(const NormRunning *running, DeviceStream *stream);

/* Activation of the normalised input, with a residual added before or after it. */
typedef struct NormApply {
    const void *input, *residual; /* residual NULL: none */
    const float *terms;
    void *output;
    uint8_t *index; /* with a pool after the activation: NULL or receives its indices */
    ResidualPlace place;
} NormApply;
/* The input is the tensor that was normalised: a pool before the norm has been applied. */
Status nn_cuda_norm_apply(const NormShape *shape, NormApply apply, DeviceStream *stream);
/* The same fused with the pool, wherever it is; a residual is allowed only if the pool is before the norm. */
Status nn_cuda_norm_apply_pooled(const NormShape *shape, NormApply apply, DeviceStream *stream);

/* dz = gradient * activation'(z), and its sums, which become the tilt and base terms and, times the factor, the
 * parameters' gradients. */
typedef struct NormReduce {
    const void *saved;         /* the tensor that was normalised */
    void *gradient;            /* of the output */
    const void *skip;          /* NULL, or a second addend, which is added to the gradient in place */
    const void *residual;      /* NULL, or the tensor that was added before the activation */
    const uint8_t *index;      /* of a pool after the activation */
    void *activation_gradient; /* NULL, or receives dz; not with a pool after the activation */
    float *terms;
    float *partials;                       /* sums of dz and of dz (x - mean) */
    float *scale_gradient, *bias_gradient; /* scale_gradient NULL: not wanted */
    float factor;
} NormReduce;
Status nn_cuda_norm_reduce(const NormShape *shape, NormReduce reduce, DeviceStream *stream);

typedef struct NormBackward {
    const void *saved, *gradient; /* gradient of the output; if the shape's activation is NONE, dz itself */
    const uint8_t *index;         /* of the pool, wherever it is */
    const float *terms;
    void *input_gradient; /* every element is written, even those that no window covers */
} NormBackward;
Status nn_cuda_norm_backward(const NormShape *shape, NormBackward backward, DeviceStream *stream);

#endif
