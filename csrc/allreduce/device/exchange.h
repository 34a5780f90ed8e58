/* The kernels of the exchange between GPUs, and what they go by. exchange.cuh has who does what; exchange_none.c is the
 * twin of a build without CUDA. Private to this folder. */
#ifndef CGXFFCV_ALLREDUCE_DEVICE_EXCHANGE_H
#define CGXFFCV_ALLREDUCE_DEVICE_EXCHANGE_H

#include "allreduce/device/tiles.h"
#include "allreduce/engine.h"
#include "allreduce/residual.h"
#include "comm/window.h"

#define EXCHANGE_MAX_RANKS 16

/* What all runs on one window share, in device memory. */
typedef struct ExchangeState {
    uint32_t epoch;  /* the rounds that are over, of all runs; only grows */
    uint32_t ticket; /* blocks of a run's last kernel that are done */
    uint32_t begun;  /* places of a sum that is exact that blocks have asked for */
    uint32_t failed; /* 1: a kernel has given up; nothing is stored any more */
} ExchangeState;

/* A window has two halves, for odd and even rounds; each has the data regions (terms of every other rank, then results
 * of every other rank) and behind them rows of flags, of all ranks. */
typedef struct ExchangeWindow {
    uint8_t *base[EXCHANGE_MAX_RANKS]; /* of each rank's window */
    uint8_t *own; /* device memory for this rank's own terms or results; NULL: they stand in its window, as those of
                   * others do, which then has a region for them */
    bool far;     /* windows are in host memory */
    int32_t ranks, rank;
    uint64_t half_bytes, region_bytes, flags_at;
    uint32_t flags; /* of a row */
} ExchangeWindow;

/* What does not change from run to run of a plan; kernels get it as it is when they are launched. */
typedef struct ExchangePlan {
    ExchangeWindow window;
    ExchangeState *state;
    CommWindowSigns *signs;
    bool carried;   /* the caller moves what is for others: there are no flags, and of what is for all, one copy */
    bool forwarded; /* what is for other ranks is handed over to */
    CommWindowPost post;
    AllreduceRun *run; /* the host's copy of *call */
    uint32_t *call;
    float *residual;     /* NULL: no error feedback, or in 8 bits: */
    ResidualCodes codes; /* likewise */
    const DeviceTile *tiles;
    int32_t ranks, rank;
    bool one_shot, stochastic, half_metadata;
    QuantType type;
    uint64_t seed, timeout_ns;
    float scale, unscaled; /* of elements before they are added; 1 / scale */
    bool divides;          /* sums are divided by `divisor`; else multiplied, which gives the same bits */
    float divisor;
} ExchangePlan;

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
/* `limit`: blocks at most, of which ranks may have different numbers; 0: one for each place. */
Status allreduce_exchange_exact(QuantType type, const ExchangePlan *plan, const ExchangeExact *run, int limit,
                                void *buffer, DeviceStream *stream);

#endif
