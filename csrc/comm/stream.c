/* Streams of slices: slots taken and published in place, queues read, everything without a lock or a wait (the
 * blocking forms are built on comm_wait). */
#include "comm/internal.h"

#include <assert.h>

#include "base/bytes.h"

/* ---- slots ---- */

/* Reclaims published slots that all their readers have released, the oldest first, so that the warmest is on top of the
 * free stack. */
static void reclaim(Comm *comm) {
    int kept = 0;
    for (int i = 0; i < comm->in_flight_count; i++) {
        int slot = comm->in_flight_slots[i];
        const SlotMark *mark = comm_segment_mark(&comm->segment, comm->segment.seat, slot);
        if (atomic_load_explicit(&mark->readers, memory_order_acquire) == 0) {
            comm->slot_state[slot] = SLOT_FREE;
            comm->free_slots[comm->free_count++] = slot;
        } else {
            comm->in_flight_slots[kept++] = slot;
        }
    }
    comm->in_flight_count = kept;
}

Status comm_try_acquire(Comm *comm, CommSlot *slot, bool *got) {
    assert(comm->depth > 0);
    reclaim(comm);
    if (comm->free_count == 0 && comm->net != NULL) {
        TRY(comm_net_progress(comm->net));
        reclaim(comm);
    }
    *got = comm->free_count > 0;
    if (!*got) {
        comm->wants_slot = true;
        return STATUS_OK;
    }
    int index = comm->free_slots[--comm->free_count];
    comm->slot_state[index] = SLOT_ACQUIRED;
    *slot = (CommSlot){.data = comm_segment_data(&comm->segment, comm->segment.seat, index),
                       .capacity = comm->segment.slot_bytes,
                       .index = index};
    return STATUS_OK;
}

Status comm_acquire(Comm *comm, CommSlot *slot) {
    bool got = false;
    while (true) {
        TRY(comm_try_acquire(comm, slot, &got));
        if (got) return STATUS_OK;
        if (comm->in_flight_count == 0) {
            FAIL(STATUS_ARGUMENT, "all %d slots are acquired and none is published: nothing could ever free one",
                 comm->segment.slots);
        }
        TRY(comm_wait(comm));
    }
}

/* ---- producer ---- */

static void enqueue(Comm *comm, int to, int index, size_t bytes, uint64_t tag, int lane) {
    CommPlace *place = &comm->places[to];
    Queue *queue = comm_segment_queue(&comm->segment, comm->segment.seat, place->seat, lane);
    uint32_t at = atomic_load_explicit(&queue->published, memory_order_relaxed);
    queue->entry[at % SEGMENT_SLOTS_MAX] = (QueueEntry){.slot = (uint32_t)index, .bytes = (uint32_t)bytes, .tag = tag};
    atomic_store_explicit(&queue->published, at + 1, memory_order_release);
    comm_segment_wake(&comm->segment, place->seat);
}

static Status check_publish(const Comm *comm, const CommSlot *slot, size_t bytes, const int *ranks, int count) {
    if (slot->index < 0 || slot->index >= comm->segment.slots || comm->slot_state[slot->index] != SLOT_ACQUIRED) {
        FAIL(STATUS_ARGUMENT, "slot %d is not acquired", slot->index);
    }
    if (bytes > comm->segment.slot_bytes) {
        FAIL(STATUS_ARGUMENT, "a slice of %zu bytes does not fit into a slot of %zu", bytes, comm->segment.slot_bytes);
    }
    for (int i = 0; i < count; i++) {
        if (ranks[i] < 0 || ranks[i] >= comm->size) FAIL(STATUS_ARGUMENT, "no rank %d among %d", ranks[i], comm->size);
    }
    return STATUS_OK;
}

Status comm_stream_publish(Comm *comm, const CommSlot *slot, size_t bytes, uint64_t tag, int lane, const int *ranks,
                           int count) {
    assert(comm->depth > 0 && lane >= 0 && lane < SEGMENT_LANES && count >= 0);
    TRY(check_publish(comm, slot, bytes, ranks, count));
    int seat = comm->segment.seat;
    SlotMark *mark = comm_segment_mark(&comm->segment, seat, slot->index);
    atomic_store_explicit(&mark->readers, (uint32_t)count, memory_order_relaxed);
    comm->slot_state[slot->index] = SLOT_IN_FLIGHT;
    comm->in_flight_slots[comm->in_flight_count++] = slot->index;
    unsigned char *frame = comm_segment_frame(&comm->segment, seat, slot->index);
    if (comm->net != NULL) {
        FrameHeader header = {.tag = tag, .bytes = (uint32_t)bytes};
        memcpy(frame, &header, sizeof header);
    }
    for (int i = 0; i < count; i++) {
        if (comm->places[ranks[i]].seat >= 0) {
            enqueue(comm, ranks[i], slot->index, bytes, tag, lane);
        } else {
            TRY(comm_net_send(comm->net, ranks[i], lane, frame, SEGMENT_FRAME_BYTES + bytes, &mark->readers));
        }
    }
    return STATUS_OK;
}

Status comm_publish(Comm *comm, const CommSlot *slot, size_t bytes, uint64_t tag, int lane, const int *ranks,
                    int count) {
    assert(lane < COMM_LANES);
    return comm_stream_publish(comm, slot, bytes, tag, lane, ranks, count);
}

Status comm_publish_to(Comm *comm, const CommSlot *slot, size_t bytes, uint64_t tag, int lane, int rank) {
    assert(lane < COMM_LANES);
    return comm_stream_publish(comm, slot, bytes, tag, lane, &rank, 1);
}

/* ---- reader ---- */

static Status take_shared(Comm *comm, int from, int lane, CommSlice *slice, bool *got) {
    int seat = comm->places[from].seat;
    Queue *queue = comm_segment_queue(&comm->segment, seat, comm->segment.seat, lane);
    uint32_t taken = atomic_load_explicit(&queue->taken, memory_order_relaxed);
    *got = atomic_load_explicit(&queue->published, memory_order_acquire) != taken;
    if (!*got) return STATUS_OK;
    if (taken - atomic_load_explicit(&queue->released, memory_order_relaxed) >= COMM_HELD_MAX) {
        FAIL(STATUS_ARGUMENT, "%d slices of rank %d are held already: release one first", COMM_HELD_MAX, from);
    }
    QueueEntry entry = queue->entry[taken % SEGMENT_SLOTS_MAX];
    if (entry.slot >= (uint32_t)comm->segment.slots || entry.bytes > comm->segment.slot_bytes) {
        return error_at_rank(error_fail(STATUS_TRANSPORT,
                                        "rank %d published slot %u with %u bytes: its memory is "
                                        "corrupt",
                                        from, entry.slot, entry.bytes),
                             from);
    }
    atomic_store_explicit(&queue->taken, taken + 1, memory_order_relaxed);
    *slice = (CommSlice){.data = comm_segment_data(&comm->segment, seat, (int)entry.slot),
                         .bytes = entry.bytes,
                         .tag = entry.tag,
                         .from = from,
                         .lane = lane,
                         .token = entry.slot};
    return STATUS_OK;
}

static Status take_remote(Comm *comm, int from, int lane, CommSlice *slice, bool *got) {
    if (comm_net_held(comm->net, from, lane) >= COMM_HELD_MAX) {
        FAIL(STATUS_ARGUMENT, "%d slices of rank %d are held already: release one first", COMM_HELD_MAX, from);
    }
    CommNetFrame frame;
    TRY(comm_net_take(comm->net, from, lane, &frame));
    *got = frame.frame != NULL;
    if (!*got) return STATUS_OK;
    FrameHeader header;
    memcpy(&header, frame.frame, sizeof header);
    if (frame.bytes < SEGMENT_FRAME_BYTES || header.bytes != frame.bytes - SEGMENT_FRAME_BYTES) {
        return error_at_rank(error_fail(STATUS_TRANSPORT, "a frame of %zu bytes from rank %d says that it holds %u",
                                        frame.bytes, from, header.bytes),
                             from);
    }
    *slice = (CommSlice){.data = frame.frame + SEGMENT_FRAME_BYTES,
                         .bytes = header.bytes,
                         .tag = header.tag,
                         .from = from,
                         .lane = lane,
                         .token = (uint32_t)frame.number};
    return STATUS_OK;
}

Status comm_stream_try_receive(Comm *comm, int from, int lane, CommSlice *slice, bool *got) {
    assert(comm->depth > 0 && lane >= 0 && lane < SEGMENT_LANES);
    if (from < 0 || from >= comm->size) FAIL(STATUS_ARGUMENT, "no rank %d among %d", from, comm->size);
    TRY((comm->places[from].seat >= 0 ? take_shared : take_remote)(comm, from, lane, slice, got));
    if (!*got) comm_wait_want(comm, from, lane);
    return STATUS_OK;
}

Status comm_stream_receive(Comm *comm, int from, int lane, CommSlice *slice) {
    bool got = false;
    while (true) {
        TRY(comm_stream_try_receive(comm, from, lane, slice, &got));
        if (got) return STATUS_OK;
        TRY(comm_wait(comm));
    }
}

Status comm_try_receive(Comm *comm, int from, int lane, CommSlice *slice, bool *got) {
    assert(lane < COMM_LANES);
    return comm_stream_try_receive(comm, from, lane, slice, got);
}

Status comm_receive(Comm *comm, int from, int lane, CommSlice *slice) {
    assert(lane < COMM_LANES);
    return comm_stream_receive(comm, from, lane, slice);
}

void comm_release(Comm *comm, const CommSlice *slice) {
    int seat = comm->places[slice->from].seat;
    if (seat < 0) {
        comm_net_release(comm->net, slice->from, slice->lane, (int)slice->token);
        return;
    }
    Queue *queue = comm_segment_queue(&comm->segment, seat, comm->segment.seat, slice->lane);
    uint32_t released = atomic_load_explicit(&queue->released, memory_order_relaxed);
    atomic_store_explicit(&queue->released, released + 1, memory_order_relaxed);
    SlotMark *mark = comm_segment_mark(&comm->segment, seat, (int)slice->token);
    if (atomic_fetch_sub_explicit(&mark->readers, 1, memory_order_acq_rel) == 1)
        comm_segment_wake(&comm->segment, seat);
}
