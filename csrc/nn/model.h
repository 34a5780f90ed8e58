/* Networks: a model owns the parameters, gradients and running statistics; a plan runs it for one image size.
 *
 *   description -> nn_model_create -> nn_model_initialise -> nn_plan_create (one per image size) -> nn_plan_step
 * ...
 *
 * Parameters and gradients are flat float32 buffers with the same offsets, laid out by layer in the order in which
 * the backward pass finishes them (last layer first); frozen layers follow the trained ones and have no gradient. So
 * the gradients of blocks k and above are always a prefix, and a bucket of finished layers is one contiguous range.
 * Layers start at multiples of 16 elements; the gaps are zero in both buffers and stay zero.
 *
 * Convolution filters are stored (out, kernel row, kernel column, in): a matrix of Cout x (9 Cin) for Muon, and the
 * layout that channels-last convolutions use. On the CUDA backend the buffers are device memory. */
#ifndef CGXFFCV_NN_MODEL_H
#define CGXFFCV_NN_MODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/pool.h"
#include "base/status.h"
#include "device/device.h"

#define NN_NAME_BYTES 32
#define NN_MAX_NODES 64
#define NN_MAX_CLASSES 1024
#define NN_MAX_IMAGE_CHANNELS 4
#define NN_LAYER_ALIGNMENT 16 /* elements */

typedef enum Activation { ACTIVATION_NONE, ACTIVATION_RELU, ACTIVATION_GELU, ACTIVATION_SILU } Activation;

typedef enum NnNodeKind {
    NODE_CONV, /* convolution; with bias and activation only when it reads the images */
    NODE_NORM, /* [max pool,] batch norm, activation [, max pool or residual], fused; reads a convolution */
    NODE_HEAD  /* global pool, linear [with bias], times `scale`, softmax cross entropy; reads a norm */
} NnNodeKind;

typedef enum PoolPlace { POOL_NONE, POOL_BEFORE_NORM, POOL_AFTER_ACTIVATION } PoolPlace;
typedef enum HeadPool { HEAD_POOL_MAX, HEAD_POOL_AVERAGE } HeadPool;
typedef enum ResidualPlace { RESIDUAL_NONE, RESIDUAL_BEFORE_ACTIVATION, RESIDUAL_AFTER_ACTIVATION } ResidualPlace;

typedef enum Initialisation {
    INIT_UNIFORM,  /* uniform +-1/sqrt(fan_in) */
    INIT_IDENTITY, /* the same, then the first min(in, out) filters copy their channel (centre tap 1) */
    INIT_UNIT_STD, /* uniform, then rescaled to standard deviation 1 */
    INIT_ZERO      /* for biases */
} Initialisation;

/* One node. Unused fields are zero. The first node reads the images, the others the node before them, unless a
 * convolution names another. An output has one or two users: nodes that read it, at most one norm that adds it. */
typedef struct NnNodeDesc {
    NnNodeKind kind;
    char name[NN_NAME_BYTES];
    int block; /* for freezing: never decreases from node to node */
    Activation activation;
    /* NODE_CONV, NODE_HEAD */
    int out_channels; /* classes for the head */
    Initialisation init;
    bool bias;
    Initialisation bias_init;
    /* NODE_CONV */
    int reads; /* index of an earlier NODE_NORM whose output it reads; 0: the node before it */
    int kernel, stride, padding;
    bool frozen_filters; /* set by the caller (whitening), never trained */
    /* NODE_NORM */
    PoolPlace pool_place;
    int pool; /* window and stride, 2 or 3; odd sizes are floored */
    ResidualPlace residual_place;
    int residual;       /* index of the NODE_NORM whose output is added; it has the same shape */
    bool scale_trained; /* otherwise the scale is 1 and not a parameter */
    double eps;
    double keep; /* running = keep * running + (1 - keep) * batch (unbiased variance) */
    /* NODE_HEAD */
    HeadPool head_pool;
    double scale;
} NnNodeDesc;

typedef struct NnModelDesc {
    int image_channels;
    int count;
    NnNodeDesc nodes[NN_MAX_NODES]; /* exactly one head, the last node; a model without one can only be run to test
                                     * operators (nn_plan_forward, nn_plan_backward) */
} NnModelDesc;

typedef enum BackendKind { BACKEND_CPU, BACKEND_CUDA } BackendKind;

/* The type in which activations are stored and convolutions multiply; parameters, statistics and sums are float32. AUTO
 * is the fastest on this machine: on a CPU bfloat16 if it has dot products for it, else float32; on a GPU float16,
 * which only the CUDA backend supports. */
typedef enum Precision { PRECISION_AUTO, PRECISION_FLOAT32, PRECISION_BFLOAT16, PRECISION_FLOAT16 } Precision;

/* How the CPU backend computes 3 x 3 convolutions in bfloat16: directly, or by minimal filtering in tiles of 2 x 2 or
 * 4 x 4, which needs fewer multiplications but is less accurate (see nn/cpu/winograd.h). AUTO is the fastest. */
typedef enum Convolution {
    CONVOLUTION_AUTO,
    CONVOLUTION_DIRECT,
    CONVOLUTION_WINOGRAD2,
    CONVOLUTION_WINOGRAD4
} Convolution;

/* The names of the values of these enums, NnLayerKind and LossReduction: "relu", "before", "bfloat16"; NULL if there is
 * no such value. */
const char *nn_node_kind_name(int kind);
const char *nn_activation_name(int activation);
const char *nn_initialisation_name(int initialisation);
const char *nn_pool_place_name(int place);
const char *nn_head_pool_name(int pool);
const char *nn_residual_place_name(int place);
const char *nn_backend_name(int backend);
const char *nn_precision_name(int precision);
const char *nn_convolution_name(int convolution);
const char *nn_layer_kind_name(int kind);
const char *nn_reduction_name(int reduction);

typedef struct NnModelOptions {
    BackendKind backend;
    Precision precision;
    Convolution convolution;
    int threads;        /* of the CPU backend; 0: one per processor that this process may use */
    bool deterministic; /* CUDA: only algorithms that give the same bytes every time */
} NnModelOptions;

typedef enum NnLayerKind { LAYER_FILTERS, LAYER_BIAS, LAYER_NORM_SCALE, LAYER_NORM_BIAS, LAYER_LINEAR } NnLayerKind;

/* One parameter tensor. */
typedef struct NnLayer {
    char name[NN_NAME_BYTES + 16]; /* "<node>.weight", "<node>.bias", "<node>.scale" */
    NnLayerKind kind;
    int node, block;
    bool trained;
    int ndim; /* 4: (out, kernel, kernel, in); 2: (classes, in); 1: (channels) */
    int64_t shape[4];
    size_t offset, elems; /* in float32 elements of the parameter (and, when trained, gradient) buffer */
} NnLayer;

/* The running statistics of one norm: `channels` means, then as many variances. */
typedef struct NnStatistic {
    char name[NN_NAME_BYTES];
    int node, block;
    size_t mean_offset, variance_offset, channels;
} NnStatistic;

typedef struct NnModel NnModel;
typedef struct NnPlan NnPlan;

/* Checks the description, lays the layers out, allocates. Parameters are zero until initialised. */
Status nn_model_create(const NnModelDesc *desc, const NnModelOptions *options, NnModel **out);
/* Call after destroying all of its plans. Does nothing if NULL. */
void nn_model_destroy(NnModel *model);

const NnModelDesc *nn_model_desc(const NnModel *model);
Precision nn_model_precision(const NnModel *model); /* never AUTO */
Convolution nn_model_convolution(const NnModel *model);
const char *nn_model_backend(const NnModel *model);  /* "cpu" or "cuda" */
Pool *nn_model_pool(const NnModel *model);           /* borrowed until nn_model_destroy; do not use inside a step */
DeviceStream *nn_model_stream(const NnModel *model); /* the stream of its steps; NULL on the CPU backend */
bool nn_model_deterministic(const NnModel *model);
const NnLayer *nn_model_layers(const NnModel *model, int *count);
const NnStatistic *nn_model_statistics(const NnModel *model, int *count);

/* The flat buffers: borrowed until nn_model_destroy, never moved. Parameters and statistics may be written between two
 * steps without notifying the model: every step and every evaluation reads them again. */
float *nn_model_parameter_data(NnModel *model);
float *nn_model_gradient_data(NnModel *model);
float *nn_model_statistic_data(NnModel *model);
size_t nn_model_parameter_elems(const NnModel *model);
size_t nn_model_statistic_elems(const NnModel *model);
/* Length of the prefix that contains the gradients of all trained layers of blocks >= first_block (0: all). */
size_t nn_model_gradient_elems(const NnModel *model, int first_block);

/* Copies between host memory and any of these buffers (a memcpy on the CPU backend). */
Status nn_model_write(NnModel *model, float *buffer, size_t offset, const float *from, size_t elems);
Status nn_model_read(NnModel *model, const float *buffer, size_t offset, float *to, size_t elems);

/* Initialises every trained layer as described, as a pure function of the seed and the layer's name, and the running
 * means to 0 and variances to 1. Frozen filters keep their values. */
Status nn_model_initialise(NnModel *model, uint64_t seed);

typedef struct NnPlanOptions {
    int batch; /* the largest batch; smaller ones are allowed */
    int height, width;
    bool training; /* false: only for evaluation, which needs little memory */
    bool keep_all; /* tests: every intermediate tensor stays readable (nn_plan_read), and frozen nodes get gradients */
} NnPlanOptions;

/* Makes the plan and allocates all of its memory, except that a training plan allocates what evaluation needs in the
 * first nn_plan_evaluate. Plans of one model share its parameters and threads; only one of them may run at a time. */
Status nn_plan_create(NnModel *model, const NnPlanOptions *options, NnPlan **out);
void nn_plan_destroy(NnPlan *plan);
/* The memory that it has allocated, in bytes. */
size_t nn_plan_arena_bytes(const NnPlan *plan);

typedef enum PixelType { PIXELS_U8, PIXELS_F32, PIXELS_BF16 } PixelType;
typedef enum PixelLayout { PIXELS_NHWC, PIXELS_NCHW } PixelLayout;

/* A batch of dense images. Floats are used as they are (normalised); bytes become (v - mean[c]) / std[c]. All formats
 * are about equally fast: use whatever the loader produces. */
typedef struct NnImages {
    const void *data; /* borrowed during the call; if on the device, until the stream has done the work */
    /* CUDA backend: `data`, and the labels, losses and logits of the call, are device memory. If false, all are host
     * memory and copied. */
    bool on_device;
    PixelType type;
    PixelLayout layout;
    float mean[NN_MAX_IMAGE_CHANNELS], std[NN_MAX_IMAGE_CHANNELS]; /* for PIXELS_U8, in units of 0..255 */
    /* A view for test-time augmentation: moved by the shifts, at most 4 pixels, with reflected edges, then mirrored
     * left to right: pixel (y, x) shows (y + shift_y, x' + shift_x), where x' is x or, if mirrored, width - 1 - x. */
    bool mirror;
    int shift_y, shift_x;
} NnImages;

typedef enum LossReduction { LOSS_MEAN, LOSS_SUM } LossReduction;

/* Called as soon as the gradients [begin, end) (elements) are complete, in ascending order without gaps; on the CUDA
 * backend, once their kernels are on the stream. Runs on the calling thread and should be short. */
typedef Status (*GradientHook)(void *context, size_t begin, size_t end);

typedef struct NnStepOptions {
    double label_smoothing;
    LossReduction reduction;
    /* Blocks below this one are frozen: forward only (with batch statistics), gradients not written. If block 0 is the
     * whitening, 1 saves the data gradient of block 1's first convolution. */
    int first_block;
    float *losses;     /* NULL, or receives the smoothed cross entropy of each of the `count` images */
    GradientHook hook; /* may be NULL */
    void *hook_context;
    Status (*check)(void *context); /* called now and then during the step; a failure ends the step. May be NULL */
    void *check_context;
} NnStepOptions;

typedef struct NnStepTotals {
    double loss;     /* sum of the smoothed cross entropy over the images, whatever the reduction */
    int64_t correct; /* images whose largest logit (the first of equal ones) is their label's */
    int64_t images;
} NnStepTotals;

/* Forward with batch statistics (which update the running ones), loss, backward: overwrites the gradients. `labels`
 * has `count` entries below the head's number of classes (not checked in device memory); the loss and the number of
 * correct images are added to the plan's totals. The same inputs give the same bytes, for any number of threads. On the
 * CUDA backend it only enqueues work on nn_model_stream. */
Status nn_plan_step(NnPlan *plan, const NnImages *images, const int64_t *labels, int count,
                    const NnStepOptions *options);

/* The totals since the last call of this function, which resets them (CUDA: waits for the stream). */
Status nn_plan_take_totals(NnPlan *plan, NnStepTotals *out);

/* CUDA, for recorded steps: on the stream, adds the totals to to[*index] (device memory) and resets them; if their loss
 * is not finite, sets the first gradient to NaN, so that the step is skipped on all ranks. */
Status nn_plan_store_totals(NnPlan *plan, NnStepTotals *to, const int32_t *index);

/* Computes the logits (count, classes), with the running statistics. */
Status nn_plan_evaluate(NnPlan *plan, const NnImages *images, int count, float *logits);

/* For tests of operators, on plans with keep_all: forward with batch statistics; then backward from the gradient of
 * the last node's output (count, h, w, channels). */
Status nn_plan_forward(NnPlan *plan, const NnImages *images, int count);
Status nn_plan_backward(NnPlan *plan, const float *output_gradient, int count, int first_block);

/* Where the time goes: the time of each pass between begin and end; on the CPU backend, summed over threads. */
#define NN_MAX_PASSES (NN_MAX_NODES * 16)
typedef struct NnPassTime {
    const char *pass; /* static */
    int node;
    double seconds;
} NnPassTime;
Status nn_plan_profile_begin(NnPlan *plan);
/* Training passes, then those of evaluation; at most NN_MAX_PASSES entries. */
Status nn_plan_profile_end(NnPlan *plan, NnPassTime *times, int *count);

/* How a pass that has a choice of algorithms is computed. Strings live as long as the plan. */
typedef enum NnAlgorithmSource {
    ALGORITHM_FIXED,  /* not chosen by timing */
    ALGORITHM_TIMED,  /* the fastest, timed by this process */
    ALGORITHM_CACHED, /* the fastest, timed by an earlier process */
} NnAlgorithmSource;

typedef struct NnAlgorithm {
    const char *name; /* the library's name for it with its settings, or ours */
    const char *text; /* the same with everything that is known about it */
    NnAlgorithmSource source;
    double milliseconds; /* per run, when it was chosen; 0: not known */
    size_t workspace_bytes;
} NnAlgorithm;

typedef struct NnPassAlgorithm {
    const char *pass; /* static */
    int node;
    bool evaluation;
    NnAlgorithm algorithm;
} NnPassAlgorithm;
/* In the order of nn_plan_profile_end; at most NN_MAX_PASSES entries. */
void nn_plan_algorithms(const NnPlan *plan, NnPassAlgorithm *algorithms, int *count);

/* The library that the convolutions come from, and where the choices of algorithms are cached. */
typedef struct NnPlanLibrary {
    char name[64];    /* with its version */
    char cache[1024]; /* the file; "": nothing is cached */
    char note[1920];  /* what is wrong with the file or its directory; "": nothing */
} NnPlanLibrary;
void nn_plan_library(const NnPlan *plan, NnPlanLibrary *out);

/* The batch size that it was made for. */
int nn_plan_batch(const NnPlan *plan);

typedef enum NnPlanTensor { TENSOR_OUTPUT, TENSOR_OUTPUT_GRADIENT } NnPlanTensor;

/* Number of images of the last step or nn_plan_forward. */
int nn_plan_count(const NnPlan *plan);
/* Shape (h, w, channels) of a node's output; node -1 is the images with the first convolution's zero border. */
Status nn_plan_shape(const NnPlan *plan, int node, int64_t shape[3]);
/* Copies the tensor of the last call as float32 (count, h, w, channels); only for plans with keep_all. */
Status nn_plan_read(NnPlan *plan, int node, NnPlanTensor tensor, float *to);

#endif
