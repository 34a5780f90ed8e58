/* Ring: the sum of each chunk travels once around and is quantised again at every hop; then the result travels around
 * as it is. All ranks walk in one strict order (hop, step): publish, then take, so blocking forms suffice. */
#include <string.h>

#include "allreduce/internal.h"

#define LANE_TERMS 0
#define LANE_RESULTS 1

typedef struct Ring {
    AllreducePlan *plan;
    uint8_t *buffer;
    int size, me, next, previous;
} Ring;

static const Chunk *chunk_at(const Ring *ring, int index) {
    return &ring->plan->partition.chunk[(index + 2 * ring->size) % ring->size];
}

static uint8_t *elements(const Ring *ring, const Slice *slice) {
    return ring->buffer + slice->first * (int64_t)plan_item_bytes(ring->plan);
}

/* Where the partial sum of a slice lies: in the buffer if that has the wide type, else in one of two chunks in turn. */
static void *partial(const Ring *ring, const Chunk *chunk, const Slice *slice, int hop) {
    if (ring->plan->partial[0] == NULL) return elements(ring, slice);
    return ring->plan->partial[hop % 2] + (slice->first - chunk->first);
}

static Status publish(const Ring *ring, const CommSlot *slot, const Slice *slice, int64_t index, int lane) {
    return comm_publish_to(ring->plan->comm, slot, slice->bytes, transfer_tag(ring->plan, index), lane, ring->next);
}

/* Hop `hop` of the reduction, one slice: the partial sum of chunk me - hop goes out. */
static Status send_partial(const Ring *ring, int hop, int64_t step) {
    AllreducePlan *plan = ring->plan;
    const Chunk *chunk = chunk_at(ring, ring->me - hop);
    if (step >= chunk->slices) return STATUS_OK;
    const Slice *slice = &plan->partition.slice[chunk->slice + step];
    CommSlot slot;
    TRY(comm_acquire(plan->comm, &slot));
    Summands from = {elements(ring, slice), plan->options.type, true};
    if (hop > 0) from = (Summands){partial(ring, chunk, slice, hop - 1), plan->wide_type, false};
    TRY(slice_encode_term(plan, slice, from, plan->options.error_feedback, slot.data));
    return publish(ring, &slot, slice, chunk->slice + step, LANE_TERMS);
}

static Status receive(const Ring *ring, int lane, const Slice *slice, int64_t index, CommSlice *got) {
    TRY(comm_receive(ring->plan->comm, ring->previous, lane, got));
    return transfer_check(ring->plan, got, slice, index);
}

/* The partial sum of chunk me - hop - 1 comes in; this rank's own elements are added. */
static Status take_partial(const Ring *ring, int hop, int64_t step) {
    AllreducePlan *plan = ring->plan;
    const Chunk *chunk = chunk_at(ring, ring->me - hop - 1);
    if (step >= chunk->slices) return STATUS_OK;
    const Slice *slice = &plan->partition.slice[chunk->slice + step];
    CommSlice got;
    TRY(receive(ring, LANE_TERMS, slice, chunk->slice + step, &got));
    TRY(slice_add_term(plan, slice, got.data, NULL, plan->sum));
    comm_release(plan->comm, &got);
    return slice_add_own(plan, slice, (Summands){elements(ring, slice), plan->options.type, true}, false, plan->sum,
                         partial(ring, chunk, slice, hop));
}

static uint8_t *kept(const Ring *ring, const Chunk *chunk, const Slice *slice, int hop) {
    return ring->plan->kept[hop % 2] + (slice->at - ring->plan->partition.slice[chunk->slice].at);
}

/* Hop `hop` of the gathering: the result of chunk me + 1 - hop goes out, encoded here at the first hop. */
static Status send_result(const Ring *ring, int hop, int64_t step) {
    AllreducePlan *plan = ring->plan;
    const Chunk *chunk = chunk_at(ring, ring->me + 1 - hop);
    if (step >= chunk->slices) return STATUS_OK;
    const Slice *slice = &plan->partition.slice[chunk->slice + step];
    CommSlot slot;
    TRY(comm_acquire(plan->comm, &slot));
    if (hop > 0) {
        memcpy(slot.data, kept(ring, chunk, slice, hop - 1), slice->bytes);
        return publish(ring, &slot, slice, chunk->slice + step, LANE_RESULTS);
    }
    void *sum = partial(ring, chunk, slice, ring->size - 2);
    if (plan->options.error_feedback) {
        TRY(slice_add_own(plan, slice, (Summands){sum, plan->wide_type, false}, true, NULL, plan->sum));
        sum = plan->sum;
    }
    TRY(slice_encode_result(plan, slice, sum, plan->options.error_feedback, slot.data));
    TRY(publish(ring, &slot, slice, chunk->slice + step, LANE_RESULTS));
    return slice_decode_result(plan, slice, slot.data, elements(ring, slice));
}

static Status take_result(const Ring *ring, int hop, int64_t step) {
    AllreducePlan *plan = ring->plan;
    const Chunk *chunk = chunk_at(ring, ring->me - hop);
    if (step >= chunk->slices) return STATUS_OK;
    const Slice *slice = &plan->partition.slice[chunk->slice + step];
    CommSlice got;
    TRY(receive(ring, LANE_RESULTS, slice, chunk->slice + step, &got));
    memcpy(kept(ring, chunk, slice, hop), got.data, slice->bytes);
    TRY(slice_decode_result(plan, slice, got.data, elements(ring, slice)));
    comm_release(plan->comm, &got);
    return STATUS_OK;
}

Status ring_run(AllreducePlan *plan, void *buffer) {
    int size = comm_size(plan->comm), me = comm_rank(plan->comm);
    Ring ring = {plan, buffer, size, me, (me + 1) % size, (me + size - 1) % size};
    int64_t steps = 0;
    for (int c = 0; c < size; c++) {
        if (plan->partition.chunk[c].slices > steps) steps = plan->partition.chunk[c].slices;
    }
    for (int hop = 0; hop < size - 1; hop++) {
        for (int64_t step = 0; step < steps; step++) {
            TRY(send_partial(&ring, hop, step));
            TRY(take_partial(&ring, hop, step));
        }
    }
    for (int hop = 0; hop < size - 1; hop++) {
        for (int64_t step = 0; step < steps; step++) {
            TRY(send_result(&ring, hop, step));
            TRY(take_result(&ring, hop, step));
        }
    }
    return STATUS_OK;
}
