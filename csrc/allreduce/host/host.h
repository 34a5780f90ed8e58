/* The engine that runs on the CPU, and what its algorithms share. Private to this folder. */
#ifndef CGXFFCV_ALLREDUCE_HOST_HOST_H
#define CGXFFCV_ALLREDUCE_HOST_HOST_H

#include "allreduce/engine.h"
#include "allreduce/residual.h"

typedef struct HostEngine {
    const AllreduceSetup *setup; /* borrowed */
    char why[ALLREDUCE_WHY_BYTES];
    void *copy;          /* owned, page-locked: of a buffer in device memory; NULL for those in host memory */
    DeviceEvent *copied; /* owned, likewise: `copy` has been read */
    float *residual;     /* owned, of allreduce_fed_extent; NULL without error feedback, and if it is in 8 bits: */
    ResidualCodes codes; /* owned, one block */
    Pool *pool;          /* owned; NULL for one thread */

    /* The run at hand: borrowed from the setup. */
    const AllreduceExtent *extent;
    const WireMap *map;

    /* Scratch of one slice each, owned: a sum, elements that are scaled (with their residual) or widened, what
     * encoding lost, and elements in the tensor's 16-bit type. */
    void *sum, *scaled;
    float *lost;
    float *fed; /* the residual of a part in 8 bits, as float32; NULL otherwise */
    uint16_t *half;

    /* Partial sums in float32 if the buffer cannot hold them (wire_sums_in_place): the shard of two-level, two
     * alternating chunks for the ring. Owned; NULL if not needed. */
    float *partial[2];
    uint8_t *kept[2];         /* owned: slices to pass on as received, for two-level and ring */
    uint8_t *stash;           /* owned: one early slice of each rank, if there are fewer slots than ranks */
    bool *stashed;            /* owned, [ranks] */
    int *ranks;               /* owned, [ranks]: receivers of a slice */
    int *members[2];          /* owned, [ranks]: all ranks, or this node's; this local rank's on all nodes */
    WireChunk *shards;        /* owned, [ranks]: of two-level */
    AllreduceHeader *headers; /* owned, [ranks]: what each is about to do */
} HostEngine;

/* A slice's elements in the whole flat buffer. */
static inline uint8_t *host_elements(const HostEngine *host, uint8_t *buffer, const WireSlice *slice) {
    return buffer + slice->first * (int64_t)allreduce_type_bytes(host->map->type);
}

/* ---- slice.c ---- */

/* What goes into a sum: `fresh` elements of the caller's buffer, which are scaled and enter their codecs' domains
 * first, or partial sums, which are values in these domains. */
typedef struct Summands {
    const void *x; /* borrowed: the slice's first element */
    AllreduceType type;
    bool fresh;
} Summands;

/* Whether an addition can read them in place as the sum so far. */
bool allreduce_is_sum(const HostEngine *host, Summands from);

/* Writes a slice of summands (of the buffer's type or its wide one). With `feedback`, quantised elements get their
 * residual added first, and what is lost becomes the new residual. */
Status allreduce_encode_term(HostEngine *host, const WireSlice *slice, Summands from, bool feedback, void *wire);

/* Writes a slice of sums (of the wide type), which is what all ranks decode in the end. */
Status allreduce_encode_result(HostEngine *host, const WireSlice *slice, const void *sum, bool feedback, void *wire);

/* sum = before (op) term, in the wide type; `before` is empty (x NULL) for the first term, else a sum as
 * allreduce_is_sum says, perhaps `sum` itself. */
Status allreduce_add_term(HostEngine *host, const WireSlice *slice, const void *wire, Summands before, void *sum);

/* The same for the last term and a sum of the wide type (NULL: none), divided and rounded into `to`, of the buffer's
 * type. */
Status allreduce_add_last(HostEngine *host, const WireSlice *slice, const void *wire, const void *accumulate, void *to);

/* sum = accumulate (op) own elements, likewise; with `feedback`, also the residual of quantised elements. */
Status allreduce_add_own(HostEngine *host, const WireSlice *slice, Summands own, bool feedback, const void *accumulate,
                         void *sum);

/* TRANSPORT if a slice, or bytes that must be zero, cannot be what another rank wrote. */
Status allreduce_inspect(const HostEngine *host, const WireSlice *slice, const void *wire);
Status allreduce_inspect_padding(const uint8_t *bytes, uint64_t count);

/* Decodes results into `to`, of the buffer's type. */
Status allreduce_decode_result(HostEngine *host, const WireSlice *slice, const void *wire, void *to);

/* ---- combine.c ---- */

/* to[i] = a[i] (op) b[i]; AVERAGE adds. `to` may be `a` or `b`. For float32, float64 and integers. */
void allreduce_combine(AllreduceType type, AllreduceOp op, const void *a, const void *b, void *to, int64_t elems);

/* Divides float64 elements in place. */
void allreduce_divide(void *x, int64_t elems, double divisor);

/* ---- the algorithms; `buffer` is the whole flat buffer ---- */

/* A group of ranks that reduce together: `rank[me]` is this one. */
typedef struct Group {
    const int *rank; /* borrowed, [size] */
    int size, me;
} Group;

/* Reduce-scatter of the chunks, member g owning `chunk[g]`, and then, with `gather`, all-gather of the results. */
typedef struct Exchange {
    Group group;
    const WireChunk *chunk; /* borrowed, [group.size] */
    const uint8_t *x;       /* borrowed: summands of `type`, from element (fresh) or value `x_first` on */
    int64_t x_first;
    AllreduceType type;
    bool fresh; /* as in Summands */
    bool feedback;
    bool gather;
    uint8_t *to; /* borrowed: with `gather` results, from element `to_first` on, else sums, from that value on */
    int64_t to_first;
    uint8_t *kept; /* with `gather`: the bytes of the slices of all chunks, in order; NULL: not kept */
} Exchange;

Status allreduce_exchange(HostEngine *host, const Exchange *exchange);
Status allreduce_one_shot(HostEngine *host, void *buffer);
Status allreduce_ring(HostEngine *host, void *buffer);
Status allreduce_two_level(HostEngine *host, void *buffer);

/* stages.c */
extern const AllreduceStages allreduce_host_stages;

/* ---- transfer.c ---- */

/* The tag of a slice: the run, and its number in the map. */
uint64_t allreduce_tag(const HostEngine *host, int64_t slice_index);

/* Checks that a received slice is this one. */
Status allreduce_check_slice(const HostEngine *host, const CommSlice *got, const WireSlice *expected,
                             int64_t slice_index);

Status allreduce_publish_to_group(HostEngine *host, const Group *group, const CommSlot *slot, uint32_t bytes,
                                  uint64_t tag, int lane);

#endif
