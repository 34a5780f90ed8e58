/* The kernels of the exchange between GPUs, and what they go by. exchange.cuh has who does what; exchange_none.c is the
 * twin of a build without CUDA. Private to this folder. */
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
    uint32_t epoch;  /* the rounds that are over, of all runs; only grows */
    uint32_t ticket; /* blocks of a run's last kernel that are done */
    uint32_t begun;  /* places of a sum that is exact that blocks have asked for */
    uint32_t failed; /* 1: a kernel has given up; nothing is stored any more */
} ExchangeState;

/* A place for the tiles that one rank has for another in a round, and for a flag of each. */
typedef struct ExchangeRegion {
    uint8_t *at;
    uint32_t *flags;
    uint32_t half; /* bytes from what is for even rounds to what is for odd ones; 0: one for both */
    int32_t rank;  /* to whom it goes; from whom it comes */
} ExchangeRegion;

#define EXCHANGE_RESULTS EXCHANGE_MAX_RANKS

/* Regions, as kernels want them. What is this rank's own from beginning to end, its terms with one-shot or its results,
 * has a region that needs no halves, since kernels of one stream write and read it, and no flags. */
typedef struct ExchangeWindow {
    ExchangeRegion to[EXCHANGE_MAX_RANKS];  /* [owners]: terms for the rank that adds them */
    ExchangeRegion all[EXCHANGE_MAX_RANKS]; /* [sinks]: what is for all, this rank too: results, or one-shot's terms */
    ExchangeRegion from[2 * EXCHANGE_MAX_RANKS]; /* by row: terms of a member, and, from EXCHANGE_RESULTS on, results of
                                                  * an owner */
    int32_t owners, sinks;
    uint32_t far;          /* a bit for each row that stands in host memory */
    uint64_t region_bytes; /* of tiles */
    uint32_t flags;        /* likewise, words */
} ExchangeWindow;

/* What does not change from run to run of a plan; kernels get it as it is when they are launched. */
typedef struct ExchangePlan {
    ExchangeWindow window;
    ExchangeState *state;
    CommWindowSigns *signs;
    bool carried;        /* the caller moves what is for others: there are no flags, and of what is for all, one copy */
    CommWindowPost post; /* what is for other nodes is handed over to */
    AllreduceRun *run;   /* the host's copy of *call */
    uint32_t *call;
    float *residual;     /* NULL: no error feedback, or in 8 bits: */
    ResidualCodes codes; /* likewise */
    const DeviceTile *tiles;
    int32_t ranks,
        rank;     /* those who add each other's terms (with two levels one of each node), this one's place there */
    int32_t self; /* its number in the communicator */
    bool one_shot, stochastic, half_metadata;
    bool wide; /* what travels as it is is float32, whatever the type */
    QuantType type;
    uint64_t seed, timeout_ns;
    float scale, unscaled; /* of elements before they are added; 1 / scale */
    bool divides;          /* sums are divided by `divisor`; else multiplied, which gives the same bits */
    float divisor;
} ExchangePlan;

/* What two levels need beside it. The shard of this rank is that of its place in its node, and has a part for each
 * node, with an owner of its own. */
typedef struct ExchangeLevels {
    ExchangeRegion terms[EXCHANGE_MAX_RANKS]; /* [part, seat]: of a rank of this node, for a part */
    ExchangeRegion pass[EXCHANGE_MAX_RANKS];  /* [part, seat]: where a part's results go, to a rank of this node */
    int32_t seats, seat;                      /* ranks of this node, this one's place */
    int32_t shard;                            /* the owner of its first part */
} ExchangeLevels;

/* One launch: tiles [begin, end) of round `number` of a run, of which this rank owns [own_begin, own_end). */
typedef struct ExchangeRound {
    int64_t begin, end, own_begin, own_end;
    uint32_t number;
    uint32_t rounds; /* of the run, with its last kernel; else 0 */
    int64_t blocks;  /* at most; 0: as many as there is room for */
} ExchangeRound;

/* A run in which nothing is quantised, in one launch (exact.cu). */
typedef struct ExchangeExact {
    int64_t elems;
    uint32_t places, rounds; /* places: for a block each */
    uint32_t slice;          /* bytes of a place in a row of a window; a multiple of 16 */
    bool spread;             /* each rank adds a part and hands it on; else everyone adds everything */
} ExchangeExact;

typedef enum ExchangeKernel { EXCHANGE_PUSH, EXCHANGE_REDUCE, EXCHANGE_GATHER } ExchangeKernel;

/* Puts a kernel on the stream: one function for each codec, which passes by the tiles of the quick way, and for those
 * one for windows near and one for windows far away. */
typedef Status (*ExchangeLaunch)(ExchangeKernel kernel, QuantType type, const ExchangePlan *plan,
                                 const ExchangeRound *round, void *buffer, DeviceStream *stream);
#define EXCHANGE_LAUNCH(name)                                                                                          \
    Status name(ExchangeKernel kernel, QuantType type, const ExchangePlan *plan, const ExchangeRound *round,           \
                void *buffer, DeviceStream *stream)
#define X(codec, word) EXCHANGE_LAUNCH(allreduce_exchange_##word);
QUANT_CODECS(X)
#undef X
EXCHANGE_LAUNCH(allreduce_exchange_quick);
EXCHANGE_LAUNCH(allreduce_exchange_quick_far);

/* Of two levels the kernels between nodes, which take all tiles of the round: PUSH those of this rank's shard that
 * other ranks own, REDUCE its own; and what passes on the results of the former. levels.cuh has who does what. */
typedef Status (*ExchangeLevelsLaunch)(ExchangeKernel kernel, QuantType type, const ExchangePlan *plan,
                                       const ExchangeLevels *levels, const ExchangeRound *round, const void *buffer,
                                       DeviceStream *stream);
#define EXCHANGE_LEVELS(name)                                                                                          \
    Status name(ExchangeKernel kernel, QuantType type, const ExchangePlan *plan, const ExchangeLevels *levels,         \
                const ExchangeRound *round, const void *buffer, DeviceStream *stream)
#define X(codec, word) EXCHANGE_LEVELS(allreduce_levels_##word);
QUANT_CODECS(X)
#undef X
Status allreduce_levels_pass(const ExchangePlan *plan, const ExchangeLevels *levels, const ExchangeRound *round,
                             DeviceStream *stream);

/* `limit`: blocks at most, of which ranks may have different numbers; 0: one for each place. */
Status allreduce_exchange_exact(QuantType type, const ExchangePlan *plan, const ExchangeExact *run, int limit,
                                void *buffer, DeviceStream *stream);

#endif
