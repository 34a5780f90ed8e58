/* Broadcast and all-gather: one round of the boards for small blocks; for large ones the round only agrees on the
 * call, and slices on the private lane carry the bytes. */
#include "comm/internal.h"

#include <string.h>

static size_t slice_bytes(const Comm *comm, size_t done, size_t bytes) {
    size_t most = comm_slot_bytes(comm);
    return bytes - done < most ? bytes - done : most;
}

static Status check_slice(const CommSlice *slice, size_t step, size_t bytes) {
    if (slice->bytes == bytes && slice->tag == step) return STATUS_OK;
    return error_at_rank(error_fail(STATUS_TRANSPORT,
                                    "expected slice %zu of %zu bytes from rank %d, but slice %llu of %zu arrived", step,
                                    bytes, slice->from, (unsigned long long)slice->tag, slice->bytes),
                         slice->from);
}

/* ---- broadcast ---- */

static Status send_all(Comm *comm, const unsigned char *data, size_t bytes) {
    for (size_t done = 0, step = 0; done < bytes; step++) {
        size_t part = slice_bytes(comm, done, bytes);
        CommSlot slot;
        TRY(comm_acquire(comm, &slot));
        memcpy(slot.data, data + done, part);
        TRY(comm_stream_publish(comm, &slot, part, step, COMM_INTERNAL_LANE, comm->others, comm->size - 1));
        done += part;
        TRY(comm_progress(comm));
    }
    return STATUS_OK;
}

static Status receive_all(Comm *comm, int root, unsigned char *data, size_t bytes) {
    for (size_t done = 0, step = 0; done < bytes; step++) {
        size_t part = slice_bytes(comm, done, bytes);
        CommSlice slice;
        TRY(comm_stream_receive(comm, root, COMM_INTERNAL_LANE, &slice));
        TRY(check_slice(&slice, step, part));
        memcpy(data + done, slice.data, part);
        comm_release(comm, &slice);
        done += part;
    }
    return STATUS_OK;
}

static Status broadcast(Comm *comm, int root, void *data, size_t bytes) {
    if (bytes <= COMM_HEADER_BYTES) {
        TRY(comm_board_round(comm, BOARD_BROADCAST, root, bytes, data, bytes, comm->blocks));
        if (bytes > 0) memcpy(data, comm->blocks + (size_t)root * bytes, bytes);
        return STATUS_OK;
    }
    TRY(comm_board_round(comm, BOARD_BROADCAST, root, bytes, NULL, 0, NULL));
    return comm->rank == root ? send_all(comm, data, bytes) : receive_all(comm, root, data, bytes);
}

Status comm_broadcast(Comm *comm, int root, void *data, size_t bytes) {
    if (root < 0 || root >= comm->size) FAIL(STATUS_ARGUMENT, "root %d is not a rank of %d", root, comm->size);
    TRY(comm_begin(comm, "broadcast", 0));
    return comm_end(comm, broadcast(comm, root, data, bytes));
}

/* ---- all-gather ---- */

typedef struct Gather {
    Comm *comm;
    const unsigned char *mine;
    unsigned char *all;
    size_t bytes, sent, sent_steps;
    size_t taken_steps;
    int next; /* the rank whose slice of step `taken_steps` comes next */
} Gather;

static Status gather_send(Gather *g, bool *moved) {
    CommSlot slot;
    bool got = false;
    if (g->sent == g->bytes) return STATUS_OK;
    TRY(comm_try_acquire(g->comm, &slot, &got));
    if (!got) return STATUS_OK;
    size_t part = slice_bytes(g->comm, g->sent, g->bytes);
    memcpy(slot.data, g->mine + g->sent, part);
    TRY(comm_stream_publish(g->comm, &slot, part, g->sent_steps, COMM_INTERNAL_LANE, g->comm->others,
                            g->comm->size - 1));
    g->sent += part;
    g->sent_steps++;
    *moved = true;
    return STATUS_OK;
}

/* Takes slices by step, then by producer. */
static Status gather_take(Gather *g, size_t steps, bool *moved) {
    size_t slot_bytes = comm_slot_bytes(g->comm);
    while (g->taken_steps < steps) {
        if (g->next != g->comm->rank) {
            CommSlice slice;
            bool got = false;
            TRY(comm_stream_try_receive(g->comm, g->next, COMM_INTERNAL_LANE, &slice, &got));
            if (!got) return STATUS_OK;
            size_t at = g->taken_steps * slot_bytes;
            TRY(check_slice(&slice, g->taken_steps, slice_bytes(g->comm, at, g->bytes)));
            memcpy(g->all + (size_t)g->next * g->bytes + at, slice.data, slice.bytes);
            comm_release(g->comm, &slice);
            *moved = true;
        }
        if (++g->next == g->comm->size) {
            g->next = 0;
            g->taken_steps++;
        }
    }
    return STATUS_OK;
}

static Status allgather_large(Comm *comm, const void *mine, size_t bytes, void *all) {
    TRY(comm_board_round(comm, BOARD_ALLGATHER, -1, bytes, NULL, 0, NULL));
    if (comm->size == 1) return STATUS_OK;
    Gather g = {.comm = comm, .mine = mine, .all = all, .bytes = bytes};
    size_t steps = (bytes + comm_slot_bytes(comm) - 1) / comm_slot_bytes(comm);
    while (g.sent < bytes || g.taken_steps < steps) {
        bool moved = false;
        TRY(gather_send(&g, &moved));
        TRY(gather_take(&g, steps, &moved));
        if (!moved && (g.sent < bytes || g.taken_steps < steps)) TRY(comm_wait(comm));
    }
    return STATUS_OK;
}

Status comm_allgather(Comm *comm, const void *mine, size_t bytes, void *all) {
    TRY(comm_begin(comm, "allgather", 0));
    if (bytes <= COMM_HEADER_BYTES) {
        return comm_end(comm, comm_board_round(comm, BOARD_ALLGATHER, -1, bytes, mine, bytes, all));
    }
    memcpy((unsigned char *)all + (size_t)comm->rank * bytes, mine, bytes);
    return comm_end(comm, allgather_large(comm, mine, bytes, all));
}
