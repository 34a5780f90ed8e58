/* Waiting: operations with names and deadlines, the one loop in which a rank sleeps, and everything that may end it:
 * abort, a dead or departed rank, a signal, the deadline. */
#include "comm/internal.h"

#include <assert.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"

#define CHECK_EVERY_NS 100000000LL
#define ABORT_FLUSH_S 0.05
#define LEFT_GRACE_NS 200000000LL
#define NET_YIELD_NS 1000000LL
#define NET_SLEEP_NS 100000LL
#define LOSS_TEXT "rank %d (process %d) died"

/* ---- broken communicators ---- */

/* Every rank that fails notifies the ranks of other hosts, once: the first to fail may exit before MPI has delivered
 * its message. */
void comm_wait_break(Comm *comm, const AbortRecord *record) {
    comm_segment_abort(&comm->segment, record);
    if (comm->net == NULL || atomic_exchange(&comm->abort_sent, true)) return;
    const AbortRecord *first = comm_segment_aborted(&comm->segment);
    comm_net_abort(comm->net, first != NULL ? first : record, comm->shares);
}

/* The abort record, ours or one that came from another host (which the ranks here then see too). */
static const AbortRecord *abort_record(Comm *comm) {
    const AbortRecord *record = comm_segment_aborted(&comm->segment);
    if (record != NULL || comm->net == NULL) return record;
    const AbortRecord *remote = comm_net_aborted(comm->net);
    if (remote != NULL) comm_segment_abort(&comm->segment, remote);
    return comm_segment_aborted(&comm->segment);
}

static Status fail_aborted(const Comm *comm, const AbortRecord *record) {
    Status status = error_fail((Status)record->code, "%s", record->message);
    return error_at_operation(error_at_rank(status, record->rank), comm->operation);
}

static Status check_abort(Comm *comm) {
    const AbortRecord *record = abort_record(comm);
    return record == NULL ? STATUS_OK : fail_aborted(comm, record);
}

/* The first operation after a loss that nobody waited for reports it in full, as an operation that waited would. */
static Status fail_broken(Comm *comm, const AbortRecord *record, const char *operation) {
    bool reported = comm->failure_reported || record->code != STATUS_PEER_LOST;
    comm->failure_reported = true;
    if (!reported) return error_at_operation(fail_aborted(comm, record), operation);
    const char *separator = record->operation[0] == '\0' ? "" : ": ";
    Status status = error_fail(STATUS_TRANSPORT, "the communicator is broken (%s%s%s): make a new one",
                               record->operation, separator, record->message);
    return error_at_operation(error_at_rank(status, record->rank), operation);
}

void comm_abort(Comm *comm, const char *message) {
    AbortRecord record = {.code = STATUS_TRANSPORT, .rank = comm->rank};
    snprintf(record.message, sizeof record.message, "rank %d aborted: %s", comm->rank, message);
    comm_wait_break(comm, &record);
    comm_aborted_here = true;
}

static void abort_one(Comm *comm, void *message) { comm_abort(comm, message); }

/* The process may end right after: MPI must have sent the message by then. */
static void flush_one(Comm *comm, void *unused) {
    (void)unused;
    if (comm->net != NULL) comm_net_flush(comm->net, ABORT_FLUSH_S);
}

void comm_abort_all(const char *message) {
    char text[SEGMENT_TEXT_BYTES];
    snprintf(text, sizeof text, "%s", message);
    comm_watch_each(abort_one, text);
    comm_watch_each(flush_one, NULL);
}

bool comm_broken(Comm *comm, const ErrorRecord **cause) {
    /* A rank that only asks and never waits must notice it, too; a failure of MPI shows in its next operation. */
    if (comm->net != NULL && comm->owner_pid == (int)getpid()) (void)comm_net_progress(comm->net);
    const AbortRecord *record = abort_record(comm);
    if (record == NULL) return false;
    pthread_mutex_lock(&comm->lock);
    if (!comm->cause_known) {
        comm->cause = (ErrorRecord){.code = (Status)record->code, .rank = record->rank, .offset = -1, .sample = -1};
        snprintf(comm->cause.message, sizeof comm->cause.message, "%s", record->message);
        memcpy(comm->cause.operation, record->operation, sizeof comm->cause.operation);
        comm->cause_known = true;
    }
    pthread_mutex_unlock(&comm->lock);
    if (cause != NULL) *cause = &comm->cause;
    return true;
}

/* ---- operations ---- */

static uintptr_t this_thread(void) {
    static _Thread_local char mark;
    return (uintptr_t)&mark;
}

Status comm_begin(Comm *comm, const char *operation, double timeout_s) {
    if (comm->owner_pid != (int)getpid()) {
        FAIL(STATUS_TRANSPORT, "%s: this communicator belongs to process %d, which forked this one", operation,
             comm->owner_pid);
    }
    if (comm->disconnected)
        FAIL(STATUS_TRANSPORT, "%s: this communicator has no connection to its other ranks", operation);
    uintptr_t me = this_thread(), nobody = 0;
    if (atomic_load_explicit(&comm->user, memory_order_relaxed) == me) {
        if (comm->in_hook) {
            return error_at_operation(error_fail(STATUS_TRANSPORT,
                                                 "a signal handler cannot use the communicator that is in '%s': set a "
                                                 "flag in the handler and act on it after the call",
                                                 comm->operation),
                                      operation);
        }
        comm->depth++;
        return STATUS_OK;
    }
    if (!atomic_compare_exchange_strong(&comm->user, &nobody, me)) {
        return error_at_operation(error_fail(STATUS_TRANSPORT, "another thread is using this communicator"), operation);
    }
    Status status = STATUS_OK;
    if (comm->net != NULL) status = comm_net_progress(comm->net);
    const AbortRecord *record = abort_record(comm);
    if (status == STATUS_OK && record != NULL) status = fail_broken(comm, record, operation);
    if (status != STATUS_OK) {
        atomic_store(&comm->user, 0);
        return status;
    }
    memset(comm->operation, 0, sizeof comm->operation); /* the boards compare all of it */
    snprintf(comm->operation, sizeof comm->operation, "%s", operation);
    comm->operation_timeout_s = timeout_s > 0 ? timeout_s : comm->timeout_s;
    comm->deadline_ns = clock_deadline_ns(comm->operation_timeout_s);
    comm->next_check_ns = clock_now_ns() + CHECK_EVERY_NS;
    comm->left_since_ns = 0;
    comm->depth = 1;
    return STATUS_OK;
}

/* What the other ranks are sent about a failure here. */
static void describe_failure(const Comm *comm, Status status, AbortRecord *out) {
    const ErrorRecord *error = error_record();
    *out = (AbortRecord){.code = STATUS_TRANSPORT, .rank = comm->rank};
    snprintf(out->operation, sizeof out->operation, "%s", comm->operation);
    if (status >= STATUS_TRANSPORT && status < STATUS_NOT_BUILT) {
        out->code = (int32_t)status;
        out->rank = error->rank;
        snprintf(out->message, sizeof out->message, "%.*s", (int)sizeof out->message - 1, error->message);
    } else if (status == STATUS_INTERRUPTED) {
        snprintf(out->message, sizeof out->message, "rank %d was interrupted", comm->rank);
    } else {
        snprintf(out->message, sizeof out->message, "rank %d failed: %.*s", comm->rank, (int)sizeof out->message - 40,
                 error->message);
    }
}

Status comm_end(Comm *comm, Status status) {
    assert(comm->depth > 0);
    if (--comm->depth > 0) return status;
    if (status != STATUS_OK) {
        AbortRecord record;
        comm->failure_reported = true;
        describe_failure(comm, status, &record);
        comm_wait_break(comm, &record);
        error_at_operation(status, comm->operation);
    }
    comm->operation[0] = '\0';
    atomic_store(&comm->user, 0);
    return status;
}

/* ---- what may end a wait ---- */

/* Whether that rank still has slices of this one. */
static bool keeps_slots(const Comm *comm, int rank) {
    int seat = comm->places[rank].seat;
    if (seat < 0) return comm_net_sending_to(comm->net, rank) > 0;
    for (int lane = 0; lane < SEGMENT_LANES; lane++) {
        const Queue *queue = comm_segment_queue(&comm->segment, comm->segment.seat, seat, lane);
        uint32_t published = atomic_load_explicit(&queue->published, memory_order_relaxed);
        if (published != atomic_load_explicit(&queue->released, memory_order_relaxed)) return true;
    }
    return false;
}

static bool waits_for(const Comm *comm, int rank) {
    return comm->places[rank].wanted != 0 || (comm->wants_slot && keeps_slots(comm, rank));
}

/* The rank to name when nothing happens: one that is stopped, else the first that is waited for; -1 for none. */
static int suspect(const Comm *comm) {
    for (int seat = 0; seat < comm->segment.seats; seat++) {
        if (seat != comm->segment.seat && comm_segment_health(&comm->segment, seat, comm->stall_ns) == SEAT_STALLED) {
            return comm->rank_of_seat[seat];
        }
    }
    for (int rank = 0; rank < comm->size; rank++) {
        if (rank != comm->rank && waits_for(comm, rank)) return rank;
    }
    return -1;
}

static Status timed_out(const Comm *comm) {
    int rank = suspect(comm);
    const char *what = comm->wants_slot ? "to free a slot" : "to answer";
    Status status;
    if (rank < 0) {
        status =
            error_fail(STATUS_TIMEOUT, "rank %d: nothing arrived within %g s", comm->rank, comm->operation_timeout_s);
    } else {
        status = error_fail(STATUS_TIMEOUT,
                            "rank %d waited %g s for rank %d %s: it is stopped, far behind, or in another call",
                            comm->rank, comm->operation_timeout_s, rank, what);
    }
    return error_at_operation(error_at_rank(status, rank), comm->operation);
}

static Status peer_lost(const Comm *comm, int rank) {
    const Seat *seat = comm_segment_seat(&comm->segment, comm->places[rank].seat);
    Status status = error_fail(STATUS_PEER_LOST, LOSS_TEXT, rank, (int)atomic_load(&seat->pid));
    return error_at_operation(error_at_rank(status, rank), comm->operation);
}

static Status warn_stalled(Comm *comm, int rank) {
    CommPlace *place = &comm->places[rank];
    if (place->warned || comm->hooks.warn == NULL) return STATUS_OK;
    place->warned = true;
    char text[256];
    snprintf(text, sizeof text,
             "%s: rank %d (process %d) has shown no sign of life for %g s: it is stopped or its machine is "
             "overloaded; waiting up to %g s in all",
             comm->operation, rank, (int)atomic_load(&comm_segment_seat(&comm->segment, place->seat)->pid),
             (double)comm->stall_ns * 1e-9, comm->operation_timeout_s);
    comm->in_hook = true;
    Status status = comm->hooks.warn(comm->hooks.context, rank, text);
    comm->in_hook = false;
    return status;
}

bool comm_wait_lost(Comm *comm) {
    for (int seat = 0; seat < comm->segment.seats && comm_segment_aborted(&comm->segment) == NULL; seat++) {
        if (seat == comm->segment.seat) continue;
        if (comm_segment_health(&comm->segment, seat, INT64_MAX) != SEAT_DEAD) continue;
        AbortRecord record = {.code = STATUS_PEER_LOST, .rank = comm->rank_of_seat[seat]};
        snprintf(record.message, sizeof record.message, LOSS_TEXT, record.rank,
                 (int)atomic_load(&comm_segment_seat(&comm->segment, seat)->pid));
        comm_segment_abort(&comm->segment, &record);
    }
    return comm_segment_aborted(&comm->segment) != NULL;
}

static Status check_peers(Comm *comm) {
    for (int seat = 0; seat < comm->segment.seats; seat++) {
        if (seat == comm->segment.seat) continue;
        int rank = comm->rank_of_seat[seat];
        switch (comm_segment_health(&comm->segment, seat, comm->stall_ns)) {
        case SEAT_DEAD:
            return peer_lost(comm, rank);
        case SEAT_STALLED:
            TRY(warn_stalled(comm, rank));
            break;
        case SEAT_HEALTHY:
            comm->places[rank].warned = false;
            break;
        }
    }
    return STATUS_OK;
}

static Status check_hooks(Comm *comm) {
    if (comm->hooks.check == NULL) return STATUS_OK;
    comm->in_hook = true;
    Status status = comm->hooks.check(comm->hooks.context);
    comm->in_hook = false;
    return status;
}

/* Checks for abort, the deadline and, every 100 ms, dead and stopped ranks and signals. */
static Status check_all(Comm *comm) {
    TRY(check_abort(comm));
    int64_t now = clock_now_ns();
    if (now >= comm->deadline_ns) return timed_out(comm);
    if (now < comm->next_check_ns) return STATUS_OK;
    comm->next_check_ns = now + CHECK_EVERY_NS;
    TRY(check_peers(comm));
    return check_hooks(comm);
}

static Status fail_left(const Comm *comm, int rank) {
    Status status =
        error_fail(STATUS_TRANSPORT, "rank %d has left the communicator while rank %d waits for it", rank, comm->rank);
    return error_at_operation(error_at_rank(status, rank), comm->operation);
}

/* A rank that has left sends nothing more, and whatever it sent rang the doorbell before it left. */
static Status check_left(Comm *comm) {
    bool remote_left = false;
    for (int rank = 0; rank < comm->size; rank++) {
        const CommPlace *place = &comm->places[rank];
        if (rank == comm->rank || !waits_for(comm, rank)) continue;
        if (place->seat >= 0) {
            bool left = atomic_load(&comm_segment_seat(&comm->segment, place->seat)->state) == SEAT_LEFT;
            if (left && comm_segment_doorbell(&comm->segment) == comm->seen) {
                TRY(check_abort(comm));
                return fail_left(comm, rank);
            }
        } else if (comm_net_has_left(comm->net, rank)) {
            remote_left = true;
            int64_t now = clock_now_ns();
            if (comm->left_since_ns == 0) comm->left_since_ns = now;
            if (now - comm->left_since_ns > LEFT_GRACE_NS) return fail_left(comm, rank);
        }
    }
    if (!remote_left) comm->left_since_ns = 0;
    return STATUS_OK;
}

/* ---- the wait ---- */

static inline void pause_cpu(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#else
    __asm__ volatile("" ::: "memory");
#endif
}

static bool rung(const Comm *comm) {
    return comm_segment_doorbell(&comm->segment) != comm->seen ||
           (comm->net != NULL && comm_net_events(comm->net) != comm->seen_events);
}

static bool spin(const Comm *comm) {
    for (int i = 0; i < comm->spins; i++) {
        if (rung(comm)) return true;
        pause_cpu();
    }
    return rung(comm);
}

/* Sleeps until the doorbell rings or the next check is due; with MPI, which rings no doorbell, only for a moment. */
static Status rest(Comm *comm, int64_t since_ns) {
    int64_t now = clock_now_ns();
    if (comm->net != NULL && now - since_ns < NET_YIELD_NS) {
        sched_yield();
        return STATUS_OK;
    }
    int64_t until = comm->next_check_ns < comm->deadline_ns ? comm->next_check_ns : comm->deadline_ns;
    int64_t ns = until - now;
    if (comm->net != NULL && ns > NET_SLEEP_NS) ns = NET_SLEEP_NS;
    if (ns > 0 && !comm_segment_sleep(&comm->segment, comm->seen, ns)) return check_hooks(comm);
    return STATUS_OK;
}

static Status wait_for_change(Comm *comm) {
    TRY(check_all(comm));
    if (comm->net == NULL && spin(comm)) return STATUS_OK;
    int64_t since_ns = clock_now_ns();
    while (!rung(comm)) {
        if (comm->net != NULL) TRY(comm_net_progress(comm->net));
        if (rung(comm)) break;
        TRY(check_left(comm));
        TRY(check_all(comm));
        TRY(rest(comm, since_ns));
    }
    return STATUS_OK;
}

Status comm_wait(Comm *comm) {
    assert(comm->depth > 0);
    Status status = wait_for_change(comm);
    comm->seen = comm_segment_doorbell(&comm->segment);
    if (comm->net != NULL && comm_net_events(comm->net) != comm->seen_events) {
        comm->seen_events = comm_net_events(comm->net);
        comm->left_since_ns = 0;
    }
    for (int rank = 0; rank < comm->size; rank++) comm->places[rank].wanted = 0;
    comm->wants_slot = false;
    return status;
}

Status comm_progress(Comm *comm) {
    if (comm->net != NULL) TRY(comm_net_progress(comm->net));
    return check_all(comm);
}
