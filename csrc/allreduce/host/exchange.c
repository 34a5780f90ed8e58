/* Reduce-scatter with or without all-gather: the core of SRA and of both levels of two-level.
 *
 * Three cursors walk over the steps (the numbers of slices within a chunk): send my summands of step t to their owners,
 * reduce step t of my own chunk and publish the result, gather everybody's results of step t. Each moves when it can;
 * nobody blocks. There is no deadlock with S slots and N ranks, because these rules hold: results are published in
 * order, the result of step u after my summands up to u, summands at most `ahead` steps before my last result,
 * (ahead + 1) * (N - 1) < S; gathering needs no slot. If there are too few slots (S < N), ahead is 0 and an owner takes
 * summands in any order, keeping a copy of the early ones, so that no sender waits for another. */
#include <string.h>

#include "allreduce/host/host.h"
#include "base/bytes.h"

#define LANE_TERMS 0
#define LANE_RESULTS 1
#define MAX_AHEAD 2

/* A walk in progress. */
typedef struct Walk {
    HostEngine *host;
    const Exchange *exchange;
    int size, me;
    int64_t own_steps, steps; /* of my chunk, of the longest */
    int64_t ahead;

    int64_t send_step;
    int send_offset; /* the next receiver is (me + offset) mod size */

    int64_t reduce_step;
    int reduce_term; /* the next term in the order of summation */
    Summands sum;    /* of the terms so far; x is NULL before the first */
    bool scarce;     /* fewer slots than ranks: host->stash and host->stashed are in use */

    int64_t gather_step;
    int gather_member;
} Walk;

static const WireSlice *slice_at(const Walk *walk, int member, int64_t step) {
    return wire_slice(walk->host->map, walk->exchange->chunk[member].slice + step);
}

static bool has_step(const Walk *walk, int member, int64_t step) { return step < walk->exchange->chunk[member].slices; }

static int64_t slice_index(const Walk *walk, int member, int64_t step) {
    return walk->exchange->chunk[member].slice + step;
}

static int rank_of(const Walk *walk, int member) { return walk->exchange->group.rank[member]; }

static Summands summands(const Walk *walk, const WireSlice *slice) {
    const Exchange *e = walk->exchange;
    int64_t at = (e->fresh ? slice->first : slice->first_value) - e->x_first;
    return (Summands){e->x + at * (int64_t)allreduce_type_bytes(e->type), e->type, e->fresh};
}

/* Where results go, in the buffer's type, or sums, in the wide one. */
static void *destination(const Walk *walk, const WireSlice *slice) {
    const Exchange *e = walk->exchange;
    const WireMap *map = walk->host->map;
    int64_t at = (e->gather ? slice->first : slice->first_value) - e->to_first;
    return e->to + at * (int64_t)allreduce_type_bytes(e->gather ? map->type : map->wide_type);
}

/* ---- sending ---- */

static bool may_send(const Walk *walk) {
    return walk->send_step < walk->steps &&
           (walk->reduce_step >= walk->own_steps || walk->send_step <= walk->reduce_step + walk->ahead);
}

static void next_receiver(Walk *walk) {
    if (++walk->send_offset < walk->size) return;
    walk->send_offset = 1;
    walk->send_step++;
}

/* Sends summands to one receiver, if there is a slot. */
static Status send_some(Walk *walk, bool *moved) {
    HostEngine *host = walk->host;
    while (may_send(walk)) {
        int owner = (walk->me + walk->send_offset) % walk->size;
        if (!has_step(walk, owner, walk->send_step)) {
            next_receiver(walk);
            continue;
        }
        CommSlot slot;
        bool got = false;
        TRY(comm_try_acquire(host->setup->comm, &slot, &got));
        if (!got) return STATUS_OK;
        const WireSlice *slice = slice_at(walk, owner, walk->send_step);
        TRY(allreduce_encode_term(host, slice, summands(walk, slice), walk->exchange->feedback, slot.data));
        uint64_t tag = allreduce_tag(host, slice_index(walk, owner, walk->send_step));
        TRY(comm_publish_to(host->setup->comm, &slot, slice->bytes, tag, LANE_TERMS, rank_of(walk, owner)));
        next_receiver(walk);
        *moved = true;
        return STATUS_OK;
    }
    return STATUS_OK;
}

/* ---- reducing ---- */

/* The member whose term is next: rank order. Member 1 may begin with its own, since a + b = b + a. */
static int member_of_term(const Walk *walk, int term) {
    if (walk->me != 1 || term > 1) return term;
    return 1 - term;
}

static Summands sum_so_far(const Walk *walk) { return (Summands){walk->host->sum, walk->host->map->wide_type, false}; }

static Status add_own(Walk *walk, const WireSlice *slice) {
    const Exchange *e = walk->exchange;
    Summands own = summands(walk, slice);
    bool feedback = e->feedback && e->gather; /* if the sum is quantised later, its residual is added there */
    bool scaled = own.fresh && walk->host->map->scale != 1.0;
    if (walk->sum.x == NULL && !feedback && allreduce_is_sum(walk->host, own) && (walk->size > 1 || !scaled)) {
        walk->sum = own; /* the next addition reads it in place */
        return STATUS_OK;
    }
    TRY(allreduce_add_own(walk->host, slice, own, feedback, walk->sum.x, walk->host->sum));
    walk->sum = sum_so_far(walk);
    return STATUS_OK;
}

static uint8_t *stash_of(const Walk *walk, int member) {
    return walk->host->stash + (size_t)member * walk->host->map->max_slice_bytes;
}

/* With scarce slots: copies what has arrived for this step, whoever sent it. */
static Status take_early(Walk *walk, bool *moved) {
    HostEngine *host = walk->host;
    for (int member = 0; member < walk->size; member++) {
        if (member == walk->me || host->stashed[member]) continue;
        CommSlice got;
        bool here = false;
        TRY(comm_try_receive(host->setup->comm, rank_of(walk, member), LANE_TERMS, &got, &here));
        if (!here) continue;
        int64_t index = slice_index(walk, walk->me, walk->reduce_step);
        TRY(allreduce_check_slice(host, &got, slice_at(walk, walk->me, walk->reduce_step), index));
        memcpy(stash_of(walk, member), got.data, got.bytes);
        comm_release(host->setup->comm, &got);
        host->stashed[member] = true;
        *moved = true;
    }
    return STATUS_OK;
}

/* Adds the next term if it has arrived. */
static Status add_term(Walk *walk, const WireSlice *slice, bool *added) {
    HostEngine *host = walk->host;
    int member = member_of_term(walk, walk->reduce_term);
    *added = true;
    if (member == walk->me) return add_own(walk, slice);
    if (walk->scarce) {
        *added = host->stashed[member];
        if (!*added) return STATUS_OK;
        TRY(allreduce_add_term(host, slice, stash_of(walk, member), walk->sum, host->sum));
    } else {
        CommSlice got;
        TRY(comm_try_receive(host->setup->comm, rank_of(walk, member), LANE_TERMS, &got, added));
        if (!*added) return STATUS_OK;
        TRY(allreduce_check_slice(host, &got, slice, slice_index(walk, walk->me, walk->reduce_step)));
        TRY(allreduce_add_term(host, slice, got.data, walk->sum, host->sum));
        comm_release(host->setup->comm, &got);
    }
    walk->sum = sum_so_far(walk);
    return STATUS_OK;
}

static void keep(const Walk *walk, const WireSlice *slice, const void *data) {
    if (walk->exchange->kept == NULL) return;
    memcpy(walk->exchange->kept + (slice->at - slice_at(walk, 0, 0)->at), data, slice->bytes);
}

/* Stores or publishes the sum of a step; *done is false if there is no slot for it yet. */
static Status finish_step(Walk *walk, const WireSlice *slice, bool *done) {
    HostEngine *host = walk->host;
    *done = true;
    if (!walk->exchange->gather) {
        size_t bytes = (size_t)slice->values * allreduce_type_bytes(host->map->wide_type);
        void *to = destination(walk, slice);
        if (to != walk->sum.x) memcpy(to, walk->sum.x, bytes);
        return STATUS_OK;
    }
    if (walk->send_step <= walk->reduce_step && walk->send_step < walk->steps) {
        *done = false;
        return STATUS_OK;
    }
    CommSlot slot;
    TRY(comm_try_acquire(host->setup->comm, &slot, done));
    if (!*done) return STATUS_OK;
    TRY(allreduce_encode_result(host, slice, walk->sum.x, walk->exchange->feedback, slot.data));
    uint64_t tag = allreduce_tag(host, slice_index(walk, walk->me, walk->reduce_step));
    TRY(allreduce_publish_to_group(host, &walk->exchange->group, &slot, slice->bytes, tag, LANE_RESULTS));
    keep(walk, slice, slot.data);
    return allreduce_decode_result(host, slice, slot.data, destination(walk, slice));
}

static Status reduce_some(Walk *walk, bool *moved) {
    if (walk->reduce_step >= walk->own_steps) return STATUS_OK;
    const WireSlice *slice = slice_at(walk, walk->me, walk->reduce_step);
    if (walk->scarce) TRY(take_early(walk, moved));
    while (walk->reduce_term < walk->size) {
        bool added = false;
        TRY(add_term(walk, slice, &added));
        if (!added) return STATUS_OK;
        walk->reduce_term++;
        *moved = true;
    }
    bool done = false;
    TRY(finish_step(walk, slice, &done));
    if (!done) return STATUS_OK;
    walk->reduce_step++;
    walk->reduce_term = 0;
    walk->sum = (Summands){0};
    if (walk->scarce) memset(walk->host->stashed, 0, (size_t)walk->size * sizeof(bool));
    *moved = true;
    return STATUS_OK;
}

/* ---- gathering ---- */

static Status gather_some(Walk *walk, bool *moved) {
    HostEngine *host = walk->host;
    while (walk->exchange->gather && walk->gather_step < walk->steps) {
        int member = walk->gather_member;
        if (member != walk->me && has_step(walk, member, walk->gather_step)) {
            CommSlice got;
            bool here = false;
            TRY(comm_try_receive(host->setup->comm, rank_of(walk, member), LANE_RESULTS, &got, &here));
            if (!here) return STATUS_OK;
            const WireSlice *slice = slice_at(walk, member, walk->gather_step);
            TRY(allreduce_check_slice(host, &got, slice, slice_index(walk, member, walk->gather_step)));
            keep(walk, slice, got.data);
            TRY(allreduce_decode_result(host, slice, got.data, destination(walk, slice)));
            comm_release(host->setup->comm, &got);
            *moved = true;
        }
        if (++walk->gather_member == walk->size) {
            walk->gather_member = 0;
            walk->gather_step++;
        }
    }
    return STATUS_OK;
}

static bool finished(const Walk *walk) {
    return walk->send_step >= walk->steps && walk->reduce_step >= walk->own_steps &&
           (!walk->exchange->gather || walk->gather_step >= walk->steps);
}

static Walk walk_start(HostEngine *host, const Exchange *exchange) {
    Walk walk = {.host = host, .exchange = exchange, .size = exchange->group.size, .me = exchange->group.me};
    walk.send_offset = 1;
    walk.own_steps = exchange->chunk[walk.me].slices;
    for (int m = 0; m < walk.size; m++) {
        if (exchange->chunk[m].slices > walk.steps) walk.steps = exchange->chunk[m].slices;
    }
    if (walk.size == 1) walk.send_step = walk.steps;
    int slots = comm_slots(host->setup->comm);
    walk.scarce = slots < walk.size;
    walk.ahead = walk.scarce || walk.size == 1 ? 0 : (slots - 1) / (walk.size - 1) - 1;
    if (walk.ahead > MAX_AHEAD) walk.ahead = MAX_AHEAD;
    return walk;
}

Status allreduce_exchange(HostEngine *host, const Exchange *exchange) {
    Walk walk = walk_start(host, exchange);
    if (walk.scarce) memset(host->stashed, 0, (size_t)walk.size * sizeof(bool));
    while (!finished(&walk)) {
        bool moved = false;
        TRY(gather_some(&walk, &moved));
        TRY(reduce_some(&walk, &moved));
        TRY(send_some(&walk, &moved));
        if (!moved) TRY(comm_wait(host->setup->comm));
    }
    return STATUS_OK;
}
