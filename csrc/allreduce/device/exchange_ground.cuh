/* What the kernels of the exchange stand on: places in windows, a block's tiles, flags and the waits for them. */
#ifndef CGXFFCV_ALLREDUCE_DEVICE_EXCHANGE_GROUND_CUH
#define CGXFFCV_ALLREDUCE_DEVICE_EXCHANGE_GROUND_CUH

#include "comm/window.cuh"
#include "quant/cuda/warp.cuh"

extern "C" {
#include "allreduce/device/exchange.h"
}

#define WARPS 8
#define BLOCKS_EACH 2 /* resident on a multiprocessor */
#define TURNS 16      /* tiles that a block knows of at a time */

/* ---- places ---- */

__device__ static __forceinline__ uint8_t *exchange_half(const ExchangeWindow *window, int rank, uint32_t epoch) {
    return window->base[rank] + (epoch & 1u) * window->half_bytes;
}

/* Region `row` in the window of a rank: terms of rank `row`, or results of rank `row - ranks`. What is this rank's own
 * from beginning to end, its terms with one-shot or its results, needs no halves, since kernels of one stream write and
 * read it; so windows have no regions for what is the rank's own. */
__device__ static __forceinline__ uint8_t *exchange_region(const ExchangeWindow *window, int rank, uint32_t epoch,
                                                           int row) {
    const bool results = row >= window->ranks;
    const int source = row - (results ? window->ranks : 0);
    int slot = row;
    if (window->own != nullptr) {
        if (source == rank && rank == window->rank) return window->own;
        slot = source - (source > rank) + (results ? window->ranks - 1 : 0);
    }
    return exchange_half(window, rank, epoch) + (uint64_t)slot * window->region_bytes;
}

__device__ static __forceinline__ uint32_t *exchange_flag(const ExchangeWindow *window, int rank, uint32_t epoch,
                                                          int row, uint32_t tile) {
    uint32_t *flags = reinterpret_cast<uint32_t *>(exchange_half(window, rank, epoch) + window->flags_at);
    return flags + (uint64_t)row * window->flags + tile;
}

/* Tells another rank that a tile of this rank is in row `row` of its window; this one knows by the order of its
 * kernels. */
__device__ static __forceinline__ void exchange_raise(const ExchangePlan *plan, int rank, uint32_t epoch, int row,
                                                      const DeviceTile &tile) {
    if (rank == plan->rank) return;
    uint32_t *flag = exchange_flag(&plan->window, rank, epoch, row, tile.number);
    if (!plan->forwarded) {
        signal_store(flag, epoch);
        return;
    }
    const uint8_t *base = plan->window.base[rank];
    uint64_t at = (uint64_t)(exchange_region(&plan->window, rank, epoch, row) - base) + tile.at;
    window_post(plan->post, rank, at, tile.bytes, (uint64_t)(reinterpret_cast<uint8_t *>(flag) - base), epoch);
}

/* Of a run that goes on; each kernel begins with it. False after a failure. */
__device__ static __forceinline__ bool exchange_begin(const ExchangePlan *plan, const ExchangeRound &round,
                                                      uint32_t *epoch) {
    grid_begin();
    *epoch = __ldcg(&plan->state->epoch) + round.number + 1;
    return __syncthreads_and(__ldcg(&plan->state->failed) == 0) != 0; /* alike for the block, which has barriers */
}

/* ---- waiting ---- */

/* By one thread of all of a failed run. */
__device__ static __forceinline__ void exchange_fail(const ExchangePlan *plan, CommWindowReport what, int rank,
                                                     uint32_t tile, uint32_t epoch) {
    if (atomicCAS(&plan->state->failed, 0u, 1u) == 0) window_report(plan->signs, what, rank, tile, epoch);
}

/* The tiles of a launch that are this block's: first, first + step ... Those of the other way it passes by. */
struct ExchangeTurns {
    bool quick;           /* which way these kernels go */
    int64_t begin, count; /* of the launch; turn i is begin + i, from `wraps` on less `less` */
    int64_t wraps, less;
    int64_t mine; /* of this block */

    __device__ __forceinline__ ExchangeTurns(bool quick_, int64_t begin_, int64_t count_, int64_t wraps_, int64_t less_)
        : quick(quick_), begin(begin_), count(count_), wraps(wraps_), less(less_) {
        int64_t left = count - (int64_t)blockIdx.x;
        mine = left > 0 ? (left + gridDim.x - 1) / gridDim.x : 0;
    }

    __device__ __forceinline__ const DeviceTile *tile(const ExchangePlan *plan, int64_t turn) const {
        int64_t index = begin + (int64_t)blockIdx.x + turn * gridDim.x;
        return plan->tiles + (index < wraps ? index : index - less);
    }

    __device__ __forceinline__ bool takes(const DeviceTile &tile) const { return (tile.groups != 0) == quick; }
};

/* The block's tiles from turn `from` on, as many as there is room for. */
__device__ static __forceinline__ void exchange_fetch_tiles(const ExchangePlan *plan, const ExchangeTurns &turns,
                                                            int64_t from, DeviceTile (&tiles)[TURNS]) {
    const int words = (int)(sizeof(DeviceTile) / sizeof(uint64_t));
    __syncthreads();
    for (int i = (int)threadIdx.x; i < TURNS * words && from + i / words < turns.mine; i += WARPS * WARP) {
        const uint64_t *tile = reinterpret_cast<const uint64_t *>(turns.tile(plan, from + i / words));
        reinterpret_cast<uint64_t *>(tiles)[i] = tile[i % words];
    }
    __syncthreads();
}

/* One thread waits for a row of a tile. */
__device__ static __forceinline__ bool exchange_await(const ExchangePlan *plan, const DeviceTile *tile, uint32_t epoch,
                                                      int row) {
    const uint32_t *flag = exchange_flag(&plan->window, plan->rank, epoch, row, tile->number);
    if (window_await(flag, epoch, plan->signs, plan->timeout_ns)) return true;
    bool results = row >= plan->ranks;
    exchange_fail(plan, results ? COMM_WINDOW_RESULTS : COMM_WINDOW_TERMS, results ? (int)tile->owner : row,
                  tile->number, epoch);
    return false;
}

/* The block waits for the terms of all other ranks, or for the results, of all of its tiles: for those of the first
 * by a few threads, so that the others do not disturb what is being written. */
__device__ static __forceinline__ bool exchange_await_all(const ExchangePlan *plan, const ExchangeTurns &turns,
                                                          uint32_t epoch, bool results) {
    if (plan->carried) return true;
    const int rows = results ? 1 : plan->ranks;
    bool here = true;
    for (int64_t from = 0; from < turns.mine; from = from == 0 ? 1 : turns.mine) {
        int64_t to = from == 0 ? 1 : turns.mine;
        for (int64_t i = from * rows + threadIdx.x; here && i < to * rows; i += WARPS * WARP) {
            const DeviceTile *tile = turns.tile(plan, i / rows);
            int row = results ? plan->ranks + tile->owner : (int)(i % rows);
            bool own = row == plan->rank || row == plan->ranks + plan->rank;
            if (!own && turns.takes(*tile)) here = exchange_await(plan, tile, epoch, row);
        }
        here = __syncthreads_and(here) != 0;
    }
    return here;
}

/* What the block has written in row `row` of its tiles can be read. */
__device__ static __forceinline__ void exchange_raise_all(const ExchangePlan *plan, const ExchangeTurns &turns,
                                                          uint32_t epoch, int row, bool to_owner) {
    if (plan->carried) return;
    const int to = to_owner ? 1 : plan->ranks;
    __syncthreads();
    for (int64_t i = threadIdx.x; i < turns.mine * to; i += WARPS * WARP) {
        const DeviceTile *tile = turns.tile(plan, i / to);
        int rank = to_owner ? (int)tile->owner : (int)(i % to);
        if (turns.takes(*tile)) exchange_raise(plan, rank, epoch, row, *tile);
    }
}

/* Where goes what is for all: into each window. */
__device__ static __forceinline__ QuantSink exchange_all(const ExchangePlan *plan, uint8_t *const *bases) {
    QuantSink sink = {bases, plan->ranks};
    if (plan->carried) sink = {bases + plan->rank, 1};
    return sink;
}

/* ---- the residual ---- */

/* Of elements from `first` on, the buckets of which begin with number `bucket` of the call. */
template <typename Keep>
__device__ __forceinline__ Keep exchange_keep(const ExchangePlan *plan, int64_t first, uint64_t bucket) {
    if constexpr (Keep::EIGHT) {
        Keep keep = {nullptr, nullptr, plan->unscaled};
        if (plan->codes.codes != nullptr) keep.codes = plan->codes.codes + first;
        if (plan->codes.codes != nullptr) keep.exponents = plan->codes.exponents + bucket;
        return keep;
    } else {
        Keep keep = {plan->residual == nullptr ? nullptr : plan->residual + first, plan->unscaled};
        return keep;
    }
}

/* ---- sums ---- */

template <int COUNT> __device__ __forceinline__ void exchange_divide(const ExchangePlan *plan, float (&v)[COUNT]) {
    const float by = plan->divisor;
    if (plan->divides) {
#pragma unroll
        for (int k = 0; k < COUNT; k++) v[k] = QUANT_DIV(v[k], by);
    } else {
#pragma unroll
        for (int k = 0; k < COUNT; k++) v[k] = QUANT_MUL(v[k], by);
    }
}

#endif
