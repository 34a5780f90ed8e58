/* Rounds of two levels on GPUs: the kernels of the exchange within a node, those of levels.cuh between nodes. */
#include "allreduce/device/state.h"

#define X(codec, word) [codec] = allreduce_levels_##word,
static const ExchangeLevelsLaunch launchers[QUANT_CODEC_COUNT] = {QUANT_CODECS(X)};
#undef X

/* The tiles of this rank's shard, of which it owns some. */
static ExchangeRound shard_of(const DeviceExtent *extent, const ExchangeRound *round, int nodes) {
    const DeviceShare *first =
        extent->tiles.shares + (int64_t)round->number * extent->tiles.owners + extent->levels.shard;
    ExchangeRound shard = *round;
    shard.begin = first->tile;
    shard.end = first[nodes - 1].tile + first[nodes - 1].tiles;
    return shard;
}

Status allreduce_levels_put(const DeviceEngine *engine, const DeviceExtent *extent, int number, void *buffer,
                            DeviceStream *stream) {
    const AllreduceSetup *setup = engine->setup;
    const ExchangePlan *plan = &extent->plan;
    ExchangeRound round = allreduce_device_round(engine, extent, number), inside = round;
    ExchangeRound shard = shard_of(extent, &round, comm_nodes(setup->comm));
    bool others = shard.own_end - shard.own_begin < shard.end - shard.begin;
    inside.own_begin = shard.begin; /* none of which is pushed within the node */
    inside.own_end = shard.end;
    if (inside.own_end - inside.own_begin < inside.end - inside.begin) {
        TRY(allreduce_device_put(engine, extent, EXCHANGE_PUSH, &inside, buffer, stream));
    }
    ExchangeLevelsLaunch launch = launchers[setup->options.codec];
    if (others) TRY(launch(EXCHANGE_PUSH, plan, &extent->levels, &shard, buffer, stream));
    if (shard.own_begin < shard.own_end) {
        TRY(launch(EXCHANGE_REDUCE, plan, &extent->levels, &shard, buffer, stream));
    }
    if (others) TRY(allreduce_levels_pass(plan, &extent->levels, &shard, stream));
    return allreduce_device_put(engine, extent, EXCHANGE_GATHER, &round, buffer, stream);
}
