/* The exchange between GPUs, in three kernels that are launched on a stream one after the other, round by round. A
 * block of WARPS warps takes tiles in turn (grid-stride); within a tile a warp takes one bucket at a time, or a piece
 * of what travels unquantised. A block waits for all its tiles before the first, and raises their flags after the last:
 * a system-wide fence takes as long as a tile.
 *
 * push    quantises its elements into the windows of the ranks that add them, then raises the tiles' flags there
 * reduce  (not with one-shot) waits for the terms of its own tiles, adds them and its own elements in rank order in
 *         registers, quantises the sum into all windows, its own too, then raises the flags there
 * gather  waits for the results of tiles (with one-shot: for all terms, its own too), decodes, adds, divides, stores
 *
 * No kernel waits for another of the same stream, so blocks may run in any order and a few at a time, and ranks may
 * share a GPU. Round e uses half e % 2 of each window, and nobody writes there before all have read round e - 2: a rank
 * pushes round e after its own gather of e - 1, which has waited for data of e - 1 from every rank, perhaps through an
 * owner; and a rank pushes e - 1 after its own gather of e - 2. Flags hold the number of the round, which never
 * repeats, so nothing is ever reset. After a failure nothing is stored any more.
 *
 * Lane l of a warp has four elements of each group of 128 in a piece (quant/cuda/warp.cuh). Buffers: the plan's
 * (elems), of its type; residual (elems), float32; tiles, as tiles.h defines them; regions (halves, region_bytes),
 * bytes, of terms and of results, with flags (halves, tiles), uint32 (exchange.h). Shared memory: a QuantRoom for each
 * warp, and the block's next tiles. */
#ifndef CGXFFCV_ALLREDUCE_DEVICE_EXCHANGE_CUH
#define CGXFFCV_ALLREDUCE_DEVICE_EXCHANGE_CUH

#include "allreduce/device/exchange_ground.cuh"

/* ---- kernels ---- */

template <typename Way>
static __global__ void __launch_bounds__(WARPS *WARP, BLOCKS_EACH)
    exchange_push_kernel(const __grid_constant__ ExchangePlan plan, ExchangeRound round, const void *buffer) {
    __shared__ QuantRoom rooms[WARPS];
    __shared__ uint8_t *bases[EXCHANGE_MAX_RANKS];
    __shared__ DeviceTile tiles[TURNS];
    uint32_t epoch;
    if (!exchange_begin(&plan, round, &epoch)) return;
    const int many = plan.one_shot ? plan.window.sinks : plan.window.owners;
    exchange_set_bases(plan.one_shot ? plan.window.all : plan.window.to, many, epoch, bases);
    const ExchangeTurns turns = exchange_turns_of_others(Way::WAYS, round);
    QuantRoom *room = &rooms[threadIdx.x / WARP];
    for (int64_t turn = 0; turn < turns.mine; turn++) {
        if (turn % TURNS == 0) exchange_fetch_tiles(&plan, turns, turn, tiles);
        const DeviceTile &tile = tiles[turn % TURNS];
        if (!turns.takes(tile)) continue;
        QuantSink sink = {bases + tile.owner, 1};
        if (plan.one_shot) sink = {bases, many};
        Way::push(&plan, buffer, tile, sink, room);
    }
    exchange_raise_all(&plan, turns, epoch, !plan.one_shot);
}

template <typename Way>
static __global__ void __launch_bounds__(WARPS *WARP, BLOCKS_EACH)
    exchange_reduce_kernel(const __grid_constant__ ExchangePlan plan, ExchangeRound round, const void *buffer) {
    __shared__ QuantRoom rooms[WARPS];
    __shared__ uint8_t *bases[EXCHANGE_MAX_RANKS];
    __shared__ DeviceTile tiles[TURNS];
    uint32_t epoch;
    if (!exchange_begin(&plan, round, &epoch)) return;
    exchange_set_bases(plan.window.all, plan.window.sinks, epoch, bases);
    const ExchangeTurns turns = exchange_turns_of_own(Way::WAYS, round);
    if (!exchange_await_terms(&plan, turns, epoch)) return;
    QuantRoom *room = &rooms[threadIdx.x / WARP];
    const QuantSink sink = {bases, plan.window.sinks};
    for (int64_t turn = 0; turn < turns.mine; turn++) {
        if (turn % TURNS == 0) exchange_fetch_tiles(&plan, turns, turn, tiles);
        const DeviceTile &tile = tiles[turn % TURNS];
        if (turns.takes(tile)) Way::reduce(&plan, buffer, tile, epoch, sink, room);
    }
    exchange_raise_all(&plan, turns, epoch, false);
}

/* The last block of a run's last kernel ends the run. */
__device__ static __forceinline__ void exchange_end(const ExchangePlan *plan, const ExchangeRound &round) {
    __syncthreads();
    if (round.rounds == 0 || threadIdx.x != 0) return;
    __threadfence();
    if (atomicAdd(&plan->state->ticket, 1u) != gridDim.x - 1) return;
    plan->state->ticket = 0;
    plan->state->epoch += round.rounds;
    plan->run->call = ++*plan->call;
}

template <typename Way>
static __global__ void __launch_bounds__(WARPS *WARP, Way::GATHERERS)
    exchange_gather_kernel(const __grid_constant__ ExchangePlan plan, ExchangeRound round, void *buffer) {
    __shared__ QuantRoom rooms[WARPS];
    __shared__ DeviceTile tiles[TURNS];
    uint32_t epoch;
    const bool goes_on = exchange_begin(&plan, round, &epoch);
    const ExchangeTurns turns(Way::WAYS, round.begin, round.end - round.begin, round.end, 0);
    const bool here = goes_on && (plan.one_shot ? exchange_await_terms(&plan, turns, epoch)
                                                : exchange_await_results(&plan, turns, epoch));
    const int64_t mine = here ? turns.mine : 0;
    for (int64_t turn = 0; turn < mine; turn++) {
        if (turn % TURNS == 0) exchange_fetch_tiles(&plan, turns, turn, tiles);
        const DeviceTile &tile = tiles[turn % TURNS];
        if (!turns.takes(tile)) continue;
        const int row = plan.one_shot ? 0 : EXCHANGE_RESULTS + tile.owner, rows = plan.one_shot ? plan.ranks : 1;
        Way::gather(&plan, buffer, tile, epoch, row, rows, &rooms[threadIdx.x / WARP]);
    }
    exchange_end(&plan, round);
}

/* ---- launches ---- */

static inline unsigned exchange_grid(int64_t tiles, int blocks, int64_t limit) {
    static int multiprocessors; /* the same on all GPUs of a process; found once, all threads find the same */
    int device = 0;
    if (multiprocessors == 0 && cudaGetDevice(&device) == cudaSuccess) {
        (void)cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
    }
    int64_t most = (int64_t)(multiprocessors > 0 ? multiprocessors : 1) * blocks;
    if (limit > 0 && limit < most) most = limit;
    return (unsigned)(tiles < 1 ? 1 : tiles < most ? tiles : most);
}

template <typename Way>
static Status exchange_launch_way(ExchangeKernel kernel, const ExchangePlan *plan, const ExchangeRound *round,
                                  void *buffer, DeviceStream *stream) {
    int64_t own = round->own_end - round->own_begin, all = round->end - round->begin;
    switch (kernel) {
    case EXCHANGE_PUSH:
        return LAUNCH_AFTER(exchange_push_kernel<Way>, exchange_grid(all - own, BLOCKS_EACH, round->blocks),
                            WARPS * WARP, 0, stream, *plan, *round, buffer);
    case EXCHANGE_REDUCE:
        return LAUNCH_AFTER(exchange_reduce_kernel<Way>, exchange_grid(own, BLOCKS_EACH, round->blocks), WARPS * WARP,
                            0, stream, *plan, *round, buffer);
    default:
        return LAUNCH_AFTER(exchange_gather_kernel<typename Way::Gathers>,
                            exchange_grid(all, Way::GATHERERS, round->blocks), WARPS * WARP, 0, stream, *plan, *round,
                            buffer);
    }
}

/* Launches Way<TYPE> for the type of the plan's elements. */
template <template <QuantType> class Way>
static Status exchange_launch(ExchangeKernel kernel, const ExchangePlan *plan, const ExchangeRound *round, void *buffer,
                              DeviceStream *stream) {
#define EXCHANGE(TYPE) exchange_launch_way<Way<TYPE>>(kernel, plan, round, buffer, stream)
    return QUANT_BY_TYPE(plan->type, EXCHANGE);
#undef EXCHANGE
}

#endif
