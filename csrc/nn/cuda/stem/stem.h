/* Kernels of the convolution that reads the images (stem.cu): float32 arithmetic, with bias and activation. */
#ifndef CGXFFCV_NN_CUDA_STEM_STEM_H
#define CGXFFCV_NN_CUDA_STEM_STEM_H

#include "nn/model.h"

/* Where element (image, y, x, c) of the images is, and how it becomes a float; a border of zeros surrounds them. */
typedef struct StemSource {
    const void *data; /* device, borrowed */
    PixelType type;
    int height, width, channels;
    int border;
    int row, column, channel; /* distances in elements; dense images */
    bool mirror;
    int shift_y, shift_x;                                             /* see NnImages */
    float mean[NN_MAX_IMAGE_CHANNELS], factor[NN_MAX_IMAGE_CHANNELS]; /* for PIXELS_U8 */
} StemSource;

typedef struct StemShape {
    int images;
    int out_height, out_width, out_channels; /* the last a multiple of 8 */
    int channels, kernel, stride;
    Activation activation;
    Precision precision; /* of the output and its gradient */
} StemShape;

/* Filters as in the parameters: (out, kernel, kernel, channels); a bias may be NULL. */
typedef struct StemFilters {
    const float *weights, *bias;
} StemFilters;

/* Writes the images with their border, float32: (images, height + 2 border, width + 2 border, channels). */
Status nn_cuda_stem_load(const StemSource *source, int images, float *to, DeviceStream *stream);

Status nn_cuda_stem_forward(const StemShape *shape, const StemSource *source, StemFilters filters, void *output,
                            DeviceStream *stream);

/* The number of floats that the gradients need for partial sums, for up to this many images. */
Status nn_cuda_stem_partial_elems(const StemShape *shape, size_t *out);

/* Overwrites `gradient` with `factor` times the gradient of the filters, or of the bias. The order of sums depends only
 * on the shape and the device. */
Status nn_cuda_stem_filter_gradient(const StemShape *shape, const StemSource *source, StemFilters filters,
                                    const void *output_gradient, float factor, float *partials, float *gradient,
                                    DeviceStream *stream);
Status nn_cuda_stem_bias_gradient(const StemShape *shape, const StemSource *source, StemFilters filters,
                                  const void *output_gradient, float factor, float *partials, float *gradient,
                                  DeviceStream *stream);

#endif
