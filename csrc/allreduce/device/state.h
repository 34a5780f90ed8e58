/* The state of the engine that sums on GPUs with our own kernels, shared by its files. Private to this folder. */
#ifndef CGXFFCV_ALLREDUCE_DEVICE_STATE_H
#define CGXFFCV_ALLREDUCE_DEVICE_STATE_H

#include "allreduce/device/workspace.h"

/* An extent as kernels see it. */
typedef struct DeviceExtent {
    DeviceTiles tiles;     /* owned; the tiles themselves only until they are uploaded */
    DeviceTile *on_device; /* owned, in device memory */
    ExchangeExact exact;   /* instead of tiles, if nothing is quantised */
    ExchangePlan plan;
    ExchangeLevels levels; /* with two_level */
    bool one_shot, two_level;
    uint64_t wire_bytes; /* that this rank sends */
} DeviceExtent;

/* For runs whose messages the caller moves, instead of a workspace. */
typedef struct DeviceExternal {
    ExchangeState *state;           /* owned, in device memory */
    CommWindowStatus *status_words; /* owned, page-locked */
    uint64_t region_bytes;
    ExchangeWindow window; /* in the caller's memory, once that is bound */
} DeviceExternal;

typedef struct DeviceEngine {
    const AllreduceSetup *setup;  /* borrowed */
    ExchangeWorkspace *workspace; /* shared; NULL if the caller moves messages */
    DeviceExternal external;
    uint32_t *call;      /* owned, in device memory */
    float *residual;     /* owned, in device memory, of allreduce_fed_extent; NULL without error feedback, or if it is
                          * in 8 bits: */
    ResidualCodes codes; /* owned, one block in device memory */
    DeviceExtent extents[ALLREDUCE_MAX_EXTENTS];
} DeviceEngine;

/* ---- engine.c ---- */

/* The parameters of kernels, for the workspace's window or the external one; fills own->levels. */
ExchangePlan allreduce_device_plan(const DeviceEngine *engine, const AllreduceExtent *extent, DeviceExtent *own);
ExchangeRound allreduce_device_round(const DeviceEngine *engine, const DeviceExtent *extent, int number);
/* Copies an extent's tiles to device memory, and frees the host's. */
Status allreduce_device_upload_tiles(DeviceExtent *extent);
/* Launches a kernel of a round on the stream, once for each path that tiles take. */
Status allreduce_device_put(const DeviceEngine *engine, const DeviceExtent *extent, ExchangeKernel kernel,
                            const ExchangeRound *round, void *buffer, DeviceStream *stream);

/* ---- regions.c ---- */

/* The regions of an extent in the workspace's blocks; with two_level fills `levels`, too. */
ExchangeWindow allreduce_regions_of(const DeviceEngine *engine, const DeviceExtent *extent, ExchangeLevels *levels);

/* ---- levels.c ---- */

/* Enqueues a round of two levels on the stream. */
Status allreduce_levels_put(const DeviceEngine *engine, const DeviceExtent *extent, int number, void *buffer,
                            DeviceStream *stream);

/* ---- external.c ---- */

/* For a communicator without a connection to its ranks; one extent is supported. *fits is false if a message would be
 * too large. */
Status allreduce_external_create(DeviceEngine *engine, bool *fits);
void allreduce_external_destroy(DeviceEngine *engine);
/* Waits for a stream (or event) that holds such runs. */
Status allreduce_external_wait(const DeviceEngine *engine, DeviceStream *stream, DeviceEvent *event);

extern const AllreduceExternal allreduce_device_external;

/* ---- settings.c ---- */

/* As environment_switch and environment_whole ("KiB"). A malformed value also fails the other ranks, which would wait
 * for this one. */
Status allreduce_switch(Comm *comm, const char *variable, bool *on);
Status allreduce_limit_kib(Comm *comm, const char *variable, int64_t least, int64_t most, int64_t *kib);

/* ---- exact.c ---- */

/* Whether our kernels can do the sum, of which nothing is quantised; and whether they should, even if NCCL is
 * available. The second is collective. */
bool allreduce_exact_can(const AllreduceSetup *setup);
Status allreduce_exact_wanted(const AllreduceSetup *setup, bool *wanted);
bool allreduce_exact_asked(const AllreduceSetup *setup); /* by naming an algorithm */

/* Fills own->one_shot; then, from the window's room, own->exact and wire_bytes. */
void allreduce_exact_choose(const AllreduceSetup *setup, const AllreduceExtent *extent, DeviceExtent *own);
void allreduce_exact_cut(const AllreduceSetup *setup, const AllreduceExtent *extent, const ExchangeWindow *window,
                         DeviceExtent *own);

#endif
