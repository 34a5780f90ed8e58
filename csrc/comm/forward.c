/* The thread between kernels and windows on other nodes. It takes parcels in the order in which kernels have handed
 * them over, packs those for one rank into slots, and sends these as slices of a communicator of its own; what comes
 * from others it copies into this rank's window, and then raises the flag. It never blocks: what comes has its place.
 *
 * A slice is letters one after the other: a Letter, and its data, padded to 16 bytes. An empty slice is a rank's
 * last. */
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

#define MOST_PARCELS (UINT32_C(1) << 17)
#define LETTER_ALIGNMENT 16
#define LANE 0
#define NO_FLAG UINT32_MAX /* more of this parcel follows */
#define YIELD_NS 2000000LL /* since something was moved */
#define SLEEP_US 50
#define LEAVE_S 5.0 /* how long the others are waited for at the end */

typedef struct Letter {
    uint32_t at, bytes, flag_at, value;
} Letter;

/* What is being packed for a rank. */
typedef struct Envelope {
    CommSlot slot;
    size_t bytes;
    bool open;
    bool last; /* that rank sends no more */
} Envelope;

typedef enum ForwardState { FORWARD_RUNS, FORWARD_LEAVES, FORWARD_STOPS } ForwardState;

struct CommForward {
    Comm *parent;           /* borrowed */
    Comm *comm;             /* owned: the thread's */
    void *const *bases;     /* borrowed, [ranks] */
    size_t bytes;           /* of each */
    CommWindowSigns *signs; /* borrowed */
    CommWindowPost post;    /* its parcels are owned (page-locked), and so is its counter (device memory) */
    uint32_t taken;         /* parcels */
    uint32_t packed;        /* bytes of the next one that have been */
    Envelope *envelopes;    /* owned, [ranks] */
    pthread_t thread;
    bool started;
    _Atomic int state; /* ForwardState */
};

const CommWindowPost *comm_forward_post(const CommForward *forward) { return &forward->post; }

/* ---- out ---- */

static Status send_envelope(CommForward *f, int to) {
    Envelope *envelope = &f->envelopes[to];
    if (!envelope->open) return STATUS_OK;
    envelope->open = false;
    return comm_publish_to(f->comm, &envelope->slot, envelope->bytes, 0, LANE, to);
}

static Status send_all(CommForward *f) {
    for (int to = 0; to < f->comm->size; to++) TRY(send_envelope(f, to));
    return STATUS_OK;
}

static Status open_envelope(CommForward *f, int to) {
    Envelope *envelope = &f->envelopes[to];
    envelope->bytes = 0;
    return envelope->open ? STATUS_OK : comm_try_acquire(f->comm, &envelope->slot, &envelope->open);
}

/* The next that a kernel has handed over; NULL if there is none. */
static const CommWindowParcel *next_parcel(const CommForward *f) {
    const CommWindowParcel *parcel = &f->post.parcels[f->taken & f->post.mask];
    return __atomic_load_n(&parcel->number, __ATOMIC_ACQUIRE) == f->taken + 1 ? parcel : NULL;
}

static Status check_parcel(const CommForward *f, const CommWindowParcel *parcel) {
    bool fits = checked_within(parcel->at, parcel->bytes, f->bytes) &&
                checked_within(parcel->flag_at, sizeof(uint32_t), f->bytes);
    if (fits && parcel->to < (uint32_t)f->comm->size && parcel->to != (uint32_t)f->comm->rank) return STATUS_OK;
    FAIL(STATUS_TRANSPORT, "a kernel hands over %u bytes at %u for rank %u, which cannot be", parcel->bytes, parcel->at,
         parcel->to);
}

/* A part of a parcel that fits; all of it, unless an empty slot is too small for that. */
static void write_letter(CommForward *f, const CommWindowParcel *parcel, Envelope *envelope) {
    uint32_t left = parcel->bytes - f->packed;
    size_t room = envelope->slot.capacity - envelope->bytes - sizeof(Letter);
    uint32_t part = left <= room ? left : (uint32_t)(room / LETTER_ALIGNMENT * LETTER_ALIGNMENT);
    Letter letter = {parcel->at + f->packed, part, part == left ? parcel->flag_at : NO_FLAG, parcel->value};
    unsigned char *at = (unsigned char *)envelope->slot.data + envelope->bytes;
    memcpy(at, &letter, sizeof letter);
    memcpy(at + sizeof letter, (const unsigned char *)f->bases[parcel->to] + letter.at, part);
    envelope->bytes += sizeof letter + round_up(part, LETTER_ALIGNMENT);
    f->packed += part;
}

/* *packed: whether there were slots for all of it. */
static Status pack(CommForward *f, const CommWindowParcel *parcel, bool *packed) {
    int to = (int)parcel->to;
    TRY(check_parcel(f, parcel));
    Envelope *envelope = &f->envelopes[to];
    do {
        size_t left = sizeof(Letter) + round_up(parcel->bytes - f->packed, LETTER_ALIGNMENT);
        if (envelope->open && envelope->bytes + left > envelope->slot.capacity) TRY(send_envelope(f, to));
        if (!envelope->open) TRY(open_envelope(f, to));
        if (!envelope->open) return STATUS_OK;
        write_letter(f, parcel, envelope);
    } while (f->packed < parcel->bytes);
    *packed = true;
    f->packed = 0;
    return STATUS_OK;
}

/* Full slots go at once, the others when there is nothing more to put in. */
static Status send_some(CommForward *f, bool *moved) {
    const CommWindowParcel *parcel;
    while ((parcel = next_parcel(f)) != NULL) {
        bool packed = false;
        TRY(pack(f, parcel, &packed));
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
    unsigned char *window = f->bases[f->comm->rank];
    for (size_t at = 0; at < slice->bytes;) {
        Letter letter;
        const unsigned char *from = (const unsigned char *)slice->data + at;
        if (slice->bytes - at < sizeof letter) return fail_damaged(slice);
        memcpy(&letter, from, sizeof letter);
        at += sizeof letter + round_up(letter.bytes, LETTER_ALIGNMENT);
        bool flag_fits = checked_within(letter.flag_at, sizeof(uint32_t), f->bytes) && letter.flag_at % 4 == 0;
        if (at > slice->bytes || !checked_within(letter.at, letter.bytes, f->bytes) ||
            !(flag_fits || letter.flag_at == NO_FLAG)) {
            return fail_damaged(slice);
        }
        memcpy(window + letter.at, from + sizeof letter, letter.bytes);
        if (letter.flag_at == NO_FLAG) continue;
        __atomic_store_n((uint32_t *)(void *)(window + letter.flag_at), letter.value, __ATOMIC_RELEASE);
    }
    return STATUS_OK;
}

static Status receive_some(CommForward *f, bool *moved) {
    for (int from = 0; from < f->comm->size; from++) {
        CommSlice slice;
        bool got = from != f->comm->rank && !f->envelopes[from].last;
        while (got) {
            TRY(comm_try_receive(f->comm, from, LANE, &slice, &got));
            if (!got) break;
            Status status = deliver(f, &slice);
            f->envelopes[from].last = slice.bytes == 0;
            comm_release(f->comm, &slice);
            TRY(status);
            got = !f->envelopes[from].last;
            *moved = true;
        }
    }
    return STATUS_OK;
}

/* ---- the thread ---- */

static Status turn(CommForward *f, bool *moved) {
    TRY(comm_begin(f->comm, "windows between nodes", 0));
    Status status = send_some(f, moved);
    if (status == STATUS_OK) status = receive_some(f, moved);
    return comm_end(f->comm, status);
}

/* This rank's last slices, as there are slots; *done when all are out, and those of all others have come. */
static Status say_farewell(CommForward *f, int *told, bool *done) {
    TRY(comm_begin(f->comm, "windows between nodes", 0));
    Status status = STATUS_OK;
    while (status == STATUS_OK && *told < f->comm->size) {
        if (*told != f->comm->rank) {
            status = open_envelope(f, *told);
            if (status != STATUS_OK || !f->envelopes[*told].open) break;
            status = send_envelope(f, *told);
        }
        ++*told;
    }
    *done = *told == f->comm->size;
    for (int rank = 0; rank < f->comm->size; rank++) *done &= rank == f->comm->rank || f->envelopes[rank].last;
    return comm_end(f->comm, status);
}

/* The end comes behind the last parcel, for which there may be no slot as long as another rank stands still. */
static Status forward_all(CommForward *f) {
    const int64_t wait_ns = (int64_t)(f->comm->timeout_s * 1e9);
    int64_t moved_ns = clock_now_ns(), leave_ns = 0;
    int told = 0;
    bool done = false;
    while (!done && f->state != FORWARD_STOPS) {
        bool moved = false;
        TRY(turn(f, &moved));
        int64_t now = clock_now_ns();
        if (moved) moved_ns = now;
        if (f->state == FORWARD_LEAVES && !moved) {
            bool unsent = next_parcel(f) != NULL;
            if (!unsent) {
                TRY(say_farewell(f, &told, &done));
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
    f->signs->abort = 1;
}

static void *forward_main(void *context) {
    CommForward *f = context;
    Status status = forward_all(f);
    if (status != STATUS_OK) break_parent(f, status);
    return NULL;
}

/* ---- making ---- */

static Status make_post(CommForward *f) {
    TRY(device_host_alloc(MOST_PARCELS * sizeof *f->post.parcels, &f->post.parcels));
    memset(f->post.parcels, 0, MOST_PARCELS * sizeof *f->post.parcels);
    f->post.mask = MOST_PARCELS - 1;
    TRY(device_alloc(sizeof *f->post.next, &f->post.next));
    TRY(device_fill(f->post.next, 0, sizeof *f->post.next, NULL));
    return device_stream_synchronize(NULL);
}

/* The thread has none of the hooks, which are for the thread that made the communicator. */
static Status forward_start(CommForward *f) {
    f->comm->hooks = (CommHooks){0};
    TRY(memory_calloc((size_t)f->comm->size, sizeof *f->envelopes, &f->envelopes));
    TRY(make_post(f));
    TRY_PTHREAD(pthread_create(&f->thread, NULL, forward_main, f));
    f->started = true;
    return STATUS_OK;
}

Status comm_forward_create(Comm *comm, void *const *bases, size_t bytes, CommWindowSigns *signs, CommForward **out) {
    Status status = STATUS_OK;
    CommForward *f = NULL;
    TRY(memory_calloc(1, sizeof *f, &f));
    f->parent = comm;
    f->bases = bases;
    f->bytes = bytes;
    f->signs = signs;
    TRY_GOTO(comm_split(comm, 0, comm->rank, &f->comm));
    TRY_GOTO(forward_start(f));
    *out = f;
    f = NULL;
done:
    comm_forward_destroy(f, false);
    return status;
}

void comm_forward_destroy(CommForward *f, bool farewell) {
    if (f == NULL) return;
    f->state = !farewell || comm_broken(f->parent, NULL) ? FORWARD_STOPS : FORWARD_LEAVES;
    if (f->started) pthread_join(f->thread, NULL);
    comm_destroy(f->comm);
    device_free(f->post.next);
    device_host_free(f->post.parcels);
    memory_free(f->envelopes);
    memory_free(f);
}
