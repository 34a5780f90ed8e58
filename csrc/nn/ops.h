/* The table of operators that both backends fill (nn/cpu: oneDNN and own loops; nn/cuda: cuDNN and own kernels).
 *
 * A plan is an array of operators (Op) and a list of phases; a phase is a list of passes (one function of one
 * operator) between two batch-wide barriers, as batch statistics need them. A *ranged* pass works on images
 * [first, first + count) and on nothing else of the batch; a *closing* pass runs once after a phase, when all images
 * have gone through it. How a phase is walked through is the backend's choice: the CPU sends each thread with small
 * groups of images through all the ranged passes of a phase, so that what passes hand on stays in cache; CUDA runs
 * each pass once over the whole batch. Nothing here allocates after op_create.
 *
 * Tensors are channels-last (image, row, column, channel) in the storage type of the precision. */
#ifndef CGXFFCV_NN_OPS_H
#define CGXFFCV_NN_OPS_H

#include "nn/model.h"

/* Memory of a tensor. A held tensor has room for the whole batch from `offset` in the plan's arena; one that only
 * lives within a phase has room for one group of images from `offset` in each thread's scratch memory. */
typedef struct Tensor {
    int height, width, channels;
    size_t image_bytes; /* of one image; 0: the tensor is not needed */
    size_t offset;
    bool held;
} Tensor;

typedef enum PassKind {
    PASS_LOAD,                /* images -> images tensor (type, layout, normalisation, view) */
    PASS_CONV_FORWARD,        /* input -> output, with bias and activation where the operator has them */
    PASS_CONV_DATA,           /* output gradient -> input gradient */
    PASS_CONV_FILTER,         /* input, output gradient -> partial filter (and bias) gradients */
    PASS_CONV_CLOSE,          /* closing: partial -> flat gradient buffer */
    PASS_NORM_STATISTICS,     /* [pool: output of the convolution -> saved, index], partial sums of saved */
    PASS_NORM_CLOSE,          /* closing: sums -> mean, 1/deviation, running statistics */
    PASS_NORM_APPLY,          /* saved -> output: normalise, activate, [pool -> index], add residual */
    PASS_NORM_RUNNING,        /* closing, evaluation: running statistics -> scale and shift */
    PASS_NORM_EVALUATE,       /* output of the convolution -> output, in one go, with scale and shift */
    PASS_NORM_REDUCE,         /* output gradient [+ skip gradient] -> pre-activation gradient, partial sums */
    PASS_NORM_BACKWARD_CLOSE, /* closing: sums -> scale and bias gradients */
    PASS_NORM_BACKWARD,       /* pre-activation gradient -> gradient of the convolution's output (pool undone) */
    PASS_HEAD_FORWARD,        /* input -> index, pooled, logits */
    PASS_HEAD_LOSS,           /* logits, labels -> partial loss and hits, logits gradient, input gradient */
    PASS_HEAD_CLOSE,          /* closing: totals; linear gradient */
    PASS_KINDS
} PassKind;

/* One operator. Which tensors it has depends on its kind; see plan.c. */
typedef struct Op {
    NodeDesc node; /* as described */
    int index;     /* of the node */
    Tensor input, output, residual;
    Tensor saved;     /* norm: what is normalised (pooled if POOL_BEFORE_NORM) */
    Tensor index_map; /* norm with pool, head: where the maximum was, one byte each */
    Tensor input_gradient, output_gradient;
    Tensor skip_gradient;       /* norm: a second addend of the output gradient, from a residual */
    Tensor activation_gradient; /* norm: gradient before the activation, in normalised coordinates */
    bool add_skip_in_place;     /* norm: whoever adds this node's output needs the sum in output_gradient */
    size_t weight, bias, scale; /* offsets in the parameter and gradient buffers; SIZE_MAX: none */
    size_t mean, variance;      /* offsets in the statistics buffer */
    void *state;                /* owned by the backend, from op_create until op_destroy */
} Op;

typedef struct Pass {
    PassKind kind;
    int op; /* index into the plan's operators */
} Pass;

#define PHASE_MAX_PASSES 12

typedef struct Phase {
    int ranged_count, closing_count;
    Pass ranged[PHASE_MAX_PASSES], closing[PHASE_MAX_PASSES];
    int node; /* after this phase the backward pass of this node and all after it is complete; -1 */
} Phase;

/* What a step or an evaluation works on; constant during it. */
typedef struct Job {
    const Images *images;
    const int64_t *labels;
    int count;
    const StepOptions *options;
    float *logits;                /* evaluation, else NULL */
    const float *output_gradient; /* plan_backward, else NULL */
} Job;

typedef struct Context Context; /* a backend's memory, library objects and threads for one plan */

typedef struct OpsTable {
    const char *name;

    /* The precision that AUTO means here, or a refusal of one that this machine cannot run. */
    Status (*precision)(Precision wish, Precision *out);
    size_t element_bytes[3]; /* by Precision */

    /* Zeroed memory for the flat buffers, and copies between it and the host. */
    Status (*buffer_create)(size_t elems, float **out);
    void (*buffer_destroy)(float *buffer);
    Status (*copy)(void *to, const void *from, size_t bytes);

    /* Memory, library objects and threads of one plan. */
    Status (*context_create)(Model *model, Op *ops, int op_count, const PlanOptions *options, Context **out);
    void (*context_destroy)(Context *context);
    size_t (*context_bytes)(const Context *context);

    /* Before the first phase: parameters into the form that the operators take. `forward_only`: not the backward one.
     */
    Status (*begin)(Context *context, const Job *job, bool forward_only);
    Status (*run)(Context *context, const Job *job, const Phase *phase);
    Status (*take_totals)(Context *context, StepTotals *out);

    /* Tests: tensors to and from float32 host memory, `count` images. */
    Status (*read)(Context *context, const Tensor *tensor, int count, float *to);
    Status (*write)(Context *context, const Tensor *tensor, int count, const float *from);
} OpsTable;

/* The tables; a backend that is not in this build gives STATUS_NOT_BUILT with the remedy. */
Status ops_cpu(const OpsTable **out);
Status ops_cuda(const OpsTable **out);

#endif
