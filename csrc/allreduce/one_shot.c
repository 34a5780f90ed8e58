/* One-shot exchange: each rank quantises once, everyone adds the decoded pieces of all ranks in rank order. Also the
 * last phase of two-level: passing slices on inside a node as they came. */
#include <string.h>

#include "allreduce/internal.h"

#define LANE 0
#define AHEAD 3 /* slices published before the own place of addition */

/* A walk over the slices; every rank takes them in the order (step, rank), so that taking never waits for publishing.
 */
typedef struct Walk {
    AllreducePlan *plan;
    uint8_t *buffer;
    int64_t steps, published, added;
    int rank; /* the next term of step `added` */
} Walk;

static const Slice *slice_at(const Walk *walk, int64_t step) { return &walk->plan->partition.slice[step]; }

static uint8_t *elements(const Walk *walk, const Slice *slice) {
    return walk->buffer + slice->first * (int64_t)plan_item_bytes(walk->plan);
}

static Status publish_some(Walk *walk, bool *moved) {
    AllreducePlan *plan = walk->plan;
    if (walk->published >= walk->steps || walk->published > walk->added + AHEAD) return STATUS_OK;
    CommSlot slot;
    bool got = false;
    TRY(comm_try_acquire(plan->comm, &slot, &got));
    if (!got) return STATUS_OK;
    const Slice *slice = slice_at(walk, walk->published);
    TRY(slice_encode_term(plan, slice, (Summands){elements(walk, slice), plan->options.type, true},
                          plan->options.error_feedback, slot.data));
    TRY(comm_publish(plan->comm, &slot, slice->bytes, transfer_tag(plan, walk->published), LANE, plan->members[0],
                     comm_size(plan->comm)));
    walk->published++;
    *moved = true;
    return STATUS_OK;
}

/* Adds the next term if it is here. Sums of float32 and of what is not quantised grow in the buffer itself, whose
 * elements have been published before. */
static Status add_some(Walk *walk, bool *moved) {
    AllreducePlan *plan = walk->plan;
    if (walk->added >= walk->published) return STATUS_OK;
    const Slice *slice = slice_at(walk, walk->added);
    CommSlice got;
    bool here = false;
    TRY(comm_try_receive(plan->comm, walk->rank, LANE, &got, &here));
    if (!here) return STATUS_OK;
    TRY(transfer_check(plan, &got, slice, walk->added));
    void *sum = plan->options.type == plan->wide_type ? (void *)elements(walk, slice) : plan->sum;
    const void *before = walk->rank == 0 ? NULL : sum;
    if (walk->rank < comm_size(plan->comm) - 1) {
        TRY(slice_add_term(plan, slice, got.data, before, sum));
        walk->rank++;
    } else {
        TRY(slice_add_last(plan, slice, got.data, before, elements(walk, slice)));
        walk->rank = 0;
        walk->added++;
    }
    comm_release(plan->comm, &got);
    *moved = true;
    return STATUS_OK;
}

Status one_shot_run(AllreducePlan *plan, void *buffer) {
    Walk walk = {.plan = plan, .buffer = buffer, .steps = plan->partition.slices};
    while (walk.added < walk.steps) {
        bool moved = false;
        TRY(add_some(&walk, &moved));
        if (!moved) TRY(publish_some(&walk, &moved));
        if (!moved) TRY(comm_wait(plan->comm));
    }
    return STATUS_OK;
}
