/* Networks: a model owns the parameters, gradients and running statistics; a plan runs it for one image size.
 *
 *   description -> nn_model_create -> nn_model_initialise -> nn_plan_create (one for each image size) -> nn_plan_step
 * ...
 *
 * Parameters and gradients are flat float32 buffers with the same offsets, laid out by layer in the order in which
 * the backward pass finishes them (last layer first); frozen layers stand behind the trained ones and have no
 * gradient. So the gradients of the blocks from k on are always a prefix, and a bucket of finished layers is one
 * contiguous range. Layers start at multiples of 16 elements; the gaps are zero in both buffers and stay zero.
 *
 * Convolution filters are stored (out, kernel row, kernel column, in): rows of Cout x (9 Cin) for Muon, and the layout
 * that channels-last convolutions take. On the CUDA backend the buffers are device memory. */
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
    NODE_NORM, /* [max pool,] batch norm, activation [, max pool or residual] in one; reads a convolution */
    NODE_HEAD  /* global pool, linear [with bias], times `scale`, softmax cross entropy; reads a norm */
} NnNodeKind;

typedef enum PoolPlace { POOL_NONE, POOL_BEFORE_NORM, POOL_AFTER_ACTIVATION } PoolPlace;
typedef enum HeadPool { HEAD_POOL_MAX, HEAD_POOL_AVERAGE } HeadPool;
typedef enum ResidualPlace { RESIDUAL_NONE, RESIDUAL_BEFORE_ACTIVATION, RESIDUAL_AFTER_ACTIVATION } ResidualPlace;

typedef enum Initialisation {
    INIT_UNIFORM,  /* uniform +-1/sqrt(fan_in) */
    INIT_IDENTITY, /* the same, then the first min(in, out) filters pass their channel on (centre tap 1) */
    INIT_UNIT_STD, /* uniform, then rescaled to standard deviation 1 */
    INIT_ZERO      /* for biases */
} Initialisation;

/* One node. Unused fields are zero. The first node reads the images, every other one the node before it, unless a
 * convolution names another. An output is used once or twice: read by a convolution, by two, or added by one norm. */
typedef struct NnNodeDesc {
    NnNodeKind kind;
    char name[NN_NAME_BYTES];
    int block; /* for freezing: not decreasing from node to node */
    Activation activation;
    /* NODE_CONV, NODE_HEAD */
    int out_channels; /* classes for the head */
    Initialisation init;
    bool bias;
    Initialisation bias_init;
    /* NODE_CONV */
    int reads; /* index of an earlier NODE_NORM whose output it reads; 0: the node before it */
    int kernel, stride, padding;
    bool frozen_filters; /* set from outside (whitening), never trained */
    /* NODE_NORM */
    PoolPlace pool_place;
    int pool; /* window and stride, 2 or 3; odd sizes are floored */
    ResidualPlace residual_place;
    int residual;       /* index of the NODE_NORM whose output is added, in the shape of this one's */
    bool scale_trained; /* otherwise the scale is 1 and no parameter */
    double eps;
    double keep; /* running = keep * running + (1 - keep) * batch (unbiased variance) */
    /* NODE_HEAD */
    HeadPool head_pool;
    double scale;
} NnNodeDesc;

typedef struct NnModelDesc {
    int image_channels;
    int count;
    NnNodeDesc nodes[NN_MAX_NODES]; /* exactly one head, the last node; without one the model only runs as a test of
                                     * operators (nn_plan_forward, nn_plan_backward) */
} NnModelDesc;

typedef enum BackendKind { BACKEND_CPU, BACKEND_CUDA } BackendKind;

/* What activations are stored as and convolutions multiply; parameters, statistics and sums are float32. AUTO takes
 * what is faster here: on a CPU bfloat16 where it has dot products for it, else float32; on a GPU float16, which only
 * the CUDA backend has. */
typedef enum Precision { PRECISION_AUTO, PRECISION_FLOAT32, PRECISION_BFLOAT16, PRECISION_FLOAT16 } Precision;

/* How the CPU backend computes 3 x 3 convolutions in bfloat16: directly, or by minimal filtering in tiles of 2 x 2 or
 * 4 x 4, which takes fewer multiplications and rounds more (see nn/cpu/winograd.h). AUTO is the fastest. */
typedef enum Convolution {
    CONVOLUTION_AUTO,
    CONVOLUTION_DIRECT,
    CONVOLUTION_WINOGRAD2,
    CONVOLUTION_WINOGRAD4
} Convolution;

/* How these enums, LayerKind and LossReduction are spelt: "relu", "before", "bfloat16"; NULL if there is no such
 * number. */
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
    int threads;        /* of the CPU backend; 0: all that this process may use */
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
/* After the last of its plans. Does nothing if NULL. */
void nn_model_destroy(NnModel *model);

const NnModelDesc *nn_model_desc(const NnModel *model);
Precision nn_model_precision(const NnModel *model); /* never AUTO */
Convolution nn_model_convolution(const NnModel *model);
const char *nn_model_backend(const NnModel *model);  /* "cpu" or "cuda" */
Pool *nn_model_pool(const NnModel *model);           /* borrowed until nn_model_destroy; not from inside a step */
DeviceStream *nn_model_stream(const NnModel *model); /* what steps are put on; NULL on the CPU backend */
bool nn_model_deterministic(const NnModel *model);
const NnLayer *nn_model_layers(const NnModel *model, int *count);
const NnStatistic *nn_model_statistics(const NnModel *model, int *count);

/* The flat buffers: borrowed until nn_model_destroy, never moved. Whoever writes parameters or statistics between two
 * steps need not tell the model: every step and every evaluation reads them afresh. */
float *nn_model_parameter_data(NnModel *model);
float *nn_model_gradient_data(NnModel *model);
float *nn_model_statistic_data(NnModel *model);
size_t nn_model_parameter_elems(const NnModel *model);
size_t nn_model_statistic_elems(const NnModel *model);
/* Length of the prefix that holds the gradients of all trained layers of blocks >= first_block (0: all). */
size_t nn_model_gradient_elems(const NnModel *model, int first_block);

/* Host copies in and out of any of these buffers (a memcpy on the CPU backend). */
Status nn_model_write(NnModel *model, float *buffer, size_t offset, const float *from, size_t elems);
Status nn_model_read(NnModel *model, const float *buffer, size_t offset, float *to, size_t elems);

/* Every layer from its description, a pure function of the seed and the layer's name; running mean 0, variance 1.
 * Frozen filters keep what they hold. */
Status nn_model_initialise(NnModel *model, uint64_t seed);

typedef struct NnPlanOptions {
    int batch; /* the largest; every smaller one runs too */
    int height, width;
    bool training; /* false: evaluation only, takes little memory */
    bool keep_all; /* tests: every intermediate tensor stays readable (nn_plan_read), also of the images' gradient */
} NnPlanOptions;

/* Makes the plan, and allocates all memory it will ever use; in a plan for training, what evaluation needs is made by
 * the first nn_plan_evaluate. Plans of one model share its parameters and threads; only one of them runs at a time. */
Status nn_plan_create(NnModel *model, const NnPlanOptions *options, NnPlan **out);
void nn_plan_destroy(NnPlan *plan);
/* What it has allocated. */
size_t nn_plan_arena_bytes(const NnPlan *plan);

typedef enum PixelType { PIXELS_U8, PIXELS_F32, PIXELS_BF16 } PixelType;
typedef enum PixelLayout { PIXELS_NHWC, PIXELS_NCHW } PixelLayout;

/* A batch of dense images. Floats are taken as they are (normalised); bytes become (v - mean[c]) / std[c]. Without
 * conversion cost differences worth a choice: take whatever the loader has. */
typedef struct NnImages {
    const void *data; /* borrowed during the call; on the device until the stream has done its work */
    /* CUDA backend: `data`, and the labels, losses and logits of the call, are device memory. Otherwise all are host
     * memory and copied. */
    bool on_device;
    PixelType type;
    PixelLayout layout;
    float mean[NN_MAX_IMAGE_CHANNELS], std[NN_MAX_IMAGE_CHANNELS]; /* of PIXELS_U8, in units of 0..255 */
    /* A view for test-time augmentation: moved by the shifts, at most 4 pixels, with reflected edges, then mirrored
     * left-right: pixel (y, x) shows (y + shift_y, x' + shift_x), where x' is x or, mirrored, width - 1 - x. */
    bool mirror;
    int shift_y, shift_x;
} NnImages;

typedef enum LossReduction { LOSS_MEAN, LOSS_SUM } LossReduction;

/* Told as soon as the gradients [begin, end) (elements) are complete, in rising order without gaps; on the CUDA
 * backend when their kernels have been put on the stream. Runs on the calling thread and should be short. */
typedef Status (*GradientHook)(void *context, size_t begin, size_t end);

typedef struct NnStepOptions {
    double label_smoothing;
    LossReduction reduction;
    /* Blocks below are frozen: forward only (with batch statistics), gradients not written. With the whitening in
     * block 0, 1 drops the data gradient of block 1's first convolution. */
    int first_block;
    float *losses;     /* NULL, or room for the smoothed cross entropy of each image, `count` of them */
    GradientHook hook; /* may be NULL */
    void *hook_context;
    Status (*check)(void *context); /* called now and then during the step; a failure ends it. May be NULL */
    void *check_context;
} NnStepOptions;

typedef struct NnStepTotals {
    double loss;     /* the sum over the images of the smoothed cross entropy, whatever the reduction */
    int64_t correct; /* images whose largest logit is their label's (the first of equal ones) */
    int64_t images;
} NnStepTotals;

/* Forward with batch statistics (which update the running ones), loss, backward: overwrites the gradients. `labels`
 * has `count` entries below the head's classes (not checked in device memory); loss and hits are added to the plan's
 * totals. With the same inputs the same bytes come out, for any number of threads. On the CUDA backend it only puts
 * work on nn_model_stream. */
Status nn_plan_step(NnPlan *plan, const NnImages *images, const int64_t *labels, int count,
                    const NnStepOptions *options);

/* The totals since the last call of this function (CUDA: waits for the stream); counting starts over. */
Status nn_plan_take_totals(NnPlan *plan, NnStepTotals *out);

/* CUDA, for recorded steps: on the stream, adds the totals to to[*index] (device memory) and starts over; where their
 * loss is not finite the first gradient becomes NaN, so that the step is skipped, on all ranks. */
Status nn_plan_store_totals(NnPlan *plan, NnStepTotals *to, const int32_t *index);

/* Logits (count, classes) by the running statistics. */
Status nn_plan_evaluate(NnPlan *plan, const NnImages *images, int count, float *logits);

/* For tests of operators, on plans with keep_all: forward with batch statistics; then backward from the gradient of
 * the last node's output (count, h, w, channels). */
Status nn_plan_forward(NnPlan *plan, const NnImages *images, int count);
Status nn_plan_backward(NnPlan *plan, const float *output_gradient, int count, int first_block);

/* Where the time goes: processor time of each pass, summed over threads, between begin and end. */
#define NN_MAX_PASSES (NN_MAX_NODES * 16)
typedef struct NnPassTime {
    const char *pass; /* static */
    int node;
    double seconds;
} NnPassTime;
Status nn_plan_profile_begin(NnPlan *plan);
/* Training passes, then those of evaluation; at most NN_MAX_PASSES entries. */
Status nn_plan_profile_end(NnPlan *plan, NnPassTime *times, int *count);

/* How a pass that has a choice is computed. Texts live as long as the plan. */
typedef enum NnAlgorithmSource {
    ALGORITHM_FIXED,  /* not chosen by time */
    ALGORITHM_TIMED,  /* the fastest, by this process */
    ALGORITHM_CACHED, /* the fastest, by an earlier one */
} NnAlgorithmSource;

typedef struct NnAlgorithm {
    const char *name; /* the library's for it with its settings, or ours */
    const char *text; /* the same with all that is known of it */
    NnAlgorithmSource source;
    double milliseconds; /* of a run when it was chosen; 0: not known */
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

/* The library that the convolutions come from, and where their algorithms are remembered. */
typedef struct NnPlanLibrary {
    char name[64];    /* with its version */
    char cache[1024]; /* the file; "": nothing is remembered */
    char note[1920];  /* what is wrong with the file or its directory; "": nothing */
} NnPlanLibrary;
void nn_plan_library(const NnPlan *plan, NnPlanLibrary *out);

/* The images that it was made for. */
int nn_plan_batch(const NnPlan *plan);

typedef enum NnPlanTensor { TENSOR_OUTPUT, TENSOR_OUTPUT_GRADIENT } NnPlanTensor;

/* Images of the last step or nn_plan_forward. */
int nn_plan_count(const NnPlan *plan);
/* Shape (h, w, channels) of a node's output; node -1 is the images with the first convolution's zero border. */
Status nn_plan_shape(const NnPlan *plan, int node, int64_t shape[3]);
/* Copies the tensor of the last call as float32 (count, h, w, channels); a plan with keep_all. */
Status nn_plan_read(NnPlan *plan, int node, NnPlanTensor tensor, float *to);

#endif
