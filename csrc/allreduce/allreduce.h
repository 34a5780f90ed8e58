/* Allreduce of a flat buffer of layers over the ranks of a communicator, quantised or exact.
 *
 * An Allreduce is created once from the layer table and run at every step, in place. After each run the buffers of all
 * ranks are equal bit for bit. Layers of one dimension, layers below `layer_min_size`, integers and all operations
 * other than SUM and AVERAGE travel unquantised, in the same call. docs/WIRE.md specifies every byte. Which engine does
 * the work (allreduce/engine.h) is decided at creation: for buffers in device memory, kernels that write into each
 * other's windows if something is quantised, NCCL if nothing is; otherwise the CPU. */
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
    ALLREDUCE_MIN = 2,     /* NaN propagates, in both */
    ALLREDUCE_MAX = 3,
    ALLREDUCE_PROD = 4,
    ALLREDUCE_OPS
} AllreduceOp;

typedef enum AllreduceAlgorithm {
    ALLREDUCE_AUTO = 0,
    ALLREDUCE_ONE_SHOT = 1,  /* everyone quantises once and sends to all */
    ALLREDUCE_SRA = 2,       /* scatter, reduce at the owner of a chunk, all-gather */
    ALLREDUCE_RING = 3,      /* quantises again at every hop */
    ALLREDUCE_TWO_LEVEL = 4, /* reduce within the node, SRA between nodes, all-gather within the node */
    ALLREDUCE_EXACT = 5,     /* SRA with nothing quantised */
    ALLREDUCE_ALGORITHMS
} AllreduceAlgorithm;

#define ALLREDUCE_UNCOMPRESSED 32 /* `bits` of what is not quantised */

/* How the residual (what quantisation has lost, to be added at the next run) is kept until then: */
typedef enum AllreduceFeedback {
    ALLREDUCE_NO_FEEDBACK = 0,  /* not at all */
    ALLREDUCE_FEEDBACK_F32 = 1, /* in float32 */
    ALLREDUCE_FEEDBACK_I8 = 2,  /* in 8 bits, with an exponent per bucket (quant/residual.h) */
    ALLREDUCE_FEEDBACKS
} AllreduceFeedback;

/* One layer of the flat buffer; layers follow each other without gaps. */
typedef struct AllreduceLayer {
    const char *name;    /* equal on all ranks; borrowed for the call that takes it; may be NULL */
    const char *shape;   /* as text; likewise */
    int64_t elems;       /* >= 0 */
    int dims;            /* 1: not quantised unless `bits` says so; 0: unknown, counts as 2 */
    int bits;            /* 0: the plan's; 1..8 or 32, which override the rules for small layers */
    int64_t bucket_size; /* 0: the plan's */
} AllreduceLayer;

/* The cost of a whole call in seconds: a latency, plus costs per element (of four bytes in memory) and per byte of one
 * copy of the buffer on the wire. Measured by allreduce_measure, equal on all ranks. */
typedef struct AllreduceLine {
    double latency, element, byte; /* >= 0; all 0 if not measured */
} AllreduceLine;

typedef struct AllreduceCosts {
    AllreduceLine lines[ALLREDUCE_ALGORITHMS];
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
    QuantScale scale;   /* AUTO with QUANT_ROTATED: MSE with error feedback, else UNBIASED */
    AllreduceAlgorithm algorithm;
    const AllreduceCosts *costs; /* for AUTO; NULL: a rule by size and topology. Borrowed for the call */
    AllreduceFeedback error_feedback;
    uint64_t seed;    /* of stochastic rounding; equal on all ranks */
    int threads;      /* that quantise; >= 1 */
    double timeout_s; /* of a run; <= 0: the communicator's */
} AllreduceOptions;

/* The flat buffer. */
#define ALLREDUCE_MAX_EXTENTS 8
typedef struct AllreduceBuffer {
    const AllreduceLayer *layers; /* borrowed for the call that takes it */
    int layer_count;
    /* Runs may cover a prefix; these are the lengths that will be used, in elements, each ending with a layer; the
     * first is the longest. Borrowed for the call; NULL: a single one, of all layers. */
    const int64_t *extents;
    int extent_count;
    bool on_device; /* the buffers of runs are in the memory of the calling thread's GPU, else in the host's */
    /* With on_device: the one buffer of all runs, and the stream on which it is written and read; both borrowed until
     * allreduce_destroy. NULL: every run names its own. */
    void *data;
    DeviceStream *stream;
    bool compares; /* the ranks compare before every run what they are about to do; else, on GPUs, once at
                    * creation */
} AllreduceBuffer;

typedef struct Allreduce Allreduce;

/* float32, AVERAGE, 4 bits, buckets of 1024, layer_min_size 1024, maxmin to nearest, AUTO, one thread. */
AllreduceOptions allreduce_defaults(void);

/* All ranks create the same Allreduces in the same order. Not collective for buffers in host memory; in device memory
 * it is, and overwrites `data`. `comm` is borrowed until allreduce_destroy. ARGUMENT names the layer or option. */
Status allreduce_create(Comm *comm, const AllreduceBuffer *buffer, const AllreduceOptions *options, Allreduce **out);
void allreduce_destroy(Allreduce *allreduce);

/* Reduces the first `elems` elements (one of the extents; of the options' type, any alignment) of `buffer` in place.
 * Collective. A difference in what the ranks are about to do fails on all of them (TRANSPORT) before any data moves.
 * After a failure the contents of the buffer are unspecified and the communicator is broken. In device memory the run
 * is ordered on `stream` (NULL: the default stream): it sums what earlier work there writes, and later work there finds
 * the sums; the buffer must stay until then. With `data`, buffer and stream are those of allreduce_create. In host
 * memory `stream` is ignored. */
Status allreduce_put(Allreduce *allreduce, void *buffer, int64_t elems, DeviceStream *stream);

/* With `data`: the work now on its stream completes the elements [begin, end), so that their exchange may begin. The
 * first elements may still change until allreduce_put, where a caller marks a run that is not to be used. In ascending
 * order from 0, without gaps, before the allreduce_put of the same run; or not at all. */
Status allreduce_told(Allreduce *allreduce, int64_t begin, int64_t end);

/* Use instead of device_stream_synchronize, or with an event device_event_synchronize, wherever a stream holds runs:
 * this also ends when a rank is lost. */
Status allreduce_wait(Allreduce *allreduce, DeviceStream *stream, DeviceEvent *event);

/* Whether runs may be captured in a graph; otherwise allreduce_put waits for the stream. */
bool allreduce_recordable(const Allreduce *allreduce);

/* From the next run on, a GPU's kernels have at most this many blocks; 0: as many as there is room for at once. Kernels
 * occupy their multiprocessors while they wait for other ranks: concurrent work needs others. Ranks may differ. */
void allreduce_set_blocks(Allreduce *allreduce, int blocks);

/* Elements of the longest extent. */
int64_t allreduce_elems(const Allreduce *allreduce);

/* Bytes that this rank sends in a run over `elems` elements, counting a slice once for each rank that it goes to; and
 * the same if nothing were quantised. 0 if `elems` is not an extent. */
typedef struct AllreduceBytes {
    uint64_t wire, plain;
} AllreduceBytes;
AllreduceBytes allreduce_bytes(const Allreduce *allreduce, int64_t elems);

/* The algorithm used for the longest extent: never AUTO. */
AllreduceAlgorithm allreduce_algorithm(const Allreduce *allreduce);

/* What was chosen and why, what travels how, what it is predicted to cost: several lines. Writes at most `bytes`
 * including the final NUL; returns the length of the whole text. */
size_t allreduce_explain(const Allreduce *allreduce, char *text, size_t bytes);

/* The number of the next run: it keys stochastic rounding, and all ranks must have the same. If it is saved and
 * restored with the residual, a job continues bit for bit. */
uint32_t allreduce_call(const Allreduce *allreduce);
Status allreduce_set_call(Allreduce *allreduce, uint32_t call); /* not while runs are under way */

/* Whether there is a residual of the extent that ran last. */
bool allreduce_feeds_back(const Allreduce *allreduce);

/* The residual of error feedback (this rank's own) of the extent that ran last, in float32 however it is kept: its
 * elements, 0 if there is none; its address if it is kept as float32 in host memory (borrowed until allreduce_destroy),
 * else NULL; a copy of its current state, not while a run on a GPU is under way. */
int64_t allreduce_residual_elems(const Allreduce *allreduce);
float *allreduce_residual_at(const Allreduce *allreduce);
Status allreduce_residual_copy(const Allreduce *allreduce, float *to);

/* Restores a residual that another Allreduce gave, perhaps over a shorter extent. Kept in 8 bits it is rounded to them,
 * which leaves one from 8 bits with the same buckets unchanged. ARGUMENT if one of its numbers is not finite.
 */
Status allreduce_restore(Allreduce *allreduce, const float *residual, int64_t elems);

/* ---- runs whose bytes the caller moves ----
 *
 * For ranks that their communicator does not connect (comm_create_disconnected): a run in stages, between which the
 * caller moves messages with collectives of its own. Messages and results are those of docs/WIRE.md. On one buffer,
 * without another run in between, and in this order:
 *   INSIDE (two_level): allreduce_stage_encode, all-to-all of the messages among the ranks of this node, in the order
 *     of local ranks, allreduce_stage_reduce;
 *   ACROSS (one_shot): allreduce_stage_encode, all-gather of the one message;
 *   ACROSS (else): allreduce_stage_encode, all-to-all among all ranks (two_level: those with this local rank, in the
 *     order of nodes), allreduce_stage_reduce, all-gather of the results among the same ranks, and with two_level of
 *     what was gathered among the ranks of this node;
 *   allreduce_stage_finish with what was gathered. */
typedef enum AllreduceStage { ALLREDUCE_INSIDE, ALLREDUCE_ACROSS } AllreduceStage;

/* What this rank moves in a stage. No members: the stage is skipped. */
typedef struct AllreduceMessages {
    int members, me;    /* who exchanges: how many, and which of them this rank is */
    uint64_t total;     /* bytes of all messages that it sends */
    uint64_t from_each; /* of the message of each other member to it; one_shot: of each member's */
    uint64_t result;    /* of a result, padded so that all have the same; 0: none */
} AllreduceMessages;
Status allreduce_stage_messages(const Allreduce *allreduce, AllreduceStage stage, AllreduceMessages *out);

/* Bytes of the message to a member; 0 to itself. */
uint64_t allreduce_stage_bytes(const Allreduce *allreduce, AllreduceStage stage, int member);

/* Writes the messages one after the other, in the order of members. */
Status allreduce_stage_encode(Allreduce *allreduce, AllreduceStage stage, const void *buffer, void *messages);

/* Takes the messages of the other members, one after the other; writes the result, if the stage has one. TRANSPORT if a
 * rank is in another run, or its message cannot be what it wrote. */
Status allreduce_stage_reduce(Allreduce *allreduce, AllreduceStage stage, void *buffer, const void *messages,
                              void *result);

/* TRANSPORT, naming the rank, before anything is decoded, if a result cannot be what it wrote. */
Status allreduce_stage_finish(Allreduce *allreduce, void *buffer, const void *gathered);

/* The same on a GPU (one_shot, sra), in steps that are enqueued on a stream, with the caller's collectives between them
 * on the same: PUSH; all-gather of row `rank` of the window to rows 0 .. (one_shot), or all-to-all of the outgoing
 * regions to rows 0 .. ; then, not with one_shot, REDUCE and all-gather of row ranks + rank to rows ranks .. ; GATHER.
 * The caller compares the ranks' tables beforehand: messages have no header here. */
typedef enum AllreduceStep { ALLREDUCE_PUSH, ALLREDUCE_REDUCE, ALLREDUCE_GATHER } AllreduceStep;

/* Device memory that the caller provides: a window of that many rows, and outgoing regions, one per rank. */
typedef struct AllreduceSpace {
    uint64_t region_bytes; /* of a row, and of a region; a multiple of 256 */
    int rows, outgoing;
} AllreduceSpace;

/* ARGUMENT if this does not run on a GPU, or its messages are not moved by the caller. */
Status allreduce_external_space(const Allreduce *allreduce, AllreduceSpace *out);
/* Both borrowed until another call or allreduce_destroy. */
Status allreduce_external_bind(Allreduce *allreduce, void *window, void *outgoing);
Status allreduce_external_step(Allreduce *allreduce, AllreduceStep step, void *buffer, DeviceStream *stream);

/* What a rank has been asked for, in addition to the text that describes it. */
typedef struct AllreduceCall {
    uint64_t number; /* of what it has made for that before; 0: nothing */
    uint64_t made;   /* in: the greatest such number; out: the greatest of all ranks */
    bool same;       /* out: all ranks have the same number */
} AllreduceCall;

/* For callers whose every call may ask for something else: fails with TRANSPORT on every rank, naming a rank and the
 * first item (they are separated by "; ") that differs there, unless all ranks have the same text.
 * Collective. */
Status allreduce_compare_calls(Comm *comm, const char *text, double timeout_s, AllreduceCall *call);

/* "float32", "sum", "sra", "int8" and so on, for messages and for Python; NULL if there is no such number.
 */
const char *allreduce_type_name(int type);
const char *allreduce_op_name(int op);
const char *allreduce_algorithm_name(int algorithm);
const char *allreduce_feedback_name(int feedback);
size_t allreduce_type_bytes(AllreduceType type);

/* Fails with TRANSPORT on every rank if `bytes` of `data` are not the same on all of them (compares XXH64 hashes).
 * Collective. */
Status allreduce_check_replicas(Comm *comm, const void *data, size_t bytes);

#endif
