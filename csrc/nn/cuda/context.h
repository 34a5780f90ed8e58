/* The CUDA backend's memory for one program, shared by its passes. Every pass works on the whole batch at once and only
 * enqueues work on the model's stream: a step neither allocates nor waits between its begin and its end, so it can be
 * recorded as a graph. */
#ifndef CGXFFCV_NN_CUDA_CONTEXT_H
#define CGXFFCV_NN_CUDA_CONTEXT_H

#include "nn/cuda/conv/conv.h"
#include "nn/cuda/norm/norm.h"
#include "nn/ops.h"

/* An operator's state in this backend; which members are set depends on its kind. Device memory of the context. */
typedef struct OpState {
    bool pooled; /* a convolution that its norm's kernel computes, whose own pass does nothing; and that norm */
    CudaConv *forward, *data, *filter; /* owned */
    float *partials;                   /* partial sums of blocks, combined in a fixed order by the closing pass */
    float *terms;                      /* norm: per-channel values that the passes share, see norm/op.c */
    bool narrow_forward, narrow_data;  /* convolution: this pass uses conv/narrow.cu */
    bool pooled_filter; /* convolution: its filter gradient comes from the norm's, see conv/pooled_filter_op.c */
} OpState;

/* The kernels in place of one per pass, or of cuDNN's, that CGXFFCV_FUSED allows. */
typedef enum Fusion { FUSION_FORWARD = 1, FUSION_FILTER = 2, FUSION_NARROW = 4, FUSION_ALL = 7 } Fusion;

struct Context {
    NnModel *model;         /* borrowed until nn_cuda_context_destroy */
    const Program *program; /* likewise */
    DeviceStream *stream;   /* borrowed from the model */
    CudaConvs *convs;       /* owned */
    OpState *states;        /* owned, one per operator */
    char *arena, *scratch;  /* device: held tensors; the others, for the whole batch */
    void *filters; /* device: the parameters in storage precision at the same offsets; float32: the parameters */
    void *filter_gradients; /* device: gradients of filters in storage precision, likewise; float32: the gradients */
    void *workspace;        /* device: for the convolutions */
    NnStepTotals *totals;   /* device: since take_totals */
    /* device: copies of a call's host memory */
    void *host_images;
    int64_t *host_labels;
    float *host_losses, *host_logits;
    /* What the passes of the current call use: device memory, either the caller's or the copies above. */
    const void *images;
    const int64_t *labels;
    float *losses, *logits; /* NULL if not wanted */
    uint32_t fusions;       /* of Fusion */
    float gradient_factor;  /* converts gradients of the summed loss to those of the reduced loss */
    void **blocks;          /* owned: device memory of nn_cuda_context_alloc */
    int block_count, block_room;
    size_t bytes;         /* allocated */
    DeviceEvent **marks;  /* owned; while profiling: before and after the current pass */
    double *pass_seconds; /* owned, likewise */
};

typedef Status (*CudaPass)(Context *context, const Job *job, int op);

Status nn_cuda_context_create(NnModel *model, const Program *program, Context **out);
void nn_cuda_context_destroy(Context *context);

/* Zeroed device memory that lives as long as the context. */
Status nn_cuda_context_alloc(Context *context, size_t bytes, void *out);

/* An operator's filters in storage precision. */
const void *nn_cuda_filters(const Context *context, const Op *op);

/* A tensor's whole batch, in device memory. */
void *nn_cuda_tensor(const Context *context, int tensor);
static inline const Tensor *nn_cuda_shape(const Context *context, int tensor) {
    return &context->program->tensors[tensor];
}

/* conv/pool_op.c: a convolution and its norm's pool in one kernel: chooses where this is possible; the two passes. */
void nn_cuda_conv_pool_choose(Context *context);
Status nn_cuda_pass_conv_pool_statistics(Context *context, const Job *job, int norm, NormClose close);
Status nn_cuda_pass_conv_pool_evaluate(Context *context, const Job *job, int norm);

/* The op.c of conv/, stem/, norm/ and head/: creation of an operator's state; its passes. */
Status nn_cuda_conv_op_create(Context *context, int op);
void nn_cuda_conv_op_destroy(OpState *state);
Status nn_cuda_stem_op_create(Context *context, int op);
Status nn_cuda_norm_op_create(Context *context, int op);
Status nn_cuda_head_op_create(Context *context, int op);

/* norm/op.c: the shape of a norm's backward pass, and in *gradient the tensor that it starts from: the gradient before
 * the activation if a residual passes that on, else the output's gradient. */
NormShape nn_cuda_norm_backward_shape(const Context *context, int op, int count, int *gradient);

/* conv/pooled_filter_op.c: the filter gradient of a convolution fused with the backward pass of the norm after it;
 * whether nothing else needs the gradient between them in this step. */
Status nn_cuda_pooled_filter_op_create(Context *context, int op);
bool nn_cuda_backward_is_pooled(const Context *context, const Job *job, int op);
Status nn_cuda_pass_pooled_filter(Context *context, const Job *job, int op);

Status nn_cuda_pass_load(Context *context, const Job *job, int op);
Status nn_cuda_pass_stem_forward(Context *context, const Job *job, int op);
Status nn_cuda_pass_stem_backward(Context *context, const Job *job, int op); /* filter and bias gradients, finished */
Status nn_cuda_pass_conv_forward(Context *context, const Job *job, int op);
Status nn_cuda_pass_conv_filter(Context *context, const Job *job, int op);
Status nn_cuda_pass_conv_data(Context *context, const Job *job, int op);
Status nn_cuda_pass_norm_statistics(Context *context, const Job *job, int op);
Status nn_cuda_pass_norm_apply(Context *context, const Job *job, int op);
Status nn_cuda_pass_norm_reduce(Context *context, const Job *job, int op);
Status nn_cuda_pass_norm_backward(Context *context, const Job *job, int op);
Status nn_cuda_pass_norm_running(Context *context, const Job *job, int op);
Status nn_cuda_pass_norm_evaluate(Context *context, const Job *job, int op);
Status nn_cuda_pass_head_evaluate(Context *context, const Job *job, int op);
Status nn_cuda_pass_head_train(Context *context, const Job *job, int op);
Status nn_cuda_pass_head_close(Context *context, const Job *job, int op);

/* head/op.c: see nn_plan_store_totals. */
Status nn_cuda_store_totals(Context *context, NnStepTotals *to, const int32_t *index);

/* convert.cu: float32 to the storage type, and back times a factor, in place or not; for nn_plan_read and filters. */
Status nn_cuda_from_float(const float *from, size_t elems, Precision precision, void *to, DeviceStream *stream);
Status nn_cuda_to_float(const void *from, size_t elems, Precision precision, float factor, float *to,
                        DeviceStream *stream);

#endif
