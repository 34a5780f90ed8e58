/* Kernels of the head (head.cu): global pooling, linear layer, softmax cross entropy. */
#ifndef CGXFFCV_NN_CUDA_HEAD_HEAD_H
#define CGXFFCV_NN_CUDA_HEAD_HEAD_H

#include "nn/model.h"

typedef struct HeadShape {
    int images, pixels, channels, classes; /* channels: a multiple of 8 */
    HeadPool pool;
    float scale;
    Precision precision; /* of the input and its gradient */
} HeadShape;

/* What is kept per image until the closing pass. */
typedef struct HeadRecord {
    double loss;
    int64_t correct;
} HeadRecord;

/* Everything in device memory, borrowed. */
typedef struct HeadBuffers {
    const void *input;
    const float *weights; /* (classes, channels) */
    const float *bias;    /* (classes); NULL: none */
    const int64_t *labels;
    void *input_gradient; /* of the summed loss; overwritten; NULL: not wanted */
    float *losses;        /* of the images; NULL: not wanted */
    float *pooled;        /* (images, channels); like the next two, for the closing pass */
    float *gradients;     /* of the summed loss with respect to the logits: (images, classes) */
    HeadRecord *records;
} HeadBuffers;

Status nn_cuda_head_evaluate(const HeadShape *shape, const void *input, const float *weights, const float *bias,
                             float *logits, DeviceStream *stream);
Status nn_cuda_head_train(const HeadShape *shape, const HeadBuffers *buffers, double label_smoothing,
                          DeviceStream *stream);

/* Overwrites the gradients of the weights and of the bias (NULL: none) with `factor` times those of the summed loss;
 * adds to the totals. */
Status nn_cuda_head_close(const HeadShape *shape, const HeadBuffers *buffers, float factor, float *weight_gradient,
                          float *bias_gradient, NnStepTotals *totals, DeviceStream *stream);

/* See nn_plan_store_totals. */
Status nn_cuda_head_store_totals(NnStepTotals *totals, NnStepTotals *to, const int32_t *index, float *first_gradient,
                                 DeviceStream *stream);

#endif
