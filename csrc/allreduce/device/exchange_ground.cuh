/* The basis of the exchange's kernels: places in windows, a block's tiles, flags and waiting for them. */
#ifndef CGXFFCV_ALLREDUCE_DEVICE_EXCHANGE_GROUND_CUH
#define CGXFFCV_ALLREDUCE_DEVICE_EXCHANGE_GROUND_CUH

#include "comm/window.cuh"
#include "quant/cuda/warp.cuh"

extern "C" {
#include "allreduce/device/exchange.h"
}

#define WARPS 8
#define BLOCKS_EACH 2 /* resident on a multiprocessor */
#define TURNS 16      /* tiles that a block holds at a time */

/* ---- places ---- */

__device__ static __forceinline__ uint8_t *exchange_place(const ExchangeRegion &region, uint32_t epoch) {
    return region.at + (epoch & 1u) * region.half;
}

/* The entry of a table [part, local_rank] for a tile's part and a rank of this node. */
__device__ static __forceinline__ const ExchangeRegion &exchange_local_region(const ExchangeLevels *levels,
                                                                              const ExchangeRegion *table,
                                                                              const DeviceTile &tile, int local_rank) {
    return table[((int)tile.owner - levels->shard) * levels->local_size + local_rank];
}

__device__ static __forceinline__ const uint8_t *exchange_row(const ExchangePlan *plan, uint32_t epoch, int row) {
    return exchange_place(plan->window.from[row], epoch);
}

__device__ static __forceinline__ uint32_t *exchange_flag(const ExchangeRegion &region, uint32_t epoch, uint32_t tile) {
    uint8_t *flags = reinterpret_cast<uint8_t *>(region.flags) + (epoch & 1u) * region.half;
    return reinterpret_cast<uint32_t *>(flags) + tile;
}

/* Notifies another rank that a tile is in its region; for this one the order of its kernels suffices. */
__device__ static __forceinline__ void exchange_raise(const ExchangePlan *plan, const ExchangeRegion &region,
                                                      uint32_t epoch, const DeviceTile &tile) {
    if (region.rank == plan->self) return;
    window_raise(plan->send_queue, exchange_flag(region, epoch, tile.number), epoch,
                 exchange_place(region, epoch) + tile.at, tile.bytes);
}

/* Every kernel of a run begins with this. False after a failure. */
__device__ static __forceinline__ bool exchange_begin(const ExchangePlan *plan, const ExchangeRound &round,
                                                      uint32_t *epoch) {
    grid_begin();
    *epoch = __ldcg(&plan->state->epoch) + round.number + 1;
    return __syncthreads_and(__ldcg(&plan->state->failed) == 0) != 0; /* the same in the whole block: it has barriers */
}

/* ---- waiting ---- */

/* Reports the first failure of a run; later ones are ignored. */
__device__ static __forceinline__ void exchange_fail(const ExchangePlan *plan, CommWindowReport what, int rank,
                                                     uint32_t tile, uint32_t epoch) {
    if (atomicCAS(&plan->state->failed, 0u, 1u) == 0) window_report(plan->status_words, what, rank, tile, epoch);
}

/* The paths that tiles take: a bit for each. */
enum { EXCHANGE_BUCKETWISE = 1, EXCHANGE_QUICK = 2, EXCHANGE_EITHER = 3 };

/* The tiles of a launch that are this block's: first, first + step ... It skips those that take another path. */
struct ExchangeTurns {
    uint32_t ways;        /* that these kernels serve */
    int64_t begin, count; /* of the launch; turn i is begin + i, minus `less` from `wraps` on */
    int64_t wraps, less;
    int64_t mine; /* of this block */

    __device__ __forceinline__ ExchangeTurns(uint32_t ways_, int64_t begin_, int64_t count_, int64_t wraps_,
                                             int64_t less_)
        : ways(ways_), begin(begin_), count(count_), wraps(wraps_), less(less_) {
        int64_t left = count - (int64_t)blockIdx.x;
        mine = left > 0 ? (left + gridDim.x - 1) / gridDim.x : 0;
    }

    __device__ __forceinline__ const DeviceTile *tile(const ExchangePlan *plan, int64_t turn) const {
        int64_t index = begin + (int64_t)blockIdx.x + turn * gridDim.x;
        return plan->tiles + (index < wraps ? index : index - less);
    }

    __device__ __forceinline__ bool takes(const DeviceTile &tile) const {
        return (ways & (tile.shift != 0 ? EXCHANGE_QUICK : EXCHANGE_BUCKETWISE)) != 0;
    }
};

/* All tiles of a round except this rank's own: each rank begins after those. */
__device__ static __forceinline__ ExchangeTurns exchange_turns_of_others(uint32_t ways, const ExchangeRound &round) {
    const int64_t all = round.end - round.begin, own = round.own_end - round.own_begin;
    return ExchangeTurns(ways, round.own_end, all - own, round.end, all);
}

__device__ static __forceinline__ ExchangeTurns exchange_turns_of_own(uint32_t ways, const ExchangeRound &round) {
    return ExchangeTurns(ways, round.own_begin, round.own_end - round.own_begin, round.own_end, 0);
}

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

/* One thread waits for a tile in a region. */
__device__ static __forceinline__ bool exchange_await(const ExchangePlan *plan, const ExchangeRegion &region,
                                                      uint32_t tile, uint32_t epoch, CommWindowReport what) {
    if (window_await(exchange_flag(region, epoch, tile), epoch, plan->status_words, plan->timeout_ns)) return true;
    exchange_fail(plan, what, region.rank, tile, epoch);
    return false;
}

/* The block waits for all of its tiles in `rows` regions each, region_of(tile, i), except this rank's own: for those of
 * the first tile only a few threads wait, so that the others do not disturb what is being written. */
template <typename Find>
__device__ __forceinline__ bool exchange_await_each(const ExchangePlan *plan, const ExchangeTurns &turns,
                                                    uint32_t epoch, CommWindowReport what, int rows,
                                                    const Find &region_of) {
    if (plan->external) return true;
    bool here = true;
    for (int64_t from = 0; from < turns.mine; from = from == 0 ? 1 : turns.mine) {
        int64_t to = from == 0 ? 1 : turns.mine;
        for (int64_t i = from * rows + threadIdx.x; here && i < to * rows; i += WARPS * WARP) {
            const DeviceTile *tile = turns.tile(plan, i / rows);
            const ExchangeRegion &region = region_of(*tile, (int)(i % rows));
            if (region.rank == plan->self || !turns.takes(*tile)) continue;
            here = exchange_await(plan, region, tile->number, epoch, what);
        }
        here = __syncthreads_and(here) != 0;
    }
    return here;
}

/* Waits for the terms of all ranks that add each other's. */
__device__ static __forceinline__ bool exchange_await_terms(const ExchangePlan *plan, const ExchangeTurns &turns,
                                                            uint32_t epoch) {
    return exchange_await_each(
        plan, turns, epoch, COMM_WINDOW_TERMS, plan->ranks,
        [&](const DeviceTile &, int i) -> const ExchangeRegion & { return plan->window.from[i]; });
}

/* Waits for the results of the tiles' owners. */
__device__ static __forceinline__ bool exchange_await_results(const ExchangePlan *plan, const ExchangeTurns &turns,
                                                              uint32_t epoch) {
    return exchange_await_each(plan, turns, epoch, COMM_WINDOW_RESULTS, 1,
                               [&](const DeviceTile &tile, int) -> const ExchangeRegion & {
                                   return plan->window.from[EXCHANGE_RESULTS + tile.owner];
                               });
}

/* Notifies the readers of what the block has written of its tiles, in the owners' regions or in those of all. */
__device__ static __forceinline__ void exchange_raise_all(const ExchangePlan *plan, const ExchangeTurns &turns,
                                                          uint32_t epoch, bool to_owner) {
    if (plan->external) return;
    const int to = to_owner ? 1 : plan->window.sinks;
    __syncthreads();
    for (int64_t i = threadIdx.x; i < turns.mine * to; i += WARPS * WARP) {
        const DeviceTile *tile = turns.tile(plan, i / to);
        if (!turns.takes(*tile)) continue;
        exchange_raise(plan, to_owner ? plan->window.to[tile->owner] : plan->window.all[i % to], epoch, *tile);
    }
}

/* Sets the block's bases of `count` regions; visible after the next barrier. */
__device__ static __forceinline__ void exchange_set_bases(const ExchangeRegion *regions, int count, uint32_t epoch,
                                                          uint8_t **bases) {
    const int thread = (int)threadIdx.x;
    if (thread < count) bases[thread] = exchange_place(regions[thread], epoch);
}

/* ---- the residual ---- */

/* The residual of elements from `first` on, whose buckets begin with number `bucket` of the call. */
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
