/* Allreduce of a flat buffer of layers over the ranks of a communicator, quantised or exact.
 *
 * A plan is made once from the layer table and run at every step, in place. After each run the buffers of all ranks
 * are equal bit for bit. Layers of one dimension, layers below `layer_min_size`, integers and every operation other
 * than SUM and AVERAGE travel as they are, in the same call. docs/WIRE.md states every byte. */
#ifndef CGXFFCV_ALLREDUCE_ALLREDUCE_H
#define CGXFFCV_ALLREDUCE_ALLREDUCE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "comm/comm.h"
#include "quant/quantize.h"

typedef enum AllreduceType {
    ALLREDUCE_F32 = 0, /* the first three are QuantType's */
    ALLREDUCE_F16 = 1,
    ALLREDUCE_BF16 = 2,
    ALLREDUCE_F64 = 3,
    ALLREDUCE_I8 = 4,
    ALLREDUCE_U8 = 5,
    ALLREDUCE_I16 = 6,
    ALLREDUCE_U16 = 7,
    ALLREDUCE_I32 = 8,
    ALLREDUCE_U32 = 9,
    ALLREDUCE_I64 = 10,
    ALLREDUCE_U64 = 11,
    ALLREDUCE_TYPES
} AllreduceType;

typedef enum AllreduceOp {
    ALLREDUCE_SUM = 0,
    ALLREDUCE_AVERAGE = 1, /* floating point only */
    ALLREDUCE_MIN = 2,     /* NaN wins, in both */
    ALLREDUCE_MAX = 3,
    ALLREDUCE_PROD = 4,
    ALLREDUCE_OPS
} AllreduceOp;

typedef enum AllreduceAlgorithm {
    ALLREDUCE_AUTO = 0,
    ALLREDUCE_ONE_SHOT = 1,  /* everyone quantises once and sends to all */
    ALLREDUCE_SRA = 2,       /* scatter, reduce at the owner of a chunk, all-gather */
    ALLREDUCE_RING = 3,      /* quantises again at every hop */
    ALLREDUCE_TWO_LEVEL = 4, /* reduce inside the node, SRA between nodes, all-gather inside the node */
    ALLREDUCE_EXACT = 5,     /* SRA with nothing quantised */
    ALLREDUCE_ALGORITHMS
} AllreduceAlgorithm;

#define ALLREDUCE_UNCOMPRESSED 32 /* `bits` of what is not quantised */

/* One layer of the flat buffer; layers follow each other without gaps. */
typedef struct AllreduceLayer {
    const char *name;    /* equal on all ranks; borrowed for the call that takes it; may be NULL */
    const char *shape;   /* the same, as text */
    int64_t elems;       /* >= 0 */
    int dims;            /* 1 or less: not quantised unless `bits` says so; 0 where unknown counts as 2 */
    int bits;            /* 0: the plan's; 1..8 or 32, which win over the rules on small layers */
    int64_t bucket_size; /* 0: the plan's */
} AllreduceLayer;

/* Measured times of a whole call, by algorithm and size, equal on all ranks (allreduce_measure). */
#define ALLREDUCE_COST_SIZES 4
typedef struct AllreduceCosts {
    int64_t elems[ALLREDUCE_COST_SIZES];                        /* float32 elements, ascending */
    double seconds[ALLREDUCE_ALGORITHMS][ALLREDUCE_COST_SIZES]; /* 0 where not measured */
} AllreduceCosts;

/* Start from allreduce_defaults. */
typedef struct AllreduceOptions {
    AllreduceType type;
    AllreduceOp op;
    int bits;               /* 1..8, or 32 */
    int64_t bucket_size;    /* elements, >= 1 */
    int64_t layer_min_size; /* layers with fewer elements are not quantised */
    QuantCodec codec;
    QuantRounding rounding;
    bool half_metadata; /* for float16 and bfloat16 */
    int spikes;         /* 0: quantize_default_spikes, with QUANT_SPIKES */
    AllreduceAlgorithm algorithm;
    const AllreduceCosts *costs; /* for AUTO; NULL: a rule by size and topology. Borrowed for the call */
    bool error_feedback;         /* what quantisation lost is kept in float32 and added at the next run */
    uint64_t seed;               /* of stochastic rounding; equal on all ranks */
    int threads;                 /* that quantise; >= 1 */
    double timeout_s;            /* of a run; <= 0: the communicator's */
} AllreduceOptions;

typedef struct AllreducePlan AllreducePlan;

/* float32, AVERAGE, 4 bits, buckets of 1024, layer_min_size 1024, maxmin to nearest, AUTO, one thread. */
AllreduceOptions allreduce_defaults(void);

/* Not collective, but all ranks make plans of the same table and options in the same order. `comm` is borrowed until
 * allreduce_plan_destroy. STATUS_ARGUMENT names the layer or option. */
Status allreduce_plan_create(Comm *comm, const AllreduceLayer *layers, int count, const AllreduceOptions *options,
                             AllreducePlan **out);
void allreduce_plan_destroy(AllreducePlan *plan);

/* Reduces `buffer` (allreduce_elems elements of the plan's type, any alignment) in place. Collective: before any data
 * moves the ranks compare what they are about to do, and a difference fails on all of them (TRANSPORT). After a failure
 * the contents of the buffer are unspecified and the communicator is broken. */
Status allreduce_run(AllreducePlan *plan, void *buffer);

int64_t allreduce_elems(const AllreducePlan *plan);

/* Bytes that this rank sends in one run, a slice that goes to several ranks counted for each; and the same if nothing
 * were quantised. */
uint64_t allreduce_wire_bytes(const AllreducePlan *plan);
uint64_t allreduce_plain_bytes(const AllreducePlan *plan);

/* The algorithm that runs: never AUTO. */
AllreduceAlgorithm allreduce_algorithm(const AllreducePlan *plan);

/* What was chosen and why, what travels how, what it is predicted to cost: several lines. Writes at most `bytes`
 * including the end; returns the length it would have had. */
size_t allreduce_explain(const AllreducePlan *plan, char *text, size_t bytes);

/* The number of the next run: it keys stochastic rounding, and all ranks must have the same. Saved and restored with
 * the residual, a run continues bit for bit. */
uint32_t allreduce_call(const AllreducePlan *plan);
void allreduce_set_call(AllreducePlan *plan, uint32_t call);

/* The residual of error feedback, allreduce_elems float32; NULL without. Borrowed until the plan is destroyed. */
float *allreduce_residual(AllreducePlan *plan);

/* Measures the algorithms on this communicator (collective, some 100 ms); the same table everywhere. */
Status allreduce_measure(Comm *comm, AllreduceCosts *out);

/* "float32", "sum", "sra" and so on: for messages and for the Python surface. */
const char *allreduce_type_name(AllreduceType type);
const char *allreduce_op_name(AllreduceOp op);
const char *allreduce_algorithm_name(AllreduceAlgorithm algorithm);
size_t allreduce_type_bytes(AllreduceType type);

/* Fails with TRANSPORT on every rank if `bytes` of `data` are not the same on all of them (compares XXH64 sums).
 * Collective. */
Status allreduce_check_replicas(Comm *comm, const void *data, size_t bytes);

#endif
