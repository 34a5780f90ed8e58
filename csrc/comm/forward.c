/* The thread that forwards between kernels of different nodes, and its send and receive buffers. It takes sends in
 * the order in which kernels have handed them over, packs those for one rank into slots, and publishes these as slices
 * over a communicator of its own. What arrives from a rank it copies into the receive buffer for that rank, and then
 * sets the flag. It never blocks: all that arrives has a place, at the same offset in the send and receive buffers.
 *
 * A slice is a sequence of messages: each a MessageHeader and its data, padded to 16 bytes. An empty slice
 * is a rank's last. */
#include "comm/forward.h"

#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/clock.h"
#include "base/memory.h"
#include "comm/internal.h"

#define BUFFER_ALIGNMENT ((size_t)4096)
#define MESSAGE_ALIGNMENT 16
#define LANE 0
#define NO_FLAG UINT32_MAX /* more of this send follows */
#define YIELD_NS 2000000LL /* since something was moved */
#define SLEEP_US 50
#define LEAVE_S 5.0 /* how long to wait for the others at the end */

typedef struct MessageHeader {
    uint32_t at, bytes, flag_at, value;
} MessageHeader;

/* The slice that is being filled for a rank. */
typedef struct Packet {
    CommSlot slot;
    size_t bytes;
    bool open;
    bool last; /* that rank has sent its last slice */
} Packet;

typedef enum ForwardState { FORWARD_RUNS, FORWARD_LEAVES, FORWARD_STOPS } ForwardState;

struct CommForward {
    Comm *parent;                   /* borrowed */
    Comm *comm;                     /* owned: the thread's */
    unsigned char *buffers;         /* owned, page-locked: send buffers, then receive buffers */
    int *buffer_of, *rank_of;       /* owned, [ranks]: the buffer for a rank, or -1; the rank of a buffer */
    int count;                      /* of ranks with buffers */
    size_t bytes, stride;           /* of a buffer; from one to the next */
    CommWindowStatus *status_words; /* borrowed */
    CommWindowSendQueue send_queue; /* its sends are owned (page-locked), and so is its counter (device memory) */
    uint32_t taken;                 /* sends */
    uint32_t packed;                /* bytes of the next send that are packed already */
    Packet *packets;                /* owned, [ranks] */
    pthread_t thread;
    bool started;
    _Atomic int state; /* ForwardState */
};

CommWindowSendQueue comm_forward_send_queue(const CommForward *forward) { return forward->send_queue; }

unsigned char *comm_forward_send_buffer(const CommForward *forward, int rank) {
    int index = forward->buffer_of[rank];
    return index < 0 ? NULL : forward->buffers + (size_t)index * forward->stride;
}

unsigned char *comm_forward_receive_buffer(const CommForward *forward, int rank) {
    int index = forward->buffer_of[rank];
    return index < 0 ? NULL : forward->buffers + (size_t)(forward->count + index) * forward->stride;
}

/* ---- out ---- */

static Status send_packet(CommForward *f, int to) {
    Packet *packet = &f->packets[to];
    if (!packet->open) return STATUS_OK;
    packet->open = false;
    return comm_publish_to(f->comm, &packet->slot, packet->bytes, 0, LANE, to);
}

static Status send_all(CommForward *f) {
    for (int to = 0; to < f->comm->size; to++) TRY(send_packet(f, to));
    return STATUS_OK;
}

static Status open_packet(CommForward *f, int to) {
    Packet *packet = &f->packets[to];
    packet->bytes = 0;
    return packet->open ? STATUS_OK : comm_try_acquire(f->comm, &packet->slot, &packet->open);
}

/* The next send that a kernel has handed over; NULL if there is none. */
static const CommWindowSend *next_send(const CommForward *f) {
    const CommWindowSend *send = &f->send_queue.sends[f->taken & f->send_queue.mask];
    return __atomic_load_n(&send->number, __ATOMIC_ACQUIRE) == f->taken + 1 ? send : NULL;
}

/* Checks a send; *index is that of the buffer it is in. */
static Status check_send(const CommForward *f, const CommWindowSend *send, size_t *index) {
    *index = send->at / f->stride;
    bool fits = *index < (size_t)f->count && send->flag_at / f->stride == *index &&
                checked_within(send->at % f->stride, send->bytes, f->bytes) &&
                checked_within(send->flag_at % f->stride, sizeof(uint32_t), f->bytes);
    if (fits) return STATUS_OK;
    FAIL(STATUS_TRANSPORT, "a kernel handed over %u bytes at %u, which is outside its buffer", send->bytes, send->at);
}

/* Writes the part of a send that fits: all of it, unless even an empty slot is too small for that. */
static void write_message(CommForward *f, const CommWindowSend *send, Packet *packet) {
    uint32_t left = send->bytes - f->packed, from = send->at + f->packed;
    size_t room = packet->slot.capacity - packet->bytes - sizeof(MessageHeader);
    uint32_t part = left <= room ? left : (uint32_t)(room / MESSAGE_ALIGNMENT * MESSAGE_ALIGNMENT);
    uint32_t flag_at = part == left ? (uint32_t)(send->flag_at % f->stride) : NO_FLAG;
    MessageHeader header = {(uint32_t)(from % f->stride), part, flag_at, send->value};
    unsigned char *at = (unsigned char *)packet->slot.data + packet->bytes;
    memcpy(at, &header, sizeof header);
    memcpy(at + sizeof header, f->buffers + from, part);
    packet->bytes += sizeof header + round_up(part, MESSAGE_ALIGNMENT);
    f->packed += part;
}

/* *packed: whether there were slots for all of it. */
static Status pack(CommForward *f, const CommWindowSend *send, bool *packed) {
    size_t index;
    TRY(check_send(f, send, &index));
    int to = f->rank_of[index];
    Packet *packet = &f->packets[to];
    do {
        size_t left = sizeof(MessageHeader) + round_up(send->bytes - f->packed, MESSAGE_ALIGNMENT);
        if (packet->open && packet->bytes + left > packet->slot.capacity) TRY(send_packet(f, to));
        if (!packet->open) TRY(open_packet(f, to));
        if (!packet->open) return STATUS_OK;
        write_message(f, send, packet);
    } while (f->packed < send->bytes);
    *packed = true;
    f->packed = 0;
    return STATUS_OK;
}

/* Full slots are sent at once, the others when there is nothing more to put in. */
static Status send_some(CommForward *f, bool *moved) {
    const CommWindowSend *send;
    while ((send = next_send(f)) != NULL) {
        bool packed = false;
        TRY(pack(f, send, &packed));
        if (!packed) break;
        f->taken++;
        *moved = true;
    }
    return send_all(f);
}

/* ---- in ---- */

static Status fail_damaged(const CommSlice *slice) {
    Status status = error_fail(STATUS_TRANSPORT, "what rank %d sent for a window is damaged", slice->from);
    return error_at_rank(status, slice->from);
}

static Status deliver(CommForward *f, const CommSlice *slice) {
    unsigned char *buffer = comm_forward_receive_buffer(f, slice->from);
    if (buffer == NULL && slice->bytes > 0) return fail_damaged(slice);
    for (size_t at = 0; at < slice->bytes;) {
        MessageHeader header;
        const unsigned char *from = (const unsigned char *)slice->data + at;
        if (slice->bytes - at < sizeof header) return fail_damaged(slice);
        memcpy(&header, from, sizeof header);
        at += sizeof header + round_up(header.bytes, MESSAGE_ALIGNMENT);
        bool flag_fits = checked_within(header.flag_at, sizeof(uint32_t), f->bytes) && header.flag_at % 4 == 0;
        if (at > slice->bytes || !checked_within(header.at, header.bytes, f->bytes) ||
            !(flag_fits || header.flag_at == NO_FLAG)) {
            return fail_damaged(slice);
        }
        memcpy(buffer + header.at, from + sizeof header, header.bytes);
        if (header.flag_at == NO_FLAG) continue;
        __atomic_store_n((uint32_t *)(void *)(buffer + header.flag_at), header.value, __ATOMIC_RELEASE);
    }
    return STATUS_OK;
}

static Status receive_some(CommForward *f, bool *moved) {
    for (int from = 0; from < f->comm->size; from++) {
        CommSlice slice;
        bool got = from != f->comm->rank && !f->packets[from].last;
        while (got) {
            TRY(comm_try_receive(f->comm, from, LANE, &slice, &got));
            if (!got) break;
            Status status = deliver(f, &slice);
            f->packets[from].last = slice.bytes == 0;
            comm_release(f->comm, &slice);
            TRY(status);
            got = !f->packets[from].last;
            *moved = true;
        }
    }
    return STATUS_OK;
}

/* ---- the thread ---- */

static Status forward_some(CommForward *f, bool *moved) {
    TRY(comm_begin(f->comm, "windows between nodes", 0));
    Status status = send_some(f, moved);
    if (status == STATUS_OK) status = receive_some(f, moved);
    return comm_end(f->comm, status);
}

/* Sends this rank's last slices as slots become free; *done once all are out and those of all others have arrived. */
static Status send_last(CommForward *f, int *next, bool *done) {
    TRY(comm_begin(f->comm, "windows between nodes", 0));
    Status status = STATUS_OK;
    while (status == STATUS_OK && *next < f->comm->size) {
        if (*next != f->comm->rank) {
            status = open_packet(f, *next);
            if (status != STATUS_OK || !f->packets[*next].open) break;
            status = send_packet(f, *next);
        }
        ++*next;
    }
    *done = *next == f->comm->size;
    for (int rank = 0; rank < f->comm->size; rank++) *done &= rank == f->comm->rank || f->packets[rank].last;
    return comm_end(f->comm, status);
}

/* The last slices follow the last send, for which there may be no slot while another rank is stopped. */
static Status forward_all(CommForward *f) {
    const int64_t wait_ns = (int64_t)(f->comm->timeout_s * 1e9);
    int64_t moved_ns = clock_now_ns(), leave_ns = 0;
    int next = 0;
    bool done = false;
    while (!done && f->state != FORWARD_STOPS) {
        bool moved = false;
        TRY(forward_some(f, &moved));
        int64_t now = clock_now_ns();
        if (moved) moved_ns = now;
        if (f->state == FORWARD_LEAVES && !moved) {
            bool unsent = next_send(f) != NULL;
            if (!unsent) {
                TRY(send_last(f, &next, &done));
                if (leave_ns == 0) leave_ns = clock_deadline_ns(LEAVE_S);
            }
            int64_t limit_ns = unsent ? moved_ns + wait_ns : leave_ns;
            if (clock_expired(limit_ns) || comm_broken(f->parent, NULL)) return STATUS_OK;
        }
        if (now - moved_ns < YIELD_NS) {
            sched_yield();
        } else {
            usleep(SLEEP_US);
        }
    }
    return STATUS_OK;
}

/* The communicator of the windows' owner breaks with this one, for the same reason. */
static void break_parent(CommForward *f, Status status) {
    const ErrorRecord *error = error_record();
    bool between = status >= STATUS_TRANSPORT && status < STATUS_NOT_BUILT;
    AbortRecord record = {.code = (int32_t)(between ? status : STATUS_TRANSPORT),
                          .rank = between ? error->rank : f->comm->rank};
    snprintf(record.operation, sizeof record.operation, "windows between nodes");
    snprintf(record.message, sizeof record.message, "%.*s", (int)sizeof record.message - 1, error->message);
    comm_wait_break(f->parent, &record);
    f->status_words->abort = 1;
}

static void *forward_main(void *context) {
    CommForward *f = context;
    Status status = forward_all(f);
    if (status != STATUS_OK) break_parent(f, status);
    return NULL;
}

/* ---- making ---- */

static Status make_buffers(CommForward *f, const bool *remote, const CommWindowSizes *sizes) {
    size_t ranks = (size_t)f->parent->size;
    TRY(memory_calloc(ranks, sizeof *f->buffer_of, &f->buffer_of));
    TRY(memory_calloc(ranks, sizeof *f->rank_of, &f->rank_of));
    for (int rank = 0; rank < f->parent->size; rank++) {
        f->buffer_of[rank] = remote[rank] ? f->count : -1;
        if (remote[rank]) f->rank_of[f->count++] = rank;
    }
    f->bytes = sizes->buffer_bytes;
    f->stride = round_up(sizes->buffer_bytes, BUFFER_ALIGNMENT);
    size_t half = (size_t)f->count * f->stride;
    if (half > UINT32_MAX || sizes->sends > UINT32_MAX / 2) {
        FAIL(STATUS_ARGUMENT, "buffers of %zu bytes for %u sends are too large", sizes->buffer_bytes, sizes->sends);
    }
    if (half == 0) return STATUS_OK;
    TRY(device_host_alloc(2 * half, &f->buffers));
    memset(f->buffers, 0, 2 * half);
    return STATUS_OK;
}

static Status make_send_queue(CommForward *f, uint32_t sends) {
    uint32_t capacity = 1;
    while (capacity < sends) capacity *= 2;
    TRY(device_host_alloc(capacity * sizeof *f->send_queue.sends, &f->send_queue.sends));
    memset(f->send_queue.sends, 0, capacity * sizeof *f->send_queue.sends);
    f->send_queue.mask = capacity - 1;
    f->send_queue.send_buffers = f->buffers;
    f->send_queue.bytes = (size_t)f->count * f->stride;
    TRY(device_alloc(sizeof *f->send_queue.next, &f->send_queue.next));
    TRY(device_fill(f->send_queue.next, 0, sizeof *f->send_queue.next, NULL));
    return device_stream_synchronize(NULL);
}

Status comm_forward_create(Comm *comm, const bool *remote, const CommWindowSizes *sizes, CommWindowStatus *status_words,
                           CommForward **out) {
    Status status = STATUS_OK;
    CommForward *f = NULL;
    TRY(memory_calloc(1, sizeof *f, &f));
    f->parent = comm;
    f->status_words = status_words;
    TRY_GOTO(make_buffers(f, remote, sizes));
    TRY_GOTO(make_send_queue(f, sizes->sends));
    TRY_GOTO(memory_calloc((size_t)comm->size, sizeof *f->packets, &f->packets));
    *out = f;
    f = NULL;
done:
    comm_forward_destroy(f, false);
    return status;
}

/* The forwarding thread runs none of the hooks, which are for the thread that made the communicator. */
Status comm_forward_start(CommForward *f) {
    TRY(comm_split(f->parent, 0, f->parent->rank, &f->comm));
    f->comm->hooks = (CommHooks){0};
    TRY_PTHREAD(pthread_create(&f->thread, NULL, forward_main, f));
    f->started = true;
    return STATUS_OK;
}

/* Ends the thread; then frees what it works on and what kernels write. */
static void forward_stop(CommForward *f, bool flush) {
    f->state = !flush || comm_broken(f->parent, NULL) ? FORWARD_STOPS : FORWARD_LEAVES;
    if (f->started) pthread_join(f->thread, NULL);
    device_free(f->send_queue.next);
    device_host_free(f->send_queue.sends);
    device_host_free(f->buffers);
}

void comm_forward_destroy(CommForward *f, bool flush) {
    if (f == NULL) return;
    if (f->parent->owner_pid == (int)getpid()) forward_stop(f, flush); /* a forked child has no such thread */
    comm_destroy(f->comm);
    memory_free(f->buffer_of);
    memory_free(f->rank_of);
    memory_free(f->packets);
    memory_free(f);
}
