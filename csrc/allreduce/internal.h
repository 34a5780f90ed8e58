/* The plan, how a buffer is cut for the wire, and what the algorithms share. Private to this folder. */
#ifndef CGXFFCV_ALLREDUCE_INTERNAL_H
#define CGXFFCV_ALLREDUCE_INTERNAL_H

#include "allreduce/allreduce.h"

typedef struct AllreducePlan AllreducePlan;

/* A layer of the table, with everything decided. */
typedef struct Layer {
    char *name, *shape; /* owned; NULL for none */
    uint64_t hash;      /* of this and all layers before it, docs/WIRE.md */
    int64_t first, elems;
    int own_bits; /* what the table says for it alone; 0 for nothing */
    int64_t own_bucket;
    bool raw;             /* travels as it is */
    QuantSpec spec;       /* for raw layers only bucket_size counts */
    int64_t first_bucket; /* of the call */
    int64_t buckets;
    uint64_t quad; /* the first group of random numbers, docs/WIRE.md */
} Layer;

/* A run of buckets of one layer inside a slice. */
typedef struct Segment {
    int layer;
    int64_t first, elems; /* in the flat buffer */
    uint64_t quad;
    uint32_t offset, bytes; /* in the slice */
} Segment;

/* What travels in one slot: a contiguous range of the flat buffer. */
typedef struct Slice {
    int64_t first, elems;
    int64_t segment; /* the first of them */
    int segments;
    uint32_t bytes;
    uint64_t at; /* bytes of the slices before it */
} Slice;

/* A range of slices that one rank owns, sums or passes on. */
typedef struct Chunk {
    int64_t slice, slices;
    int64_t first, elems;
    uint64_t bytes; /* on the wire */
} Chunk;

/* A buffer cut into chunks at bucket boundaries, each cut into slices. All owned. */
typedef struct Partition {
    int chunks;
    Chunk *chunk;
    Slice *slice;
    Segment *segment;
    int64_t slices, segments, max_slice_elems;
    uint32_t max_slice_bytes;
} Partition;

/* Sent before every run; docs/WIRE.md. No padding: it is compared byte by byte. */
typedef struct Agreement {
    uint32_t magic, version;
    uint32_t call, op, type, algorithm;
    int64_t elems;
    uint32_t bits, layers;
    int64_t bucket_size;
    uint64_t layers_hash, seed;
    uint32_t codec, rounding, half_metadata, feedback;
    uint32_t slot_bytes, threads;
    uint32_t number, zero;
} Agreement;

struct AllreducePlan {
    Comm *comm; /* borrowed until allreduce_plan_destroy */
    AllreduceOptions options;
    AllreduceAlgorithm algorithm;
    char reason[160]; /* why it was chosen */
    AllreduceCosts costs;
    bool has_costs;
    Layer *layers; /* owned, [count] */
    int count;
    int64_t elems, buckets;
    bool any_quantised;
    AllreduceType wide_type; /* of sums: float32 for the three types that can be quantised, else the type itself */
    AllreduceType raw_type;  /* of unquantised elements on the wire */
    double scale;            /* by which elements are multiplied before they are added; a power of two */
    Partition partition;
    uint32_t number; /* among the plans of this communicator that are like it */
    uint32_t call;
    uint64_t wire_bytes, plain_bytes;
    Pool *pool;      /* owned; NULL for one thread */
    float *residual; /* owned, [elems]; NULL without error feedback */

    /* Scratch of one slice each, owned: a sum, scaled elements (with their residual), one in the tensor's 16-bit type,
     * one more sum for operations other than addition. */
    void *sum, *scaled;
    uint16_t *half;
    float *other;

    /* Partial sums in float32 where the buffer cannot hold them (16-bit types): the shard of two-level, two chunks in
     * turn for the ring. Owned; NULL where not needed. */
    float *partial[2];
    uint8_t *kept[2];      /* owned: slices to pass on as they came, for two-level and ring */
    uint8_t *stash;        /* owned: one early slice of each rank, where slots are scarcer than ranks */
    bool *stashed;         /* owned, [ranks] */
    int *ranks;            /* owned, [ranks]: scratch, receivers of a slice */
    int *members[2];       /* owned, [ranks]: all ranks, or this node's; this local rank's on all nodes */
    Chunk *shards;         /* owned, [ranks]: scratch of two-level */
    Agreement *agreements; /* owned, [ranks]: scratch, what each is about to do */
};

/* ---- plan.c, explain.c ---- */

Status allreduce_plan_create(Comm *comm, const AllreduceLayer *layers, int count, const AllreduceOptions *options,
                             AllreducePlan **out);
void allreduce_plan_destroy(AllreducePlan *plan);
Status allreduce_plan_run(AllreducePlan *plan, void *buffer);
int64_t allreduce_plan_elems(const AllreducePlan *plan);
AllreduceAlgorithm allreduce_plan_algorithm(const AllreducePlan *plan);
float *allreduce_plan_residual(AllreducePlan *plan);
size_t allreduce_plan_explain(const AllreducePlan *plan, char *text, size_t bytes);

/* ---- layout.c ---- */

/* Decides each layer and fills plan->layers, elems, buckets, any_quantised. */
Status layout_layers(AllreducePlan *plan, const AllreduceLayer *layers, int count);
void layout_layers_destroy(AllreducePlan *plan);

/* Cuts the call's buckets into `chunks` chunks, `outer` groups of equal share first if that is more than 1. */
Status layout_partition(const AllreducePlan *plan, int outer, int inner, Partition *out);
void layout_partition_destroy(Partition *partition);

/* ---- slice.c ---- */

size_t plan_item_bytes(const AllreducePlan *plan);

/* Elements on their way into a sum: `fresh` from the caller's buffer, which are scaled first, or sums so far. */
typedef struct Summands {
    const void *x; /* borrowed: the slice's first element */
    AllreduceType type;
    bool fresh;
} Summands;

/* Whether they can be read as a sum where they lie. */
bool slice_is_sum(const AllreducePlan *plan, AllreduceType type, bool fresh);

/* Writes a slice of summands (of the plan's type or its wide one). With `feedback` quantised elements get their
 * residual added before, and what is lost becomes the new residual. */
Status slice_encode_term(AllreducePlan *plan, const Slice *slice, Summands from, bool feedback, void *wire);

/* Writes a slice of sums (of the wide type), which is what all ranks decode in the end. */
Status slice_encode_result(AllreducePlan *plan, const Slice *slice, const void *sum, bool feedback, void *wire);

/* sum = accumulate (op) term, in the wide type; `accumulate` NULL for the first term, and it may be `sum`. */
Status slice_add_term(AllreducePlan *plan, const Slice *slice, const void *wire, const void *accumulate, void *sum);

/* The same for the last term, with the result rounded and divided into `to` of the plan's type. */
Status slice_add_last(AllreducePlan *plan, const Slice *slice, const void *wire, const void *accumulate, void *to);

/* sum = accumulate (op) elements at hand; with `feedback` and the residual of quantised elements. */
Status slice_add_own(AllreducePlan *plan, const Slice *slice, Summands own, bool feedback, const void *accumulate,
                     void *sum);

/* Decodes results into `to` of the plan's type. */
Status slice_decode_result(AllreducePlan *plan, const Slice *slice, const void *wire, void *to);

/* ---- reduce.c ---- */

/* to[i] = a[i] (op) b[i]; AVERAGE adds. `to` may be `a` or `b`. For float32, float64 and integers. */
void reduce_combine(AllreduceType type, AllreduceOp op, const void *a, const void *b, void *to, int64_t elems);

/* Divides float64 elements in place. */
void reduce_divide(void *x, int64_t elems, double divisor);

/* ---- the algorithms; `buffer` is the whole flat buffer ---- */

/* A group of ranks that reduces: `rank[me]` is this one. */
typedef struct Group {
    const int *rank; /* borrowed, [size] */
    int size, me;
} Group;

/* Scatter-reduce of the chunks, member g owning `chunk[g]`, and then, with `gather`, all-gather of the results. */
typedef struct Exchange {
    Group group;
    const Chunk *chunk; /* borrowed, [group.size] */
    const uint8_t *x;   /* borrowed: summands from element `x_first` of the flat buffer on, of `type` */
    int64_t x_first;
    AllreduceType type;
    bool fresh; /* as in Summands */
    bool feedback;
    bool gather;
    uint8_t *to; /* borrowed, from element `to_first` on: results with gather, else sums of the wide type */
    int64_t to_first;
    uint8_t *kept; /* gather: the slices' bytes of all chunks in order, from the first chunk's on; NULL: not kept */
} Exchange;

Status exchange_run(AllreducePlan *plan, const Exchange *exchange);
Status one_shot_run(AllreducePlan *plan, void *buffer);
Status ring_run(AllreducePlan *plan, void *buffer);
Status two_level_run(AllreducePlan *plan, void *buffer);

/* ---- transfer.c ---- */

/* What a slice is called on its way: the run and its number in the partition. */
uint64_t transfer_tag(const AllreducePlan *plan, int64_t slice_index);

/* A slice that came must be this one. */
Status transfer_check(const AllreducePlan *plan, const CommSlice *got, const Slice *expected, int64_t slice_index);

Status transfer_publish_to_group(AllreducePlan *plan, const Group *group, const CommSlot *slot, uint32_t bytes,
                                 uint64_t tag, int lane);

/* Numbers the plan among those that are like it. */
Status transfer_number(AllreducePlan *plan);

/* The ranks compare what they are about to do. */
Status transfer_agree(const AllreducePlan *plan);

/* ---- choose.c, explain.c ---- */

/* Fills plan->algorithm and reason; ARGUMENT if the wish cannot be had. */
Status choose_algorithm(AllreducePlan *plan);

/* Seconds that the cost table predicts for a call of `elems` float32 elements; 0 if it does not know. */
double cost_predict(const AllreduceCosts *costs, AllreduceAlgorithm algorithm, double elems);

/* Fills plan->wire_bytes and plain_bytes. */
void count_bytes(AllreducePlan *plan);

/* Whether every node has the same number of ranks. */
bool nodes_are_equal(const Comm *comm);

#endif
