/* The convolution that reads the images as matrix products on the tensor cores (matrix.cu), for float16 storage and the
 * shapes of the known recipes. Callers must first check that the shape fits. */
#ifndef CGXFFCV_NN_CUDA_STEM_MATRIX_H
#define CGXFFCV_NN_CUDA_STEM_MATRIX_H

#include "nn/cuda/stem/stem.h"

/* For forward and the bias gradient, and for the filter gradient. */
bool nn_cuda_stem_matrix_fits(const StemShape *shape);
bool nn_cuda_stem_matrix_fits_filters(const StemShape *shape);

Status nn_cuda_stem_matrix_forward(const StemShape *shape, const StemSource *source, StemFilters filters, void *output,
                                   DeviceStream *stream);

/* The largest number of blocks with partial sums, per multiprocessor. */
#define STEM_MATRIX_BIAS_BLOCKS 3
#define STEM_MATRIX_FILTER_BLOCKS 2

/* partials[block][channel]; *blocks: their number, at most `most`. */
Status nn_cuda_stem_matrix_bias_gradient(const StemShape *shape, const StemSource *source, StemFilters filters,
                                         const void *output_gradient, unsigned most, float *partials, unsigned *blocks,
                                         DeviceStream *stream);

/* partials[block][channel / 8][tap][channel % 8] */
Status nn_cuda_stem_matrix_filter_gradient(const StemShape *shape, const StemSource *source,
                                           const void *output_gradient, unsigned most, float *partials,
                                           unsigned *blocks, DeviceStream *stream);

#endif
