/* Passes results on within a node, the bytes as received (levels.cuh): a block of WARPS warps takes one tile at a time,
 * each thread 16-byte vectors of it. Regions: uint4. */
#include "allreduce/device/exchange.cuh"

/* Where a part's results go, for a rank of this node. */
__device__ static __forceinline__ const ExchangeRegion &pass_region(const ExchangeLevels *levels,
                                                                    const DeviceTile &tile, int local_rank) {
    return exchange_local_region(levels, levels->pass, tile, local_rank);
}

__device__ static __forceinline__ void pass_tile(const ExchangePlan *plan, const ExchangeLevels *levels,
                                                 const DeviceTile &tile, uint32_t epoch) {
    const uint8_t *from = exchange_row(plan, epoch, EXCHANGE_RESULTS + tile.owner) + tile.at;
    for (uint32_t i = threadIdx.x; i < tile.bytes / sizeof(uint4); i += WARPS * WARP) {
        const uint4 bits = __ldcg(reinterpret_cast<const uint4 *>(from) + i);
        for (int local_rank = 0; local_rank < levels->local_size; local_rank++) {
            if (local_rank == levels->local_rank) continue;
            uint8_t *to = exchange_place(pass_region(levels, tile, local_rank), epoch) + tile.at;
            reinterpret_cast<uint4 *>(to)[i] = bits;
        }
    }
}

static __global__ void __launch_bounds__(WARPS *WARP, BLOCKS_EACH)
    levels_pass_kernel(const __grid_constant__ ExchangePlan plan, const __grid_constant__ ExchangeLevels levels,
                       ExchangeRound round) {
    __shared__ DeviceTile tiles[TURNS];
    uint32_t epoch;
    if (!exchange_begin(&plan, round, &epoch)) return;
    const ExchangeTurns turns = exchange_turns_of_others(EXCHANGE_EITHER, round);
    if (!exchange_await_results(&plan, turns, epoch)) return;
    for (int64_t turn = 0; turn < turns.mine; turn++) {
        if (turn % TURNS == 0) exchange_fetch_tiles(&plan, turns, turn, tiles);
        pass_tile(&plan, &levels, tiles[turn % TURNS], epoch);
    }
    __syncthreads();
    for (int64_t i = threadIdx.x; i < turns.mine * levels.local_size; i += WARPS * WARP) {
        const DeviceTile *tile = turns.tile(&plan, i / levels.local_size);
        exchange_raise(&plan, pass_region(&levels, *tile, (int)(i % levels.local_size)), epoch, *tile);
    }
}

extern "C" Status allreduce_levels_pass(const ExchangePlan *plan, const ExchangeLevels *levels,
                                        const ExchangeRound *round, DeviceStream *stream) {
    int64_t others = round->end - round->begin - (round->own_end - round->own_begin);
    return LAUNCH_AFTER(levels_pass_kernel, exchange_grid(others, BLOCKS_EACH, round->blocks), WARPS * WARP, 0, stream,
                        *plan, *levels, *round);
}
