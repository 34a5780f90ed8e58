/* The state of the engine of quantised sums on GPUs, as engine.c and carried.c share it. Private to this folder. */
#ifndef CGXFFCV_ALLREDUCE_DEVICE_STATE_H
#define CGXFFCV_ALLREDUCE_DEVICE_STATE_H

#include "allreduce/device/hall.h"

/* An extent as kernels see it. */
typedef struct DeviceExtent {
    DeviceTiles tiles;     /* owned; the tiles themselves only while they are made */
    DeviceTile *on_device; /* owned, in device memory */
    ExchangeExact exact;   /* in place of tiles, where nothing is quantised */
    ExchangePlan plan;
    ExchangeLevels levels; /* with two_level */
    bool one_shot, two_level;
    uint64_t wire_bytes; /* that this rank sends */
} DeviceExtent;

/* Of runs whose messages the caller moves, in place of a hall. */
typedef struct DeviceCarried {
    ExchangeState *state;   /* owned, in device memory */
    CommWindowSigns *signs; /* owned, page-locked */
    uint64_t region_bytes;
    ExchangeWindow window; /* in the caller's memory, once that is there */
} DeviceCarried;

typedef struct DeviceEngine {
    const AllreduceSetup *setup; /* borrowed */
    ExchangeHall *hall;          /* a share; NULL where messages are carried */
    DeviceCarried carried;
    uint32_t *call;      /* owned, in device memory */
    float *residual;     /* owned, in device memory, of allreduce_fed_extent; NULL without error feedback, and in 8
                          * bits: */
    ResidualCodes codes; /* owned, one block in device memory */
    DeviceExtent extents[ALLREDUCE_MAX_EXTENTS];
} DeviceEngine;

/* ---- engine.c ---- */

/* What kernels go by: in the hall's window, or in the carried one; fills own->levels. */
ExchangePlan allreduce_device_plan(const DeviceEngine *engine, const AllreduceExtent *extent, DeviceExtent *own);
ExchangeRound allreduce_device_round(const DeviceEngine *engine, const DeviceExtent *extent, int number);
/* Copies an extent's tiles to where kernels read them, and frees the host's. */
Status allreduce_device_upload_tiles(DeviceExtent *extent);
/* Puts a kernel of a round on the stream, for each way that tiles go. */
Status allreduce_device_put(const DeviceEngine *engine, const DeviceExtent *extent, ExchangeKernel kernel,
                            const ExchangeRound *round, void *buffer, DeviceStream *stream);

/* ---- regions.c ---- */

/* Of an extent in the hall's blocks; with two_level `levels` too. */
ExchangeWindow allreduce_regions_of(const DeviceEngine *engine, const DeviceExtent *extent, ExchangeLevels *levels);

/* ---- levels.c ---- */

/* Puts a round of two levels on the stream. */
Status allreduce_levels_put(const DeviceEngine *engine, const DeviceExtent *extent, int number, void *buffer,
                            DeviceStream *stream);

/* ---- carried.c ---- */

/* For a communicator without a way to its ranks, of which one extent can be carried: *fits false where a message would
 * be too large. */
Status allreduce_carried_create(DeviceEngine *engine, bool *fits);
void allreduce_carried_destroy(DeviceEngine *engine);
/* Where such messages are, for an explanation; and the wait for a stream. */
Status allreduce_carried_wait(const DeviceEngine *engine, DeviceStream *stream, DeviceEvent *event);

extern const AllreduceCarriage allreduce_carried;

/* ---- exact.c ---- */

/* Whether kernels can take the sum, of which nothing is quantised; and whether they are to, although NCCL may be there.
 * The second is collective. */
bool allreduce_exact_can(const AllreduceSetup *setup);
Status allreduce_exact_wanted(const AllreduceSetup *setup, bool *wanted);
bool allreduce_exact_asked(const AllreduceSetup *setup); /* by the name of an algorithm */

/* Fills own->one_shot; then, with a row's bytes, own->exact and wire_bytes. */
void allreduce_exact_choose(const AllreduceSetup *setup, const AllreduceExtent *extent, DeviceExtent *own);
void allreduce_exact_cut(const AllreduceSetup *setup, const AllreduceExtent *extent, const ExchangeWindow *window,
                         DeviceExtent *own);

#endif
