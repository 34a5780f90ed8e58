/* Frames between hosts over MPI's nonblocking point-to-point calls.
 *
 * Every communicator has its own tags on the world's duplicate of MPI_COMM_WORLD. For each (sender, channel) that was
 * ever asked for, a few receives are posted ahead, so that large frames arrive while the reader works. */
#include "comm/mpi_world.h"

#include <sched.h>
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"

#define CONTROL NET_CHANNELS
#define TAGS_PER_NET 8
#define RECEIVES_MAX 4
#define RECEIVES_MANY_RANKS 3
#define MANY_RANKS 16
#define BOARD_FRAME_BYTES (SEGMENT_FRAME_BYTES + 128 + COMM_HEADER_BYTES)
#define FLUSH_S 2.0
#define FLUSH_LEAVE_S 0.2
#define FLUSH_BROKEN_S 0.05

_Static_assert(CONTROL < TAGS_PER_NET, "a tag for each channel");

typedef enum ControlKind { CONTROL_ABORT = 1, CONTROL_LEAVE = 2 } ControlKind;

typedef struct ControlMessage {
    int32_t kind, from;
    AbortRecord record;
} ControlMessage;

/* Receives posted ahead from one sender on one channel. */
typedef struct MpiReceives {
    int count, frame_bytes;
    unsigned char *memory; /* owned, count frames */
    size_t got[RECEIVES_MAX];
    bool done[RECEIVES_MAX];
    int posted[RECEIVES_MAX], first, posted_count; /* frames in the order of posting, circular */
    int held;
} MpiReceives;

typedef enum JobKind { JOB_SEND, JOB_RECEIVE, JOB_CONTROL } JobKind;

/* What a request is for. */
typedef struct MpiJob {
    JobKind kind;
    int rank;
    _Atomic uint32_t *readers; /* borrowed: JOB_SEND in place */
    void *copy;                /* owned: JOB_SEND of a copy */
    MpiReceives *receives;     /* borrowed: JOB_RECEIVE */
    int frame;
} MpiJob;

struct CommNet {
    const CommNetWorld *world; /* borrowed */
    const CommMpi *mpi;        /* borrowed: the world's */

    int rank, size, tag_base;
    size_t slot_bytes;
    int *world_rank_of;     /* owned, [size] */
    MpiReceives **receives; /* owned, [size * NET_CHANNELS], NULL until asked for */
    _Atomic int *sending;   /* owned, [size]: sends under way */
    _Atomic bool *left;     /* owned, [size] */

    bool receive_failed;     /* a receive could not be posted */
    unsigned char *requests; /* owned, with jobs: [capacity], [count] in use, in steps of handle_bytes */
    MpiJob *jobs;
    int *indices;
    unsigned char *statuses; /* in steps of status_bytes */
    int count, capacity;

    ControlMessage control; /* where the next one arrives */
    AbortRecord abort;
    _Atomic bool aborted, broken; /* by another rank, by this one */
    _Atomic uint32_t events;
};

/* ---- requests ---- */

static Status net_reserve(CommNet *net) {
    if (net->count < net->capacity) return STATUS_OK;
    size_t old = (size_t)net->capacity, new = old == 0 ? 32 : 2 * old;
    TRY(memory_resize(&net->requests, old * net->mpi->abi.handle_bytes, new * net->mpi->abi.handle_bytes));
    TRY(memory_resize(&net->jobs, old * sizeof *net->jobs, new * sizeof *net->jobs));
    TRY(memory_resize(&net->indices, old * sizeof *net->indices, new * sizeof *net->indices));
    TRY(memory_resize(&net->statuses, old * net->mpi->abi.status_bytes, new * net->mpi->abi.status_bytes));
    net->capacity = (int)new;
    return STATUS_OK;
}

static unsigned char *request_at(const CommNet *net, int index) {
    return net->requests + (size_t)index * net->mpi->abi.handle_bytes;
}

static bool request_is_null(const CommNet *net, int index) {
    return memcmp(request_at(net, index), &net->mpi->abi.request_null, net->mpi->abi.handle_bytes) == 0;
}

/* The request itself has already been written after those in use. */
static void net_add(CommNet *net, const MpiJob *job) { net->jobs[net->count++] = *job; }

static Status start_send(CommNet *net, int to, int channel, const void *frame, size_t bytes, const MpiJob *job) {
    TRY(net_reserve(net));
    TRY_MPI(net->mpi, Isend, frame, (int)bytes, net->mpi->abi.byte, net->world_rank_of[to], net->tag_base + channel,
            net->world->handle, request_at(net, net->count));
    net->sending[to]++;
    net_add(net, job);
    return STATUS_OK;
}

static Status start_receive(CommNet *net, int from, int channel, MpiReceives *receives, int frame) {
    TRY(net_reserve(net));
    receives->done[frame] = false;
    TRY_MPI(net->mpi, Irecv, receives->memory + (size_t)frame * (size_t)receives->frame_bytes, receives->frame_bytes,
            net->mpi->abi.byte, net->world_rank_of[from], net->tag_base + channel, net->world->handle,
            request_at(net, net->count));
    receives->posted[(receives->first + receives->posted_count++) % receives->count] = frame;
    net_add(net, &(MpiJob){.kind = JOB_RECEIVE, .rank = from, .receives = receives, .frame = frame});
    return STATUS_OK;
}

static Status start_control(CommNet *net) {
    TRY(net_reserve(net));
    TRY_MPI(net->mpi, Irecv, &net->control, (int)sizeof net->control, net->mpi->abi.byte, net->mpi->abi.any_source,
            net->tag_base + CONTROL, net->world->handle, request_at(net, net->count));
    net_add(net, &(MpiJob){.kind = JOB_CONTROL, .rank = -1});
    return STATUS_OK;
}

static Status post_copy(CommNet *net, int to, int channel, const void *data, size_t bytes) {
    Status status = STATUS_OK;
    void *copy = NULL;
    TRY(memory_alloc(bytes, 1, &copy));
    memcpy(copy, data, bytes);
    TRY_GOTO(start_send(net, to, channel, copy, bytes, &(MpiJob){.kind = JOB_SEND, .rank = to, .copy = copy}));
    copy = NULL;
done:
    memory_free(copy);
    return status;
}

/* ---- completion ---- */

static void handle_control(CommNet *net) {
    const ControlMessage *message = &net->control;
    if (message->from < 0 || message->from >= net->size) return;
    if (message->kind == CONTROL_LEAVE) atomic_store(&net->left[message->from], true);
    if (message->kind == CONTROL_ABORT && !atomic_load(&net->aborted)) {
        net->abort = message->record;
        atomic_store(&net->aborted, true);
    }
}

/* Handles a finished request; *again says that the control receive must be posted again. */
static Status net_finish(CommNet *net, const MpiJob *job, const void *result, bool *again) {
    if (job->kind == JOB_SEND) {
        net->sending[job->rank]--;
        memory_free(job->copy);
        if (job->readers != NULL) atomic_fetch_sub_explicit(job->readers, 1, memory_order_release);
    } else if (job->kind == JOB_CONTROL) {
        handle_control(net);
        *again = true;
    } else {
        int bytes = 0;
        TRY_MPI(net->mpi, Get_count, result, net->mpi->abi.byte, &bytes);
        job->receives->got[job->frame] = bytes < 0 ? 0 : (size_t)bytes;
        job->receives->done[job->frame] = true;
    }
    return STATUS_OK;
}

/* Drops the finished requests, which MPI has set to null. */
static void compact(CommNet *net) {
    int kept = 0;
    for (int i = 0; i < net->count; i++) {
        if (request_is_null(net, i)) continue;
        memmove(request_at(net, kept), request_at(net, i), net->mpi->abi.handle_bytes);
        net->jobs[kept++] = net->jobs[i];
    }
    net->count = kept;
}

/* The error in a status, which is valid only if the call that filled it reported a failure. */
static int status_error(const CommNet *net, const unsigned char *result, bool one_has_failed) {
    int error = MPI_OK;
    if (one_has_failed) memcpy(&error, result + net->mpi->abi.status_error_at, sizeof error);
    return error;
}

static Status test_requests(CommNet *net) {
    int finished = 0, class = MPI_OK;
    int error = net->mpi->Testsome(net->count, net->requests, &finished, net->indices, net->statuses);
    if (error != MPI_OK) net->mpi->Error_class(error, &class);
    if (class != MPI_OK && class != net->mpi->abi.err_in_status) return comm_mpi_check(net->mpi, error, "MPI_Testsome");
    if (finished == net->mpi->abi.undefined || finished == 0) return STATUS_OK;
    Status status = STATUS_OK;
    bool again = false;
    for (int i = 0; i < finished && status == STATUS_OK; i++) {
        const MpiJob *job = &net->jobs[net->indices[i]];
        const unsigned char *result = net->statuses + (size_t)i * net->mpi->abi.status_bytes;
        int failure = status_error(net, result, class != MPI_OK);
        if (failure != MPI_OK) {
            status = error_at_rank(comm_mpi_check(net->mpi, failure, "transfer over MPI"), job->rank);
        } else {
            status = net_finish(net, job, result, &again);
        }
    }
    compact(net);
    atomic_fetch_add_explicit(&net->events, (uint32_t)finished, memory_order_relaxed);
    TRY(status);
    return again ? start_control(net) : STATUS_OK;
}

Status comm_net_progress(CommNet *net) {
    pthread_mutex_lock(&comm_mpi_lock);
    Status status = test_requests(net);
    if (status == STATUS_OK && net->receive_failed)
        status = error_fail(STATUS_TRANSPORT, "MPI refused to post another receive");
    pthread_mutex_unlock(&comm_mpi_lock);
    return status;
}

uint32_t comm_net_events(const CommNet *net) { return atomic_load_explicit(&net->events, memory_order_relaxed); }

/* ---- frames ---- */

Status comm_net_send(CommNet *net, int to, int channel, const void *frame, size_t bytes, _Atomic uint32_t *readers) {
    pthread_mutex_lock(&comm_mpi_lock);
    Status status =
        start_send(net, to, channel, frame, bytes, &(MpiJob){.kind = JOB_SEND, .rank = to, .readers = readers});
    pthread_mutex_unlock(&comm_mpi_lock);
    return status;
}

Status comm_net_post(CommNet *net, int to, int channel, const void *frame, size_t bytes) {
    pthread_mutex_lock(&comm_mpi_lock);
    Status status = post_copy(net, to, channel, frame, bytes);
    pthread_mutex_unlock(&comm_mpi_lock);
    return status;
}

static MpiReceives **receives_at(const CommNet *net, int from, int channel) {
    return &net->receives[(size_t)from * NET_CHANNELS + (size_t)channel];
}

static Status post_receives(CommNet *net, int from, int channel) {
    MpiReceives *receives = NULL;
    TRY(memory_calloc(1, sizeof *receives, &receives));
    *receives_at(net, from, channel) = receives;
    receives->count = net->size > MANY_RANKS ? RECEIVES_MANY_RANKS : RECEIVES_MAX;
    receives->frame_bytes = channel == NET_BOARD ? BOARD_FRAME_BYTES : (int)(SEGMENT_FRAME_BYTES + net->slot_bytes);
    TRY(memory_alloc((size_t)receives->count, (size_t)receives->frame_bytes, &receives->memory));
    for (int frame = 0; frame < receives->count; frame++) TRY(start_receive(net, from, channel, receives, frame));
    return STATUS_OK;
}

static Status net_take(CommNet *net, int from, int channel, CommNetFrame *out) {
    *out = (CommNetFrame){0};
    MpiReceives *receives = *receives_at(net, from, channel);
    if (receives == NULL) {
        TRY(post_receives(net, from, channel));
        receives = *receives_at(net, from, channel);
    }
    if (receives->posted_count == 0) return STATUS_OK;
    int frame = receives->posted[receives->first];
    if (!receives->done[frame]) {
        TRY(test_requests(net));
        if (!receives->done[frame]) return STATUS_OK;
    }
    receives->first = (receives->first + 1) % receives->count;
    receives->posted_count--;
    receives->held++;
    *out = (CommNetFrame){.frame = receives->memory + (size_t)frame * (size_t)receives->frame_bytes,
                          .bytes = receives->got[frame],
                          .number = frame};
    return STATUS_OK;
}

Status comm_net_take(CommNet *net, int from, int channel, CommNetFrame *out) {
    pthread_mutex_lock(&comm_mpi_lock);
    Status status = net_take(net, from, channel, out);
    pthread_mutex_unlock(&comm_mpi_lock);
    return status;
}

void comm_net_release(CommNet *net, int from, int channel, int number) {
    MpiReceives *receives = *receives_at(net, from, channel);
    pthread_mutex_lock(&comm_mpi_lock);
    receives->held--;
    if (start_receive(net, from, channel, receives, number) != STATUS_OK) net->receive_failed = true;
    pthread_mutex_unlock(&comm_mpi_lock);
}

int comm_net_held(const CommNet *net, int from, int channel) {
    const MpiReceives *receives = *receives_at(net, from, channel);
    return receives == NULL ? 0 : receives->held;
}

int comm_net_sending_to(const CommNet *net, int to) { return net->sending[to]; }

/* ---- abort and departure ---- */

static void send_control(CommNet *net, const ControlMessage *message, const bool *skip) {
    if (comm_mpi_is_over(net->mpi)) return;
    pthread_mutex_lock(&comm_mpi_lock);
    for (int rank = 0; rank < net->size; rank++) {
        if (rank == net->rank || (skip != NULL && skip[rank]) || atomic_load(&net->left[rank])) continue;
        (void)post_copy(net, rank, CONTROL, message, sizeof *message);
    }
    (void)test_requests(net);
    pthread_mutex_unlock(&comm_mpi_lock);
}

void comm_net_abort(CommNet *net, const AbortRecord *record, const bool *skip) {
    ControlMessage message = {.kind = CONTROL_ABORT, .from = net->rank, .record = *record};
    atomic_store(&net->broken, true);
    send_control(net, &message, skip);
}

const AbortRecord *comm_net_aborted(const CommNet *net) { return atomic_load(&net->aborted) ? &net->abort : NULL; }

bool comm_net_has_left(const CommNet *net, int rank) { return atomic_load(&net->left[rank]); }

/* ---- made and destroyed ---- */

static void free_net(CommNet *net) {
    for (int i = 0; net->receives != NULL && i < net->size * NET_CHANNELS; i++) {
        if (net->receives[i] != NULL) memory_free(net->receives[i]->memory);
        memory_free(net->receives[i]);
    }
    memory_free(net->receives);
    memory_free(net->world_rank_of);
    memory_free(net->sending);
    memory_free(net->left);
    memory_free(net->requests);
    memory_free(net->jobs);
    memory_free(net->indices);
    memory_free(net->statuses);
    memory_free(net);
}

static Status check_tags(const CommNetWorld *world, uint32_t id) {
    int *largest = NULL, found = 0;
    TRY_MPI(world->mpi, Comm_get_attr, world->handle, world->mpi->abi.tag_ub, &largest, &found);
    int limit = found ? *largest : 32767;
    if (id >= (uint32_t)limit / TAGS_PER_NET) {
        FAIL(STATUS_TRANSPORT, "MPI has no tags left for communicator number %u (largest tag %d)", id, limit);
    }
    return STATUS_OK;
}

Status comm_net_create(CommNetWorld *world, uint32_t id, int rank, int size, const int *world_rank_of,
                       size_t slot_bytes, CommNet **out) {
    Status status = STATUS_OK;
    CommNet *net = NULL;
    size_t n = (size_t)size;
    TRY(check_tags(world, id));
    TRY(memory_calloc(1, sizeof *net, &net));
    net->world = world;
    net->mpi = world->mpi;
    net->rank = rank;
    net->size = size;
    net->slot_bytes = slot_bytes;
    net->tag_base = (int)id * TAGS_PER_NET;
    TRY_GOTO(memory_calloc(n * NET_CHANNELS, sizeof *net->receives, &net->receives));
    TRY_GOTO(memory_calloc(n, sizeof *net->world_rank_of, &net->world_rank_of));
    TRY_GOTO(memory_calloc(n, sizeof *net->sending, &net->sending));
    TRY_GOTO(memory_calloc(n, sizeof *net->left, &net->left));
    memcpy(net->world_rank_of, world_rank_of, n * sizeof *world_rank_of);
    pthread_mutex_lock(&comm_mpi_lock);
    status = start_control(net);
    pthread_mutex_unlock(&comm_mpi_lock);
    if (status != STATUS_OK) goto done;
    *out = net;
    net = NULL;
done:
    if (net != NULL) free_net(net);
    return status;
}

static int sends_left(const CommNet *net) {
    int count = 0;
    for (int rank = 0; rank < net->size; rank++) count += net->sending[rank];
    return count;
}

/* Cancels the receives that are still posted; false if MPI keeps one. */
static bool cancel_receives(CommNet *net) {
    bool all = true;
    for (int i = 0; i < net->count; i++) {
        if (net->jobs[i].kind == JOB_SEND || request_is_null(net, i)) continue;
        int finished = 0;
        if (net->mpi->Cancel(request_at(net, i)) != MPI_OK) all = false;
        if (comm_mpi_test(net->mpi, request_at(net, i), &finished) != MPI_OK || !finished) all = false;
    }
    return all;
}

void comm_net_flush(CommNet *net, double seconds) {
    if (comm_mpi_is_over(net->mpi)) return;
    int64_t deadline_ns = clock_deadline_ns(seconds);
    while (sends_left(net) > 0 && !clock_expired(deadline_ns)) {
        if (comm_net_progress(net) != STATUS_OK) break;
        sched_yield();
    }
}

bool comm_net_destroy(CommNet *net, const bool *skip) {
    if (comm_mpi_is_over(net->mpi)) return false;
    if (atomic_load(&net->broken) || atomic_load(&net->aborted)) {
        comm_net_flush(net, FLUSH_BROKEN_S);
    } else {
        comm_net_flush(net, FLUSH_S);
        ControlMessage leave = {.kind = CONTROL_LEAVE, .from = net->rank};
        send_control(net, &leave, skip);
        comm_net_flush(net, FLUSH_LEAVE_S);
    }
    pthread_mutex_lock(&comm_mpi_lock);
    bool quiet = sends_left(net) == 0;
    quiet = cancel_receives(net) && quiet;
    pthread_mutex_unlock(&comm_mpi_lock);
    /* What MPI may still access is never freed: a broken job's last megabytes. */
    if (quiet) free_net(net);
    return quiet;
}
