/* The table of operators that both backends fill (nn/cpu: oneDNN and own loops; nn/cuda: cuDNN and own kernels).
 *
 * A program is an array of operators and a list of phases; a phase is a list of passes (one function of one operator)
 * between two batch-wide barriers, as batch statistics need them. A *ranged* pass looks at each image by itself; a
 * *closing* pass runs once, when all images have gone through the phase. How a phase is walked through is the
 * backend's choice: the CPU sends each thread with small groups of images through all ranged passes of a phase, so
 * that what one pass hands to the next stays in cache; CUDA runs each pass once over the whole batch. Nothing is
 * allocated after context_create.
 *
 * Tensors are channels-last: (image, row, column, channel). */
#ifndef CGXFFCV_NN_OPS_H
#define CGXFFCV_NN_OPS_H

#include "nn/model.h"

typedef enum TensorType {
    TENSOR_STORAGE, /* float32 or bfloat16, by the precision */
    TENSOR_FLOAT32,
    TENSOR_BYTE,
    TENSOR_TYPES
} TensorType;

/* A held tensor has room for the whole batch; the others live within one phase, and a backend that walks through it
 * in groups of images needs room for one group in each thread. */
typedef struct Tensor {
    TensorType type;
    int height, width, channels;
    size_t image_bytes; /* of one image; images are dense */
    bool held;
    int first_pass, last_pass; /* of a tensor that is not held: the passes between which it lives */
    size_t offset; /* held: bytes into the arena; else bytes into scratch memory, divided by the images of a group */
} Tensor;

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
    PASS_NORM_EVALUATE,       /* evaluation: input -> output in one go by scale and shift */
    PASS_HEAD_EVALUATE,       /* evaluation: input -> logits of the job */
    PASS_HEAD_TRAIN,          /* input -> logits, loss, input gradient, partial linear gradient and totals */
    PASS_HEAD_CLOSE,          /* closing: linear gradient, totals */
    PASS_KINDS
} PassKind;

/* "conv forward" and the like. */
const char *nn_pass_name(PassKind kind);

/* One operator, with what it reads and writes: indices of tensors (-1: none) and offsets in the flat buffers
 * (SIZE_MAX: none). */
typedef struct Op {
    NnNodeDesc node;
    int input, output;
    int residual; /* norm: the tensor that is added */
    int saved;    /* norm: what is normalised; the convolution's output, pooled if POOL_BEFORE_NORM */
    int index;    /* norm with a pool: which element of the window was the first maximum */
    int output_gradient, input_gradient;
    int skip_gradient;       /* norm: second addend of its output gradient, by way of a residual */
    int activation_gradient; /* norm: gradient of the activation's argument; -1 where the backend recomputes it */
    bool add_skip_in_place;  /* norm: output_gradient must become the sum, since a residual hands it on */
    bool train_filters, train_bias;
    size_t weight, bias, scale; /* in the parameter and gradient buffers */
    size_t mean, variance;      /* in the statistics buffer */
} Op;

typedef struct Pass {
    PassKind kind;
    int op;
    int block; /* skipped in a step whose first_block is above; forward passes: INT_MAX */
} Pass;

typedef struct Phase {
    int ranged, ranged_count; /* index of the first, number; in the program's passes */
    int closing, closing_count;
    bool backward;       /* belongs to the backward half */
    size_t gradient_end; /* after this phase the gradients before this offset are complete; 0: none new */
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

/* The tensors that a pass reads or writes, each once; how many. */
#define PASS_MAX_TENSORS 9
int nn_program_tensors_of(const Program *program, const Pass *pass, int tensors[PASS_MAX_TENSORS]);

/* What a step or an evaluation works on; constant during it. */
typedef struct Job {
    const NnImages *images;
    const int64_t *labels;
    int count;
    const NnStepOptions *options; /* NULL in evaluation */
    float *logits;                /* evaluation */
} Job;

typedef struct Context Context; /* a backend's memory and library objects for one program */

typedef struct OpsTable {
    const char *name;
    /* Norms make the gradient before the activation twice, in both passes that need it, instead of keeping it: its
     * tensor exists only where a residual hands it on. */
    bool recomputes;
    /* A convolution and its norm may run together when the norm's turn comes: what the one reads lives until then. */
    bool fuses;

    /* The precision that AUTO means here, or a refusal of one that this machine cannot run. */
    Status (*precision)(Precision wish, Precision *out);

    /* Zeroed memory for the flat buffers, and copies between any of them and the host. */
    Status (*buffer_create)(size_t elems, float **out);
    void (*buffer_destroy)(float *buffer);
    Status (*copy)(void *to, const void *from, size_t bytes);

    Status (*context_create)(NnModel *model, const Program *program, Context **out);
    void (*context_destroy)(Context *context);
    size_t (*context_bytes)(const Context *context);

    /* Before the first phase of a step or an evaluation: parameters into the form that the operators take. */
    Status (*begin)(Context *context, const Job *job);
    /* All passes of one phase but those of frozen blocks. */
    Status (*run)(Context *context, const Job *job, const Phase *phase);
    Status (*take_totals)(Context *context, NnStepTotals *out);
    Status (*store_totals)(Context *context, NnStepTotals *to, const int32_t *index); /* NULL on the CPU */

    /* Starts to count the time of each pass (seconds NULL), or gives it (pass_count values) and stops. */
    Status (*profile)(Context *context, double *seconds);

    /* How a pass computes; false where there is nothing to choose. Texts live as long as the context. */
    bool (*algorithm)(const Context *context, const Pass *pass, NnAlgorithm *out);
    void (*library)(const Context *context, NnPlanLibrary *out);

    /* Tests: the first `count` images of a held tensor to and from float32 host memory. */
    Status (*read)(Context *context, int tensor, int count, float *to);
    Status (*write)(Context *context, int tensor, int count, const float *from);
} OpsTable;

/* The tables; a backend that is not in this build gives STATUS_NOT_BUILT with the remedy. */
Status nn_ops_cpu(const OpsTable **out);
Status nn_ops_cuda(const OpsTable **out);

#endif
