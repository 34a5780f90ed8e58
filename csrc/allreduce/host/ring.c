/* Ring: the sum of each chunk travels around once and is quantised again at every hop; then the result travels around
 * unchanged. All ranks walk in one strict order (hop, step): publish, then take, so blocking forms suffice. */
#include <string.h>

#include "allreduce/host/host.h"

#define LANE_TERMS 0
#define LANE_RESULTS 1

typedef struct Ring {
    HostEngine *host;
    uint8_t *buffer;
    int size, me, next, previous;
} Ring;

static const WireChunk *chunk_at(const Ring *ring, int index) {
    return wire_chunk(ring->host->map, (index + 2 * ring->size) % ring->size);
}

/* Where the partial sum of a slice is: in the buffer if possible, else in one of two alternating chunks. */
static void *partial(const Ring *ring, const WireChunk *chunk, const WireSlice *slice, int hop) {
    if (ring->host->partial[0] == NULL) return host_elements(ring->host, ring->buffer, slice);
    return ring->host->partial[hop % 2] + (slice->first_value - chunk->first_value);
}

static Status publish(const Ring *ring, const CommSlot *slot, const WireSlice *slice, int64_t index, int lane) {
    return comm_publish_to(ring->host->setup->comm, slot, slice->bytes, allreduce_tag(ring->host, index), lane,
                           ring->next);
}

/* Hop `hop` of the reduction, one slice: the partial sum of chunk me - hop goes out. */
static Status send_partial(const Ring *ring, int hop, int64_t step) {
    HostEngine *host = ring->host;
    const WireChunk *chunk = chunk_at(ring, ring->me - hop);
    if (step >= chunk->slices) return STATUS_OK;
    const WireSlice *slice = wire_slice(host->map, chunk->slice + step);
    CommSlot slot;
    TRY(comm_acquire(host->setup->comm, &slot));
    Summands from = {host_elements(ring->host, ring->buffer, slice), host->map->type, true};
    if (hop > 0) from = (Summands){partial(ring, chunk, slice, hop - 1), host->map->wide_type, false};
    TRY(allreduce_encode_term(host, slice, from, host->extent->feedback, slot.data));
    return publish(ring, &slot, slice, chunk->slice + step, LANE_TERMS);
}

static Status receive(const Ring *ring, int lane, const WireSlice *slice, int64_t index, CommSlice *got) {
    TRY(comm_receive(ring->host->setup->comm, ring->previous, lane, got));
    return allreduce_check_slice(ring->host, got, slice, index);
}

/* The partial sum of chunk me - hop - 1 comes in; this rank's own elements are added. */
static Status take_partial(const Ring *ring, int hop, int64_t step) {
    HostEngine *host = ring->host;
    const WireChunk *chunk = chunk_at(ring, ring->me - hop - 1);
    if (step >= chunk->slices) return STATUS_OK;
    const WireSlice *slice = wire_slice(host->map, chunk->slice + step);
    CommSlice got;
    TRY(receive(ring, LANE_TERMS, slice, chunk->slice + step, &got));
    TRY(allreduce_add_term(host, slice, got.data, (Summands){0}, host->sum));
    comm_release(host->setup->comm, &got);
    return allreduce_add_own(host, slice,
                             (Summands){host_elements(ring->host, ring->buffer, slice), host->map->type, true}, false,
                             host->sum, partial(ring, chunk, slice, hop));
}

static uint8_t *kept(const Ring *ring, const WireChunk *chunk, const WireSlice *slice, int hop) {
    return ring->host->kept[hop % 2] + (slice->at - wire_slice(ring->host->map, chunk->slice)->at);
}

/* Hop `hop` of the all-gather: the result of chunk me + 1 - hop goes out, encoded here at the first hop. */
static Status send_result(const Ring *ring, int hop, int64_t step) {
    HostEngine *host = ring->host;
    const WireChunk *chunk = chunk_at(ring, ring->me + 1 - hop);
    if (step >= chunk->slices) return STATUS_OK;
    const WireSlice *slice = wire_slice(host->map, chunk->slice + step);
    CommSlot slot;
    TRY(comm_acquire(host->setup->comm, &slot));
    if (hop > 0) {
        memcpy(slot.data, kept(ring, chunk, slice, hop - 1), slice->bytes);
        return publish(ring, &slot, slice, chunk->slice + step, LANE_RESULTS);
    }
    void *sum = partial(ring, chunk, slice, ring->size - 2);
    if (host->extent->feedback) {
        TRY(allreduce_add_own(host, slice, (Summands){sum, host->map->wide_type, false}, true, NULL, host->sum));
        sum = host->sum;
    }
    TRY(allreduce_encode_result(host, slice, sum, host->extent->feedback, slot.data));
    TRY(publish(ring, &slot, slice, chunk->slice + step, LANE_RESULTS));
    return allreduce_decode_result(host, slice, slot.data, host_elements(ring->host, ring->buffer, slice));
}

static Status take_result(const Ring *ring, int hop, int64_t step) {
    HostEngine *host = ring->host;
    const WireChunk *chunk = chunk_at(ring, ring->me - hop);
    if (step >= chunk->slices) return STATUS_OK;
    const WireSlice *slice = wire_slice(host->map, chunk->slice + step);
    CommSlice got;
    TRY(receive(ring, LANE_RESULTS, slice, chunk->slice + step, &got));
    memcpy(kept(ring, chunk, slice, hop), got.data, slice->bytes);
    TRY(allreduce_decode_result(host, slice, got.data, host_elements(ring->host, ring->buffer, slice)));
    comm_release(host->setup->comm, &got);
    return STATUS_OK;
}

Status allreduce_ring(HostEngine *host, void *buffer) {
    int size = comm_size(host->setup->comm), me = comm_rank(host->setup->comm);
    Ring ring = {host, buffer, size, me, (me + 1) % size, (me + size - 1) % size};
    int64_t steps = 0;
    for (int c = 0; c < size; c++) {
        if (wire_chunk(host->map, c)->slices > steps) steps = wire_chunk(host->map, c)->slices;
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
