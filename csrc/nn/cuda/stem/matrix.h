/* The convolution that reads the images by matrix products on the tensor cores (matrix.cu), for float16 storage and the
 * shapes of the known recipes. Whoever calls asks first whether they fit. */
#ifndef CGXFFCV_NN_CUDA_STEM_MATRIX_H
#define CGXFFCV_NN_CUDA_STEM_MATRIX_H

#include "nn/cuda/stem/stem.h"

/* Forward and the bias gradient; the filter gradient. */
bool nn_cuda_stem_matrix_fits(const StemShape *shape);
bool nn_cuda_stem_matrix_fits_filters(const StemShape *shape);

Status nn_cuda_stem_matrix_forward(const StemShape *shape, const StemSource *source, StemFilters filters, void *output,
                                   DeviceStream *stream);

/* Blocks that add up at most, on a device of so many multiprocessors. */
#define STEM_MATRIX_BIAS_BLOCKS 3
#define STEM_MATRIX_FILTER_BLOCKS 2

/* partials[block][channel]; *blocks: how many there are, at most `most`. */
Status nn_cuda_stem_matrix_bias_gradient(const StemShape *shape, const StemSource *source, StemFilters filters,
                                         const void *output_gradient, unsigned most, float *partials, unsigned *blocks,
                                         DeviceStream *stream);

/* partials[block][channel / 8][tap][channel % 8] */
Status nn_cuda_stem_matrix_filter_gradient(const StemShape *shape, const StemSource *source,
                                           const void *output_gradient, unsigned most, float *partials,
                                           unsigned *blocks, DeviceStream *stream);

#endif
