/* Runs in stages: who exchanges with whom, and how many bytes. */
#include "allreduce/engine.h"

static bool has_levels(const AllreduceExtent *extent) { return extent->algorithm == ALLREDUCE_TWO_LEVEL; }

WireChunk allreduce_stage_chunk(const AllreduceSetup *setup, const AllreduceExtent *extent, AllreduceStage stage,
                                int member) {
    const Comm *comm = setup->comm;
    if (stage == ALLREDUCE_INSIDE) return allreduce_map_shard(extent->map, member, comm_nodes(comm));
    if (extent->algorithm == ALLREDUCE_ONE_SHOT) return *wire_chunk(extent->map, 0);
    int first = has_levels(extent) ? comm_local_rank(comm) * comm_nodes(comm) : 0;
    return *wire_chunk(extent->map, first + member);
}

int allreduce_stage_rank(const AllreduceSetup *setup, const AllreduceExtent *extent, AllreduceStage stage, int member) {
    const Comm *comm = setup->comm;
    if (stage == ALLREDUCE_INSIDE) return comm_rank_at(comm, comm_node(comm), member);
    return has_levels(extent) ? comm_rank_at(comm, member, comm_local_rank(comm)) : member;
}

static uint64_t message_bytes(const AllreduceSetup *setup, const AllreduceExtent *extent, AllreduceStage stage,
                              int member) {
    return sizeof(AllreduceHeader) + allreduce_stage_chunk(setup, extent, stage, member).bytes;
}

uint64_t allreduce_stage_message(const AllreduceSetup *setup, const AllreduceExtent *extent, AllreduceStage stage,
                                 int member) {
    const Comm *comm = setup->comm;
    int me = stage == ALLREDUCE_INSIDE ? comm_local_rank(comm) : has_levels(extent) ? comm_node(comm) : comm_rank(comm);
    if (member == me && extent->algorithm != ALLREDUCE_ONE_SHOT) return 0;
    return message_bytes(setup, extent, stage, member);
}

/* All results get the size of the largest. */
static uint64_t result_bytes(const WireMap *map) {
    uint64_t most = 0;
    for (int c = 0; c < map->chunks; c++) {
        if (wire_chunk(map, c)->bytes > most) most = wire_chunk(map, c)->bytes;
    }
    return most;
}

AllreduceMessages allreduce_stage_measure(const AllreduceSetup *setup, const AllreduceExtent *extent,
                                          AllreduceStage stage) {
    const Comm *comm = setup->comm;
    bool levels = has_levels(extent), inside = stage == ALLREDUCE_INSIDE;
    AllreduceMessages out = {0};
    if (inside && !levels) return out;
    out.members = inside ? comm_local_size(comm) : levels ? comm_nodes(comm) : comm_size(comm);
    out.me = inside ? comm_local_rank(comm) : levels ? comm_node(comm) : comm_rank(comm);
    out.from_each = message_bytes(setup, extent, stage, out.me);
    if (extent->algorithm == ALLREDUCE_ONE_SHOT) {
        out.total = out.from_each;
        return out;
    }
    for (int m = 0; m < out.members; m++) {
        if (m != out.me) out.total += message_bytes(setup, extent, stage, m);
    }
    out.result = inside ? 0 : result_bytes(extent->map);
    return out;
}
