/* Convolutions between activations, channels-last, run by one thread on a few images at a time. Two ways to compute
 * one: directly by oneDNN (dnnl.c; none.c is its twin in a build without it), and by minimal filtering with loops of
 * our own (winograd.c). */
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

/* What a convolution is made for. */
typedef struct ConvNeed {
    ConvShape shape;
    ConvDirection direction;
    Precision precision;
    Convolution method;
    /* The numbers of images of one call that are to run at full speed, descending; any other runs too. */
    int sizes[CONV_MAX_SIZES];
    int size_count;
    int threads; /* it may run in as many at once */
} ConvNeed;

/* Memory that the thread will touch soon: a convolution that has the time fetches it into the cache meanwhile. */
#define CONV_MAX_AHEAD 8
typedef struct ConvAhead {
    const char *from[CONV_MAX_AHEAD]; /* borrowed during the call */
    size_t bytes[CONV_MAX_AHEAD];
    int count;
} ConvAhead;

/* The images of one call and the calling thread's memory. */
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
    void (*pack)(Conv *conv, const float *filters, int part, int parts);
    Status (*run)(Conv *conv, const ConvCall *call, const void *from, void *to);
    Status (*run_filter)(Conv *conv, const ConvCall *call, const void *input, const void *output_gradient,
                         float *partial);
    void (*unpack)(const Conv *conv, const float *partials, int count, float *gradient, int part, int parts);
} ConvTable;

/* One direction of one convolution; the head of what each way of computing keeps. */
struct Conv {
    const ConvTable *table;
    char name[48];                   /* how it computes */
    size_t scratch_bytes;            /* that a call needs */
    size_t partial_elems, sum_elems; /* filter gradient */
};

/* Takes the method that is asked for, or the faster one. A failure says what is missing. */
Status nn_cpu_conv_create(const ConvNeed *need, Conv **out);
void nn_cpu_conv_destroy(Conv *conv);

/* Forward and data: brings filters (out, kernel, kernel, in) into the form that conv_run reads; slice `part` of
 * `parts`, all of them before the next conv_run. */
static inline void conv_pack(Conv *conv, const float *filters, int part, int parts) {
    conv->table->pack(conv, filters, part, parts);
}

/* input -> output, or output gradient -> input gradient. */
static inline Status conv_run(Conv *conv, const ConvCall *call, const void *from, void *to) {
    return conv->table->run(conv, call, from, to);
}

/* Adds up the filter gradient of the images of several calls; `partial`, in a form of its own, is complete after the
 * call that ends the sum. */
static inline Status conv_run_filter(Conv *conv, const ConvCall *call, const void *input, const void *output_gradient,
                                     float *partial) {
    return conv->table->run_filter(conv, call, input, output_gradient, partial);
}

/* gradient (out, kernel, kernel, in) = the sum of `count` partials, partial_elems apart; slice `part` of `parts`. */
static inline void conv_unpack(const Conv *conv, const float *partials, int count, float *gradient, int part,
                               int parts) {
    conv->table->unpack(conv, partials, count, gradient, part, parts);
}

/* begin .. end of slice `part` of `parts`. */
static inline void conv_slice(size_t elems, int part, int parts, size_t *begin, size_t *end) {
    *begin = elems * (size_t)part / (size_t)parts;
    *end = elems * (size_t)(part + 1) / (size_t)parts;
}

/* Whether oneDNN is there and multiplies in this precision; otherwise a failure that says what is missing. */
Status nn_cpu_dnnl_supported(Precision precision);
const char *nn_cpu_dnnl_name(void); /* and version; static */
Status nn_cpu_dnnl_conv_create(const ConvNeed *need, Conv **out);

/* The tile of minimal filtering that suits the shape on this processor, 0 if none does. */
int nn_cpu_winograd_tile(const ConvNeed *need);
Status nn_cpu_winograd_conv_create(const ConvNeed *need, int tile, Conv **out);

#endif
