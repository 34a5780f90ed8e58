/* Two-level: the ranks of a node reduce-scatter into shards, equal local ranks of all nodes run SRA on their shard, and
 * the compressed results are passed on within the node as received. */
#include <string.h>

#include "allreduce/host/host.h"

#define LANE_PASS 2
#define AHEAD 3

/* The ranks of this rank's node (in host->members[0]) and those with its local rank on all nodes (in [1]). */
static void make_groups(HostEngine *host, Group *local, Group *across) {
    const Comm *comm = host->setup->comm;
    int node = comm_node(comm), local_rank = comm_local_rank(comm);
    *local = (Group){host->members[0], comm_local_size(comm), local_rank};
    *across = (Group){host->members[1], comm_nodes(comm), node};
    for (int j = 0; j < local->size; j++) host->members[0][j] = comm_rank_at(comm, node, j);
    for (int m = 0; m < across->size; m++) host->members[1][m] = comm_rank_at(comm, m, local_rank);
}

/* The last phase. Every rank takes in the order (step, rank), so that taking never waits for publishing. */
typedef struct Pass {
    HostEngine *host;
    Group group;
    WireChunk *shard; /* owned by the caller, [group.size] */
    uint8_t *buffer;
    int64_t steps, published, taken;
    int member;
} Pass;

static const WireSlice *slice_at(const Pass *pass, int member, int64_t step) {
    return wire_slice(pass->host->map, pass->shard[member].slice + step);
}

static Status publish_kept(Pass *pass, bool *moved) {
    HostEngine *host = pass->host;
    const WireChunk *mine = &pass->shard[pass->group.me];
    if (pass->published >= mine->slices || pass->published > pass->taken + AHEAD) return STATUS_OK;
    CommSlot slot;
    bool got = false;
    TRY(comm_try_acquire(host->setup->comm, &slot, &got));
    if (!got) return STATUS_OK;
    const WireSlice *slice = slice_at(pass, pass->group.me, pass->published);
    memcpy(slot.data, host->kept[0] + (slice->at - slice_at(pass, pass->group.me, 0)->at), slice->bytes);
    uint64_t tag = allreduce_tag(host, mine->slice + pass->published);
    TRY(allreduce_publish_to_group(host, &pass->group, &slot, slice->bytes, tag, LANE_PASS));
    pass->published++;
    *moved = true;
    return STATUS_OK;
}

static Status take_passed(Pass *pass, bool *moved) {
    HostEngine *host = pass->host;
    while (pass->taken < pass->steps) {
        int member = pass->member;
        if (member != pass->group.me && pass->taken < pass->shard[member].slices) {
            CommSlice got;
            bool here = false;
            TRY(comm_try_receive(host->setup->comm, pass->group.rank[member], LANE_PASS, &got, &here));
            if (!here) return STATUS_OK;
            const WireSlice *slice = slice_at(pass, member, pass->taken);
            TRY(allreduce_check_slice(host, &got, slice, pass->shard[member].slice + pass->taken));
            TRY(allreduce_decode_result(host, slice, got.data, host_elements(host, pass->buffer, slice)));
            comm_release(host->setup->comm, &got);
            *moved = true;
        }
        if (++pass->member == pass->group.size) {
            pass->member = 0;
            pass->taken++;
        }
    }
    return STATUS_OK;
}

static Status pass_on(Pass *pass) {
    for (int m = 0; m < pass->group.size; m++) {
        if (pass->shard[m].slices > pass->steps) pass->steps = pass->shard[m].slices;
    }
    while (pass->taken < pass->steps || pass->published < pass->shard[pass->group.me].slices) {
        bool moved = false;
        TRY(take_passed(pass, &moved));
        TRY(publish_kept(pass, &moved));
        if (!moved) TRY(comm_wait(pass->host->setup->comm));
    }
    return STATUS_OK;
}

Status allreduce_two_level(HostEngine *host, void *buffer) {
    Group local, across;
    make_groups(host, &local, &across);
    WireChunk *shard = host->shards;
    for (int j = 0; j < local.size; j++) shard[j] = allreduce_map_shard(host->map, j, across.size);
    /* The node's sums of this rank's shard go to the buffer itself, or to memory allocated for the shard. */
    bool in_place = host->partial[0] == NULL;
    uint8_t *sums = in_place ? buffer : (uint8_t *)host->partial[0];
    int64_t sums_first = in_place ? 0 : shard[local.me].first_value;
    bool feedback = host->extent->feedback;
    Exchange inside = {.group = local,
                       .chunk = shard,
                       .x = buffer,
                       .type = host->map->type,
                       .fresh = true,
                       .feedback = feedback,
                       .to = sums,
                       .to_first = sums_first};
    TRY(allreduce_exchange(host, &inside));
    Exchange between = {.group = across,
                        .chunk = wire_chunk(host->map, local.me * across.size),
                        .x = sums,
                        .x_first = sums_first,
                        .type = host->map->wide_type,
                        .feedback = feedback,
                        .gather = true,
                        .to = buffer,
                        .kept = host->kept[0]};
    TRY(allreduce_exchange(host, &between));
    Pass pass = {.host = host, .group = local, .shard = shard, .buffer = buffer};
    return pass_on(&pass);
}
