/* The kernels of the exchange between GPUs, and their parameters. exchange.cuh says who does what; exchange_none.c is
 * the stub for a build without CUDA. Private to this folder. */
#ifndef CGXFFCV_ALLREDUCE_DEVICE_EXCHANGE_H
#define CGXFFCV_ALLREDUCE_DEVICE_EXCHANGE_H

#include "allreduce/device/tiles.h"
#include "allreduce/engine.h"
#include "allreduce/residual.h"
#include "comm/window.h"

#define EXCHANGE_MAX_RANKS 16
#define EXCHANGE_ALIGNMENT 256 /* of regions */

/* What all runs on one window share, in device memory. */
typedef struct ExchangeState {
    uint32_t epoch;  /* the completed rounds of all runs; only grows */
    uint32_t ticket; /* blocks of a run's last kernel that are done */
    uint32_t begun;  /* places of an exact sum that blocks have asked for */
    uint32_t failed; /* 1: a kernel has given up; nothing is stored any more */
} ExchangeState;

/* Memory for the tiles that one rank has for another in a round, and for a flag per tile. */
typedef struct ExchangeRegion {
    uint8_t *at;
    uint32_t *flags;
    uint32_t half; /* bytes from the half for even rounds to that for odd ones; 0: one for both */
    int32_t rank;  /* that it goes to, or comes from */
} ExchangeRegion;

#define EXCHANGE_RESULTS EXCHANGE_MAX_RANKS

/* Regions, as kernels use them. Data that stays with this rank, its terms with one-shot or its results, has a region
 * without halves, since kernels of one stream write and read it, and without flags. */
typedef struct ExchangeWindow {
    ExchangeRegion to[EXCHANGE_MAX_RANKS];  /* [owners]: terms for the rank that adds them */
    ExchangeRegion all[EXCHANGE_MAX_RANKS]; /* [sinks]: what is for all, this rank too: results, or one-shot's terms */
    ExchangeRegion from[2 * EXCHANGE_MAX_RANKS]; /* by row: terms of a member, and, from EXCHANGE_RESULTS on, results of
                                                  * an owner */
    int32_t owners, sinks;
    uint32_t far;          /* a bit for each row that is in host memory */
    uint64_t region_bytes; /* of tiles */
    uint32_t flags;        /* likewise, words */
} ExchangeWindow;

/* What does not change from run to run of a plan; passed to kernels by value. */
typedef struct ExchangePlan {
    ExchangeWindow window;
    ExchangeState *state;
    CommWindowStatus *status_words;
    bool external; /* the caller moves what is for others: no flags, and only one copy of what is for all */
    CommWindowSendQueue send_queue; /* the queue for what goes to other nodes */
    AllreduceRun *run;              /* the host's copy of *call */
    uint32_t *call;
    float *residual;     /* NULL: no error feedback, or in 8 bits: */
    ResidualCodes codes; /* zeros: no error feedback, or in float32 */
    const DeviceTile *tiles;
    int32_t ranks,
        rank;     /* those that add each other's terms (with two levels one of each node); this one's number there */
    int32_t self; /* its number in the communicator */
    bool one_shot, stochastic, half_metadata;
    bool wide; /* unquantised elements travel as float32, whatever the type */
    QuantType type;
    uint64_t seed, timeout_ns;
    float scale, unscaled; /* of elements before they are added; 1 / scale */
    bool divides;          /* sums are divided by `divisor`; else multiplied, which gives the same bits */
    float divisor;
} ExchangePlan;

/* What two levels need in addition. This rank's shard is that of its local rank, and has a part for each node, with an
 * owner of its own. */
typedef struct ExchangeLevels {
    ExchangeRegion terms[EXCHANGE_MAX_RANKS]; /* [part, local_rank]: of a rank of this node, for a part */
    ExchangeRegion pass[EXCHANGE_MAX_RANKS]; /* [part, local_rank]: where a part's results go, to a rank of this node */
    int32_t local_size, local_rank;          /* ranks of this node; this one's local rank */
    int32_t shard;                           /* the owner of its first part */
} ExchangeLevels;

/* One launch: tiles [begin, end) of round `number` of a run, of which this rank owns [own_begin, own_end). */
typedef struct ExchangeRound {
    int64_t begin, end, own_begin, own_end;
    uint32_t number;
    uint32_t rounds; /* of the run, if this is its last kernel; else 0 */
    int64_t blocks;  /* at most; 0: as many as there is room for */
} ExchangeRound;

/* A run in which nothing is quantised, in one launch (exact.cu). */
typedef struct ExchangeExact {
    int64_t elems;
    uint32_t places, rounds; /* places: one per block */
    uint32_t slice;          /* bytes of a place in a row of a window; a multiple of 16 */
    bool spread;             /* each rank adds a part and sends it to all; else everyone adds everything */
} ExchangeExact;

typedef enum ExchangeKernel { EXCHANGE_PUSH, EXCHANGE_REDUCE, EXCHANGE_GATHER } ExchangeKernel;

/* Launches a kernel on the stream: one function per codec, which skips the tiles of the fast path, and for these one
 * for near windows (in GPU memory) and one for far ones (in host memory). */
typedef Status (*ExchangeLaunch)(ExchangeKernel kernel, const ExchangePlan *plan, const ExchangeRound *round,
                                 void *buffer, DeviceStream *stream);
#define EXCHANGE_LAUNCH(name)                                                                                          \
    Status name(ExchangeKernel kernel, const ExchangePlan *plan, const ExchangeRound *round, void *buffer,             \
                DeviceStream *stream)
#define X(codec, word) EXCHANGE_LAUNCH(allreduce_exchange_##word);
QUANT_CODECS(X)
#undef X
EXCHANGE_LAUNCH(allreduce_exchange_quick);
EXCHANGE_LAUNCH(allreduce_exchange_quick_far);

/* The kernels of two levels between nodes, which take all tiles of the round: PUSH those of this rank's shard that
 * other ranks own, REDUCE its own; and the one that passes on the former's results. levels.cuh says who does what. */
typedef Status (*ExchangeLevelsLaunch)(ExchangeKernel kernel, const ExchangePlan *plan, const ExchangeLevels *levels,
                                       const ExchangeRound *round, const void *buffer, DeviceStream *stream);
#define EXCHANGE_LEVELS(name)                                                                                          \
    Status name(ExchangeKernel kernel, const ExchangePlan *plan, const ExchangeLevels *levels,                         \
                const ExchangeRound *round, const void *buffer, DeviceStream *stream)
#define X(codec, word) EXCHANGE_LEVELS(allreduce_levels_##word);
QUANT_CODECS(X)
#undef X
Status allreduce_levels_pass(const ExchangePlan *plan, const ExchangeLevels *levels, const ExchangeRound *round,
                             DeviceStream *stream);

/* `limit`: the most blocks, which may differ between ranks; 0: one for each place. */
Status allreduce_exchange_exact(const ExchangePlan *plan, const ExchangeExact *run, int limit, void *buffer,
                                DeviceStream *stream);

#endif
