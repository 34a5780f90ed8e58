/* The interface behind allreduce.h: an engine is a table of functions that carries out runs, on top of what all engines
 * share. The engines are listed in allreduce.c, and the first that serves a buffer does all its runs. */
#ifndef CGXFFCV_ALLREDUCE_ENGINE_H
#define CGXFFCV_ALLREDUCE_ENGINE_H

#include "allreduce/map.h"

/* What changes from run to run. Engines read it from memory during the run, so that a run can be captured in a graph;
 * for buffers in device memory it is page-locked. */
typedef struct AllreduceRun {
    uint32_t call;
} AllreduceRun;

/* A prefix of the buffer that is reduced, and how. */
typedef struct AllreduceExtent {
    int64_t elems;
    WireMap *map; /* owned */
    AllreduceAlgorithm algorithm;
    char reason[160];           /* why it was chosen */
    AllreduceFeedback feedback; /* none if nothing is quantised */
    uint32_t number;            /* among the equal extents made on this communicator */
    AllreduceBytes bytes;       /* that the algorithm sends */
} AllreduceExtent;

/* The link between the ranks, as far as a rule depends on it. */
typedef enum AllreduceLink {
    ALLREDUCE_LINK_ANY, /* host memory, or not known (yet) */
    ALLREDUCE_LINK_BUS  /* GPUs through host memory, on a bus that is as fast in both directions at once */
} AllreduceLink;

/* What an engine works on: does not change while the engine lives, and is borrowed until it is destroyed. */
typedef struct AllreduceSetup {
    Comm *comm; /* borrowed */
    AllreduceOptions options;
    AllreduceCosts costs;   /* options.costs if that is not NULL */
    AllreduceLayer *layers; /* owned: all of the buffer's */
    char *texts;            /* owned: their names and shapes */
    bool exact;             /* nothing is quantised, whatever the layers' size */
    bool on_device, compares;
    AllreduceLink link;   /* for which the algorithms were chosen */
    void *data;           /* borrowed: the only buffer in device memory; NULL: each run has its own */
    DeviceStream *stream; /* borrowed; with data */
    AllreduceExtent extents[ALLREDUCE_MAX_EXTENTS]; /* the first is the longest */
    int extent_count;
    AllreduceRun *run; /* owned */
    uint32_t next;     /* the number of the next run to be put: ahead of run->call while runs are under way */
    int blocks;        /* that a kernel of a run may have on a GPU; 0: as many as there is room for */
} AllreduceSetup;

#define ALLREDUCE_WHY_BYTES COMM_WHY_BYTES

/* Runs in stages (allreduce.h); arguments have been checked. */
typedef struct AllreduceStages {
    Status (*encode)(void *state, const AllreduceExtent *extent, AllreduceStage stage, const void *buffer,
                     void *messages);
    Status (*reduce)(void *state, const AllreduceExtent *extent, AllreduceStage stage, void *buffer,
                     const void *messages, void *result);
    Status (*finish)(void *state, const AllreduceExtent *extent, void *buffer, const void *gathered);
} AllreduceStages;

/* Runs on a GPU whose messages the caller moves; arguments have been checked. */
typedef struct AllreduceExternal {
    AllreduceSpace (*space)(const void *state);
    Status (*bind)(void *state, void *window, void *outgoing);
    Status (*step)(void *state, AllreduceStep number, void *buffer, DeviceStream *stream);
} AllreduceExternal;

typedef struct AllreduceEngine {
    bool recordable; /* told and put may be captured in a graph */
    bool agrees;     /* put begins with allreduce_agree */
    bool counts;     /* runs increment run->call themselves, when they end */
    /* With *state NULL and STATUS_OK the engine does not serve the buffer, the same on all ranks, and `why`
     * (ALLREDUCE_WHY_BYTES) holds the reason; on entry it holds that of the engine tried before, or "". An engine whose
     * put does not begin with allreduce_agree compares here what the ranks are about to do (allreduce_compare). Only
     * here may the setup change (allreduce_settle). */
    Status (*create)(AllreduceSetup *setup, char *why, void **state);
    void (*destroy)(void *state); /* NULL does nothing */
    /* As in allreduce.h. `told` NULL: not wanted; it is called only if the setup has `data`. */
    Status (*told)(void *state, int64_t begin, int64_t end);
    Status (*put)(void *state, const AllreduceExtent *extent, void *buffer, DeviceStream *stream);
    Status (*wait)(void *state, DeviceStream *stream, DeviceEvent *event);
    /* With `counts`: sets the number of the next run, in run->call, too; waits for runs that are under way. */
    Status (*set_call)(void *state, uint32_t call);
    /* NULL, or for the residual of allreduce_fed_extent: its address, NULL unless it is kept as float32 in host memory;
     * copying its first elements from and to the engine. Not while runs are under way. */
    float *(*residual)(const void *state);
    Status (*read)(const void *state, float *residual, int64_t elems);
    Status (*restore)(void *state, const float *residual, int64_t elems);
    /* NULL, or: what a run sends, if that differs from what the extent says. */
    AllreduceBytes (*bytes)(const void *state, const AllreduceExtent *extent);
    size_t (*explain)(const void *state, char *text, size_t bytes);
    /* NULL, or: ends what must end besides the communicator, already aborted, when this rank's device has failed. */
    void (*abort)(void *state, const char *message);
    const AllreduceExternal *external; /* NULL: callers cannot move its messages on a GPU */
    const AllreduceStages *stages;     /* NULL: callers cannot move its messages in stages */
} AllreduceEngine;

extern const AllreduceEngine allreduce_device, allreduce_device_fallback, allreduce_host, allreduce_nccl;

/* ---- allreduce.c ---- */

const AllreduceSetup *allreduce_setup_of(const Allreduce *allreduce);

/* ---- setup.c ---- */

/* Not collective. What it has made is freed with allreduce_setup_free, also after a failure. */
Status allreduce_setup_fill(AllreduceSetup *setup, Comm *comm, const AllreduceBuffer *buffer,
                            const AllreduceOptions *options);
void allreduce_setup_free(AllreduceSetup *setup);

/* Chooses again, now that the link is known: the same on all ranks, before anything is made for the extents. */
Status allreduce_settle(AllreduceSetup *setup, AllreduceLink link);

/* NULL if no extent has that many elements. */
const AllreduceExtent *allreduce_find_extent(const AllreduceSetup *setup, int64_t elems);

/* The longest with error feedback; its residual serves the others, too, whose layers are its first ones. NULL: none.
 */
const AllreduceExtent *allreduce_fed_extent(const AllreduceSetup *setup);

/* ---- agree.c ---- */

/* The header of docs/WIRE.md. No padding: it is compared byte by byte. */
typedef struct AllreduceHeader {
    uint32_t magic, version;
    uint32_t call, op, type, algorithm;
    int64_t elems;
    uint32_t bits, layers;
    int64_t bucket_size;
    uint64_t layers_hash, seed;
    uint32_t codec, rounding, half_metadata, feedback;
    uint32_t slot_bytes, threads;
    uint32_t number, zero;
} AllreduceHeader;

/* Fills extent->number. */
Status allreduce_number(const AllreduceSetup *setup, AllreduceExtent *extent);

/* The ranks compare what they are about to do; `room` is scratch, [ranks]. Between comm_begin and comm_end. */
Status allreduce_agree(const AllreduceSetup *setup, const AllreduceExtent *extent, AllreduceHeader *room);

/* What this rank is about to do, as the others compare it; and a check of what `rank` has sent against that. */
AllreduceHeader allreduce_header(const AllreduceSetup *setup, const AllreduceExtent *extent);
Status allreduce_check_header(const AllreduceSetup *setup, const AllreduceExtent *extent, const void *theirs, int rank);

/* allreduce_agree for `count` extents, as an operation of its own. */
Status allreduce_compare(const AllreduceSetup *setup, const AllreduceExtent *extents, int count);

/* ---- stages.c ---- */

/* The slices that a member of a stage owns: those that travel to it as terms. */
WireChunk allreduce_stage_chunk(const AllreduceSetup *setup, const AllreduceExtent *extent, AllreduceStage stage,
                                int member);
AllreduceMessages allreduce_stage_measure(const AllreduceSetup *setup, const AllreduceExtent *extent,
                                          AllreduceStage stage);
/* Bytes of the message to a member. */
uint64_t allreduce_stage_message(const AllreduceSetup *setup, const AllreduceExtent *extent, AllreduceStage stage,
                                 int member);
/* The rank that is that member. */
int allreduce_stage_rank(const AllreduceSetup *setup, const AllreduceExtent *extent, AllreduceStage stage, int member);

/* ---- choose.c, costs.c, explain.c ---- */

/* Whether all nodes have the same number of ranks. */
bool allreduce_nodes_are_equal(const Comm *comm);

/* Fills extent->algorithm and reason, from the table as it is before an algorithm is chosen; ARGUMENT if the requested
 * one is not possible. */
Status allreduce_choose(const AllreduceSetup *setup, const WireTable *table, AllreduceExtent *extent);

/* Fills extent->bytes. */
Status allreduce_count_bytes(const AllreduceSetup *setup, AllreduceExtent *extent);

/* Seconds that the cost lines predict for a run over `call_elems` elements; 0 if they do not say. */
double allreduce_predict(const AllreduceSetup *setup, AllreduceAlgorithm algorithm, int64_t call_elems);

/* The longest extent, of which a run sends `sent`, in words, or only what was chosen for it, and why; as
 * allreduce_explain. */
size_t allreduce_describe(const AllreduceSetup *setup, AllreduceBytes sent, char *text, size_t bytes);
size_t allreduce_describe_choice(const AllreduceSetup *setup, char *text, size_t bytes);

#endif
