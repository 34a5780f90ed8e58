/* A workspace: the window of a communicator, with its state, shared by all plans of that communicator on GPUs, whose
 * runs come one after the other. Private to this folder. */
#ifndef CGXFFCV_ALLREDUCE_DEVICE_WORKSPACE_H
#define CGXFFCV_ALLREDUCE_DEVICE_WORKSPACE_H

#include "allreduce/device/exchange.h"

/* Memory for what one rank writes for another: two halves, for even and odd rounds, each with `parts` parts of data,
 * followed by as many of flags. */
typedef struct ExchangeBlock {
    uint8_t *at; /* NULL: there is none */
    uint64_t half_bytes;
    int parts;
    bool far; /* in host memory */
} ExchangeBlock;

typedef struct ExchangeWorkspace {
    CommWindow *window;   /* owned */
    ExchangeState *state; /* owned, in device memory */
    uint8_t *own;         /* owned, in device memory: a part of data, for what stays with this rank */
    CommWindowKind kind;
    uint64_t part_bytes; /* of data in a part */
    uint32_t part_flags; /* words of flags in a part */
    int inside;          /* parts of a block between ranks that reach each other in place */
    /* private to workspace.c */
    const Comm *comm; /* borrowed */
    DeviceEvent *ran; /* owned: recorded after the run that was enqueued last */
    uint32_t number;
    int users;
    struct ExchangeWorkspace *next;
} ExchangeWorkspace;

/* Where this rank writes for another, and where another has written for this one. */
ExchangeBlock allreduce_workspace_outgoing(const ExchangeWorkspace *workspace, int rank);
ExchangeBlock allreduce_workspace_incoming(const ExchangeWorkspace *workspace, int rank);

/* Called around the kernels of a run, which waits for the previous one, perhaps on another stream. The order of
 * captured runs is up to whoever launches the graph. */
Status allreduce_workspace_begin_run(ExchangeWorkspace *workspace, DeviceStream *stream);
Status allreduce_workspace_end_run(ExchangeWorkspace *workspace, DeviceStream *stream);

/* Collective. *out is NULL on all ranks if there cannot be one, with the reason in `why` (ALLREDUCE_WHY_BYTES). */
Status allreduce_workspace_join(Comm *comm, ExchangeWorkspace **out, char *why);
void allreduce_workspace_leave(ExchangeWorkspace *workspace); /* NULL does nothing */

#endif
