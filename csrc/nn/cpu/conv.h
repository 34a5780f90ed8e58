/* Convolutions between activations, channels-last, run by one thread on a few images at a time: dnnl.c over oneDNN, and
 * none.c, its twin in a build without it. */
#ifndef CGXFFCV_NN_CPU_CONV_H
#define CGXFFCV_NN_CPU_CONV_H

#include <stdbool.h>

#include "base/pool.h"
#include "nn/model.h"

typedef enum ConvDirection { CONV_FORWARD, CONV_DATA, CONV_FILTER } ConvDirection;

typedef struct ConvShape {
    int in_height, in_width, in_channels;
    int out_height, out_width, out_channels;
    int kernel, stride, padding;
} ConvShape;

/* One direction of one convolution, ready to run in each of `threads` threads at once. */
typedef struct Conv Conv;

/* Whether this build and this processor multiply in this precision; otherwise a failure that says what is missing. */
Status conv_supported(Precision precision);

/* `images`: the numbers of images in one call that are to run at full speed, descending; 1 always is. */
Status conv_create(const ConvShape *shape, ConvDirection direction, Precision precision, const int *images, int count,
                   int threads, Conv **out);
void conv_destroy(Conv *conv);

/* Scratch memory that a call needs, 64-byte aligned. */
size_t conv_scratch_bytes(const Conv *conv);

/* Forward and data: brings filters (out, kernel, kernel, in) into the form that conv_run reads; slice `part` of
 * `parts`, all of them before the next conv_run. */
Status conv_pack(Conv *conv, const float *filters, int part, int parts);

/* input -> output, or output gradient -> input gradient, of `images` dense images. */
Status conv_run(Conv *conv, int thread, int images, const void *from, void *to, void *scratch);

/* Elements of a partial filter gradient, which is in a form of its own. */
size_t conv_partial_elems(const Conv *conv);
/* The gradient of these images' filters, put into `partial`, or added to it; `sum` is room for one more partial. */
Status conv_run_filter(Conv *conv, int thread, int images, const void *input, const void *output_gradient, bool add,
                       float *partial, float *sum, void *scratch);
/* gradient (out, kernel, kernel, in) = the sum of `count` partials at distance `stride`; slice `part` of `parts`. */
void conv_unpack(const Conv *conv, const float *partials, int count, size_t stride, float *gradient, int part,
                 int parts);

#endif
