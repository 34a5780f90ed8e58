/* The CPU backend's memory for one program, shared by its passes.
 *
 * The batch is split into chunks, a chunk into groups: a chunk is the unit of work of a thread and of partial sums, so
 * that results do not depend on the number of threads; a group goes through all passes of a phase while its data is in
 * cache. */
#ifndef CGXFFCV_NN_CPU_CONTEXT_H
#define CGXFFCV_NN_CPU_CONTEXT_H

#include "nn/cpu/conv.h"
#include "nn/cpu/kernels.h"
#include "nn/ops.h"

/* The images that a ranged pass works on, and on which thread. */
typedef struct Group {
    Context *context;
    const Job *job;
    int thread, chunk;
    int first, count;           /* images */
    int next_first, next_count; /* images of the thread's next group, 0 if there is none */
    const Pass *fetching;       /* the pass that prefetches the next group: the last convolution of the phase */
    const Phase *phase;
    int room;          /* images that a scratch tensor of this phase has room for */
    bool begins, ends; /* the first, the last group of its chunk */
} Group;

typedef Status (*RangedPass)(const Group *group, int op);
typedef Status (*ClosingPass)(Context *context, const Job *job, int op);

/* An operator's state in this backend; which members are set depends on its kind. */
typedef struct OpState {
    Conv *forward, *data, *filter; /* owned */
    float *partials;               /* owned: `chunks` of partial_elems; convolutions use the context's shared ones */
    size_t partial_elems;
    float *packed;    /* owned; stem: weights (kernel, kernel, in, rounded out channels), then the bias */
    NormTerms terms;  /* point into `floats` */
    float *deviation; /* likewise; norm: 1/sqrt(variance + eps) */
    float *floats;    /* owned */
    double *doubles;  /* owned; norm: per chunk, see norm_op.c */
} OpState;

struct Context {
    NnModel *model;         /* borrowed until nn_cpu_context_destroy */
    const Program *program; /* likewise */
    const Kernels *kernels; /* static */
    int threads, chunks;    /* chunks: of a full batch, which has the most */
    int *rooms;             /* owned: the largest number of images in a group, by phase */
    OpState *states;        /* owned, one per operator */
    char *arena, *scratch;  /* owned: held tensors; scratch_bytes per thread */
    size_t scratch_bytes;
    size_t tensors_bytes, library_bytes, sum_bytes, row_bytes; /* parts of the scratch memory of a thread */
    float *shared_partials;                                    /* owned; `chunks` of shared_elems */
    size_t shared_elems;
    NnStepTotals *partial_totals, totals; /* owned: by chunk; since take_totals */
    int64_t *pass_ns;                     /* owned; while profiling: threads x passes */
    size_t bytes;                         /* allocated */
};

Status nn_cpu_context_create(NnModel *model, const Program *program, Context **out);
void nn_cpu_context_destroy(Context *context);

/* The number of chunks of `count` images, and the first image of a chunk. */
int nn_cpu_context_chunks(int count);
int nn_cpu_context_chunk_begin(int count, int chunk);

/* The group's first image in this tensor, and the group's maps in it. */
void *nn_cpu_group_tensor(const Group *group, int tensor);
Maps nn_cpu_group_maps(const Group *group, int tensor);

/* Parts of the calling thread's scratch memory: for the library, for one partial filter gradient, and for the pass's
 * own rows and single images. */
void *nn_cpu_group_library_scratch(const Group *group);
float *nn_cpu_group_sum_scratch(const Group *group);
void *nn_cpu_group_row_scratch(const Group *group);

/* Lists the numbers of images in the groups of a full batch in the phase with this pass, descending; returns how many
 * there are, 0 if the program has no such pass. */
int nn_cpu_context_group_sizes(const Context *context, PassKind kind, int op, int sizes[CONV_MAX_SIZES]);

#define CONTEXT_MAX_TENSORS (8 * NN_MAX_NODES) /* program.c makes at most this many */

/* Lists the held tensors that the phase accesses in the next group. */
void nn_cpu_context_ahead(const Group *group, ConvAhead *ahead);

/* Allocates zeroed memory and adds it to the context's bytes. */
Status nn_cpu_context_alloc(Context *context, size_t count, size_t size, void *out);

/* In conv_op.c, stem_op.c, norm_op.c, head_op.c: creation of an operator's state; passes. */
Status nn_cpu_conv_op_create(Context *context, int op);
Status nn_cpu_norm_op_create(Context *context, int op);
Status nn_cpu_stem_op_create(Context *context, int op);
Status nn_cpu_head_op_create(Context *context, int op);
Status nn_cpu_stem_op_pack(Context *context, int op);

Status nn_cpu_pass_load(const Group *group, int op);
Status nn_cpu_pass_conv_forward(const Group *group, int op);
Status nn_cpu_pass_conv_filter(const Group *group, int op);
Status nn_cpu_pass_conv_data(const Group *group, int op);
Status nn_cpu_pass_stem_forward(const Group *group, int op);
Status nn_cpu_pass_stem_backward(const Group *group, int op);
Status nn_cpu_pass_norm_statistics(const Group *group, int op);
Status nn_cpu_pass_norm_apply(const Group *group, int op);
Status nn_cpu_pass_norm_reduce(const Group *group, int op);
Status nn_cpu_pass_norm_backward(const Group *group, int op);
Status nn_cpu_pass_norm_evaluate(const Group *group, int op);
Status nn_cpu_pass_head_train(const Group *group, int op);
Status nn_cpu_pass_head_evaluate(const Group *group, int op);

Status nn_cpu_close_conv(Context *context, const Job *job, int op);
Status nn_cpu_close_stem(Context *context, const Job *job, int op);
Status nn_cpu_close_norm(Context *context, const Job *job, int op);
Status nn_cpu_close_norm_backward(Context *context, const Job *job, int op);
Status nn_cpu_close_norm_running(Context *context, const Job *job, int op);
Status nn_cpu_close_head(Context *context, const Job *job, int op);

#endif
