/* Convolutions between activations, channels-last, run by one thread on a few images at a time. There are two ways to
 * compute one: directly, by oneDNN (dnnl.c, or none.c in a build without it), and by minimal filtering with our own
 * loops (winograd.c). */
#ifndef CGXFFCV_NN_CPU_CONV_H
#define CGXFFCV_NN_CPU_CONV_H

#include <stdbool.h>

#include "nn/cpu/kernels.h"

typedef enum ConvDirection { CONV_FORWARD, CONV_DATA, CONV_FILTER } ConvDirection;

typedef struct ConvShape {
    int in_height, in_width, in_channels;
    int out_height, out_width, out_channels;
    int kernel, stride, padding;
} ConvShape;

#define CONV_MAX_SIZES 8

/* Requirements of a convolution. */
typedef struct ConvNeed {
    ConvShape shape;
    ConvDirection direction;
    Precision precision;
    Convolution method;
    /* The numbers of images per call that should run at full speed, descending; other numbers work, too. */
    int sizes[CONV_MAX_SIZES];
    int size_count;
    int threads; /* the number of threads that may run it at the same time */
} ConvNeed;

/* Memory that the thread will access soon: a convolution that is compute-bound prefetches it into the cache. */
#define CONV_MAX_AHEAD 8
typedef struct ConvAhead {
    const char *from[CONV_MAX_AHEAD]; /* borrowed during the call */
    size_t bytes[CONV_MAX_AHEAD];
    int count;
} ConvAhead;

/* The images of one call, and the calling thread's memory. */
typedef struct ConvCall {
    int thread, images;
    void *scratch; /* scratch_bytes, 64-byte aligned */
    float *sum;    /* filter gradient: sum_elems, kept from the call that begins a sum to the one that ends it */
    ConvAhead ahead;
    bool begins, ends; /* filter gradient: the first and the last call of one partial sum */
} ConvCall;

typedef struct Conv Conv;

typedef struct ConvTable {
    void (*destroy)(Conv *conv);
    /* Forward and data: converts slice `part` of `parts` of filters (out, kernel, kernel, in) to the form that `run`
     * reads. All slices must be packed before the next `run`. */
    void (*pack)(Conv *conv, const float *filters, int part, int parts);
    /* input -> output, or output gradient -> input gradient. */
    Status (*run)(Conv *conv, const ConvCall *call, const void *from, void *to);
    /* Adds up the filter gradient of the images of several calls; `partial`, whose layout is internal, is complete
     * after the call that ends the sum. */
    Status (*run_filter)(Conv *conv, const ConvCall *call, const void *input, const void *output_gradient,
                         float *partial);
    /* gradient (out, kernel, kernel, in) = sum of `count` partials, partial_elems apart; only slice `part` of `parts`.
     */
    void (*unpack)(const Conv *conv, const float *partials, int count, float *gradient, int part, int parts);
} ConvTable;

/* One direction of one convolution; the first member of each implementation's struct. */
struct Conv {
    const ConvTable *table;
    char name[48];                   /* how it computes */
    size_t scratch_bytes;            /* needed by a call */
    size_t partial_elems, sum_elems; /* filter gradient */
};

/* Uses the requested method if it supports the shape, or the fastest for AUTO. A failure says what is missing. */
Status nn_cpu_conv_create(const ConvNeed *need, Conv **out);
void nn_cpu_conv_destroy(Conv *conv);

/* The range *begin .. *end of slice `part` of `parts`. */
static inline void conv_slice(size_t elems, int part, int parts, size_t *begin, size_t *end) {
    *begin = elems * (size_t)part / (size_t)parts;
    *end = elems * (size_t)(part + 1) / (size_t)parts;
}

/* Fails, saying what is missing, unless oneDNN is available and supports this precision. */
Status nn_cpu_dnnl_supported(Precision precision);
const char *nn_cpu_dnnl_name(void); /* with its version; static */
Status nn_cpu_dnnl_conv_create(const ConvNeed *need, Conv **out);

/* The best tile size of minimal filtering for the shape on this processor, 0 if it is not supported. */
int nn_cpu_winograd_tile(const ConvNeed *need);
Status nn_cpu_winograd_conv_create(const ConvNeed *need, int tile, Conv **out);

#endif
