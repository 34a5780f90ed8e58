/* The seam behind allreduce.h: an engine is a table of functions that carries runs out, over what all engines share.
 * The engines stand in a table in allreduce.c, and the first that serves a buffer does all its runs. */
#ifndef CGXFFCV_ALLREDUCE_ENGINE_H
#define CGXFFCV_ALLREDUCE_ENGINE_H

#include "allreduce/internal.h"

/* What changes from run to run. Engines read it during the run, from memory, so that a run can be recorded; with a
 * stream it is page-locked. */
typedef struct AllreduceRun {
    uint32_t call;
} AllreduceRun;

/* A prefix of the buffer that is reduced. */
typedef struct AllreduceExtent {
    int64_t elems;
    AllreducePlan *plan; /* owned */
} AllreduceExtent;

/* What an engine works on: does not change while the engine lives, and is borrowed until its destroy. */
typedef struct AllreduceSetup {
    Comm *comm; /* borrowed */
    AllreduceOptions options;
    bool exact;           /* nothing is quantised, whatever the layers' size */
    float *data;          /* borrowed: the buffer in device memory; NULL: buffers in host memory */
    DeviceStream *stream; /* borrowed; with data */
    AllreduceExtent extents[ALLREDUCE_MAX_EXTENTS];
    int extent_count;
    AllreduceRun *run; /* owned */
} AllreduceSetup;

#define ALLREDUCE_WHY_BYTES COMM_WHY_BYTES

typedef struct AllreduceEngine {
    bool recordable; /* told and put may be recorded in a graph */
    /* With *state NULL and STATUS_OK the engine does not serve, the same on all ranks, and `why` (ALLREDUCE_WHY_BYTES)
     * holds the reason; at first it holds that of the engine asked before, or "". */
    Status (*create)(const AllreduceSetup *setup, char *why, void **state);
    void (*destroy)(void *state); /* NULL is fine */
    /* As in allreduce.h. `told` NULL: not wanted. */
    Status (*told)(void *state, int64_t begin, int64_t end);
    Status (*put)(void *state, const AllreduceExtent *extent, void *buffer);
    Status (*wait)(void *state, DeviceStream *stream, DeviceEvent *event);
    /* Error feedback's, of the longest extent in host memory; NULL without. */
    float *(*residual)(void *state);
    AllreduceBytes (*bytes)(const void *state, const AllreduceExtent *extent);
    size_t (*explain)(const void *state, char *text, size_t bytes);
    /* This rank's device has failed: the others hear of it at once, and what waits for it ends. */
    void (*abort)(void *state, const char *message);
} AllreduceEngine;

extern const AllreduceEngine allreduce_host, allreduce_nccl;

#endif
