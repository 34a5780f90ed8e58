/* The table of operators that both backends implement (nn/cpu: oneDNN and our own loops; nn/cuda: cuDNN and our own
 * kernels).
 *
 * A program is an array of operators and a list of phases; a phase is a list of passes (one function of one operator)
 * between two batch-wide barriers, which batch statistics need. A *ranged* pass processes each image independently; a
 * *closing* pass runs once, after all images of the phase. The backend decides how to run a phase: on the CPU each
 * thread takes small groups of images through all ranged passes of a phase, so that the data between passes stays in
 * cache; CUDA runs each pass once over the whole batch. Nothing is allocated after context_create.
 *
 * Tensors are channels-last: (image, row, column, channel). */
#ifndef CGXFFCV_NN_OPS_H
#define CGXFFCV_NN_OPS_H

#include "nn/model.h"

typedef enum TensorType {
    TENSOR_STORAGE, /* float32 or bfloat16, by the precision */
    TENSOR_FLOAT32,
    TENSOR_BYTE
} TensorType;

/* A held tensor has room for the whole batch; the others live within one phase, and a backend that processes images in
 * groups needs room for one group per thread. */
typedef struct Tensor {
    TensorType type;
    int height, width, channels;
    size_t image_bytes; /* of one image; images are dense */
    bool held;
    int first_pass, last_pass; /* of a tensor that is not held: the passes between which it lives */
    size_t offset; /* held: in bytes, in the arena; else in scratch memory, to be multiplied by the images of a group */
} Tensor;

static inline size_t nn_tensor_elems(const Tensor *tensor, int images) {
    return (size_t)images * (size_t)(tensor->height * tensor->width) * (size_t)tensor->channels;
}

typedef enum PassKind {
    PASS_LOAD,                /* images -> float32 images tensor with the zero border of the first convolution */
    PASS_CONV_FORWARD,        /* input -> output, with bias and activation where the operator has them */
    PASS_CONV_FILTER,         /* input, output gradient -> partial filter (and bias) gradients */
    PASS_CONV_DATA,           /* output gradient -> input gradient */
    PASS_CONV_CLOSE,          /* closing: partial gradients -> flat gradient buffer */
    PASS_NORM_STATISTICS,     /* [input -> pooled: saved, index], partial sums of saved */
    PASS_NORM_CLOSE,          /* closing: sums -> mean and deviation, running statistics */
    PASS_NORM_APPLY,          /* saved -> output: normalise, activate, [pool, index], add the residual */
    PASS_NORM_REDUCE,         /* output gradient [+ skip gradient] -> activation gradient, partial sums */
    PASS_NORM_BACKWARD_CLOSE, /* closing: sums -> scale and bias gradients */
    PASS_NORM_BACKWARD,       /* activation gradient -> input gradient, through statistics and pool */
    PASS_NORM_RUNNING,        /* closing, evaluation: running statistics -> scale and shift */
    PASS_NORM_EVALUATE,       /* evaluation: input -> output in one pass by scale and shift */
    PASS_HEAD_EVALUATE,       /* evaluation: input -> logits of the job */
    PASS_HEAD_TRAIN,          /* input -> logits, loss, input gradient, partial linear gradient and totals */
    PASS_HEAD_CLOSE,          /* closing: linear gradient, totals */
    PASS_KINDS
} PassKind;

/* For example "conv forward". */
const char *nn_pass_name(PassKind kind);

/* One operator, with its operands: indices of tensors (-1: none) and offsets in the flat buffers (SIZE_MAX: none). */
typedef struct Op {
    NnNodeDesc node;
    int input, output;
    int residual; /* norm: the tensor that is added */
    int saved;    /* norm: what is normalised; the convolution's output, pooled if POOL_BEFORE_NORM */
    int index;    /* norm with a pool: which element of the window was the first maximum */
    int output_gradient, input_gradient;
    int skip_gradient;       /* norm: second addend of its output gradient, through a residual or a second reader */
    int activation_gradient; /* norm: gradient of the activation's argument; -1 if the backend recomputes it */
    bool add_skip_in_place;  /* norm: output_gradient must become the sum, since a residual passes it on */
    bool train_filters, train_bias;
    size_t weight, bias, scale; /* in the parameter and gradient buffers */
    size_t mean, variance;      /* in the statistics buffer */
} Op;

typedef struct Pass {
    PassKind kind;
    int op;
    int block; /* skipped in a step whose first_block is above this; forward passes: INT_MAX */
} Pass;

typedef struct Phase {
    int ranged, ranged_count; /* index of the first in the program's passes, and their number */
    int closing, closing_count;
    bool backward;       /* belongs to the backward half */
    size_t gradient_end; /* after this phase the gradients up to this offset are complete; 0: no new ones */
} Phase;

typedef struct Program {
    bool training;
    int batch;
    Precision precision;
    int op_count, tensor_count, pass_count, phase_count;
    Op *ops; /* owned, like the other arrays */
    Tensor *tensors;
    Pass *passes;
    Phase *phases;
    size_t arena_bytes; /* of held tensors */
} Program;

/* Lists the tensors that a pass reads or writes, each once; returns their number. */
#define PASS_MAX_TENSORS 9
int nn_program_tensors_of(const Program *program, const Pass *pass, int tensors[PASS_MAX_TENSORS]);

/* The inputs and outputs of a step or an evaluation; constant during it. */
typedef struct Job {
    const NnImages *images;
    const int64_t *labels;
    int count;
    const NnStepOptions *options; /* NULL in evaluation */
    float *logits;                /* evaluation */
} Job;

/* Whether this step runs the pass: false for those of frozen blocks. */
static inline bool nn_pass_enabled(const Job *job, const Pass *pass) {
    return job->options == NULL || pass->block >= job->options->first_block;
}

typedef struct Context Context; /* a backend's memory and library objects for one program */

typedef struct OpsTable {
    const char *name;
    /* Norms compute the gradient before the activation twice, in both passes that need it, instead of storing it: its
     * tensor exists only if a residual passes it on. */
    bool recomputes;
    /* A convolution may run fused with its norm, in the norm's pass: the convolution's input must live until then. */
    bool fuses;

    /* Resolves AUTO; fails for a precision that this machine does not support. */
    Status (*precision)(Precision requested, Precision *out);

    /* Zeroed memory for the flat buffers, and copies between any of them and the host. */
    Status (*buffer_create)(size_t elems, float **out);
    void (*buffer_destroy)(float *buffer);
    Status (*copy)(void *to, const void *from, size_t bytes);

    Status (*context_create)(NnModel *model, const Program *program, Context **out);
    void (*context_destroy)(Context *context);
    size_t (*context_bytes)(const Context *context);

    /* Before the first phase of a step or an evaluation: converts parameters to the form that the operators use. */
    Status (*begin)(Context *context, const Job *job);
    /* Runs all passes of one phase except those of frozen blocks. */
    Status (*run)(Context *context, const Job *job, const Phase *phase);
    Status (*take_totals)(Context *context, NnStepTotals *out);
    Status (*store_totals)(Context *context, NnStepTotals *to, const int32_t *index); /* NULL on the CPU */

    /* Starts timing each pass (seconds NULL), or gives the times (pass_count values) and stops. */
    Status (*profile)(Context *context, double *seconds);

    /* How a pass is computed; false if there is nothing to choose. Strings live as long as the context. */
    bool (*algorithm)(const Context *context, const Pass *pass, NnAlgorithm *out);
    void (*library)(const Context *context, NnPlanLibrary *out);

    /* Tests: the first `count` images of a held tensor to and from float32 host memory. */
    Status (*read)(Context *context, int tensor, int count, float *to);
    Status (*write)(Context *context, int tensor, int count, const float *from);
} OpsTable;

/* The backends' tables; STATUS_NOT_BUILT, with the remedy, if the backend is not in this build. */
Status nn_ops_cpu(const OpsTable **out);
Status nn_ops_cuda(const OpsTable **out);

#endif
