/* One-shot exchange: each rank quantises once, everyone adds the decoded pieces of all ranks in rank order. */
#include <string.h>

#include "allreduce/host/host.h"

#define LANE 0
#define AHEAD 3 /* slices published ahead of the one being added */

/* A walk over the slices; every rank takes them in the order (step, rank), so that taking never waits for
 * publishing. */
typedef struct Walk {
    HostEngine *host;
    uint8_t *buffer;
    int64_t steps, published, added;
    int rank; /* the next term of step `added` */
} Walk;

static const WireSlice *slice_at(const Walk *walk, int64_t step) { return wire_slice(walk->host->map, step); }

static Status publish_some(Walk *walk, bool *moved) {
    HostEngine *host = walk->host;
    if (walk->published >= walk->steps || walk->published > walk->added + AHEAD) return STATUS_OK;
    CommSlot slot;
    bool got = false;
    TRY(comm_try_acquire(host->setup->comm, &slot, &got));
    if (!got) return STATUS_OK;
    const WireSlice *slice = slice_at(walk, walk->published);
    TRY(allreduce_encode_term(host, slice, (Summands){host_elements(host, walk->buffer, slice), host->map->type, true},
                              host->extent->feedback, slot.data));
    TRY(comm_publish(host->setup->comm, &slot, slice->bytes, allreduce_tag(host, walk->published), LANE,
                     host->members[0], comm_size(host->setup->comm)));
    walk->published++;
    *moved = true;
    return STATUS_OK;
}

/* Adds the next term if it has arrived. If possible the sum is built up in the buffer, whose elements have already been
 * published. */
static Status add_some(Walk *walk, bool *moved) {
    HostEngine *host = walk->host;
    if (walk->added >= walk->published) return STATUS_OK;
    const WireSlice *slice = slice_at(walk, walk->added);
    CommSlice got;
    bool here = false;
    TRY(comm_try_receive(host->setup->comm, walk->rank, LANE, &got, &here));
    if (!here) return STATUS_OK;
    TRY(allreduce_check_slice(host, &got, slice, walk->added));
    void *sum = wire_sums_in_place(host->map) ? (void *)host_elements(host, walk->buffer, slice) : host->sum;
    const void *before = walk->rank == 0 ? NULL : sum;
    if (walk->rank < comm_size(host->setup->comm) - 1) {
        TRY(allreduce_add_term(host, slice, got.data, (Summands){before, host->map->wide_type, false}, sum));
        walk->rank++;
    } else {
        TRY(allreduce_add_last(host, slice, got.data, before, host_elements(host, walk->buffer, slice)));
        walk->rank = 0;
        walk->added++;
    }
    comm_release(host->setup->comm, &got);
    *moved = true;
    return STATUS_OK;
}

Status allreduce_one_shot(HostEngine *host, void *buffer) {
    Walk walk = {.host = host, .buffer = buffer, .steps = host->map->slices};
    while (walk.added < walk.steps) {
        bool moved = false;
        TRY(add_some(&walk, &moved));
        if (!moved) TRY(publish_some(&walk, &moved));
        if (!moved) TRY(comm_wait(host->setup->comm));
    }
    return STATUS_OK;
}
