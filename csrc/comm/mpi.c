/* Frames between hosts over MPI's nonblocking point-to-point calls.
 *
 * Every communicator has its own tags on one duplicate of MPI_COMM_WORLD. Receives are posted ahead in small windows,
 * one window for each (sender, channel) that was ever asked for, so that large frames arrive while the reader works.
 * One lock serialises our calls to MPI; none of them blocks, so nobody waits for it long. */
#include "comm/mpi_library.h"
#include "comm/net.h"
#include "comm/start.h"

#include <pthread.h>
#include <sched.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/handlers.h"
#include "base/memory.h"

#define CONTROL NET_CHANNELS
#define TAGS_PER_NET 8
#define WINDOW_MAX 4
#define WINDOW_MANY_RANKS 3
#define MANY_RANKS 16
#define BOARD_FRAME_BYTES (SEGMENT_FRAME_BYTES + 128 + COMM_HEADER_BYTES)
#define FLUSH_S 2.0
#define FLUSH_LEAVE_S 0.2
#define FLUSH_BROKEN_S 0.05
#define MEET_S 0.5

_Static_assert(CONTROL < TAGS_PER_NET, "a tag for each channel");

typedef enum ControlKind { CONTROL_ABORT = 1, CONTROL_LEAVE = 2 } ControlKind;

typedef struct ControlMessage {
    int32_t kind, from;
    AbortRecord record;
} ControlMessage;

/* Receives posted ahead from one sender on one channel. */
typedef struct MpiWindow {
    int count, frame_bytes;
    unsigned char *memory; /* owned, count frames */
    size_t got[WINDOW_MAX];
    bool done[WINDOW_MAX];
    int posted[WINDOW_MAX], first, posted_count; /* frames in the order of posting, circular */
    int held;
} MpiWindow;

typedef enum JobKind { JOB_SEND, JOB_RECEIVE, JOB_CONTROL } JobKind;

/* What a request is for. */
typedef struct MpiJob {
    JobKind kind;
    int rank;
    _Atomic uint32_t *readers; /* borrowed: JOB_SEND in place */
    void *copy;                /* owned: JOB_SEND of a copy */
    MpiWindow *window;         /* borrowed: JOB_RECEIVE */
    int frame;
} MpiJob;

struct CommNet {
    CommNet *world; /* borrowed; itself for the net of the world */
    MpiHandle mpi;  /* of the world's net: the duplicate of MPI's world */
    CommNet *next;  /* of the world's net: the previous one */

    int rank, size, tag_base;
    size_t slot_bytes;
    int *world_rank_of;   /* owned, [size] */
    MpiWindow **windows;  /* owned, [size * NET_CHANNELS], NULL until asked for */
    _Atomic int *sending; /* owned, [size]: sends under way */
    _Atomic bool *left;   /* owned, [size] */

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

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
/* Duplicates are never freed: MPI would reuse their context number while a late message (from a rank that has left) is
 * still in flight to the old one. */
static CommNet *worlds;
static pid_t initialised_by; /* this process, or the one that forked it, or 0 */
static const CommMpi *mpi;   /* borrowed: set, under the lock, before there is a net */

static Status check_mpi(int error, const char *what) {
    if (error == MPI_OK) return STATUS_OK;
    char text[MPI_ERROR_TEXT_BYTES] = "";
    int length = 0;
    mpi->Error_string(error, text, &length);
    FAIL(STATUS_TRANSPORT, "%s: %.400s", what, text);
}

#define TRY_MPI(name, ...) TRY(check_mpi(mpi->name(__VA_ARGS__), "MPI_" #name))
#define TRY_MPI_GOTO(name, ...) TRY_GOTO(check_mpi(mpi->name(__VA_ARGS__), "MPI_" #name))

/* Tests whether the request is complete; its status is not wanted. */
static int mpi_test(void *request, int *finished) {
    return mpi->Test(request, finished, (void *)mpi->abi.status_ignore);
}

/* ---- requests ---- */

static Status net_reserve(CommNet *net) {
    if (net->count < net->capacity) return STATUS_OK;
    size_t old = (size_t)net->capacity, new = old == 0 ? 32 : 2 * old;
    TRY(memory_resize(&net->requests, old * mpi->abi.handle_bytes, new * mpi->abi.handle_bytes));
    TRY(memory_resize(&net->jobs, old * sizeof *net->jobs, new * sizeof *net->jobs));
    TRY(memory_resize(&net->indices, old * sizeof *net->indices, new * sizeof *net->indices));
    TRY(memory_resize(&net->statuses, old * mpi->abi.status_bytes, new * mpi->abi.status_bytes));
    net->capacity = (int)new;
    return STATUS_OK;
}

static unsigned char *request_at(const CommNet *net, int index) {
    return net->requests + (size_t)index * mpi->abi.handle_bytes;
}

static bool request_is_null(const CommNet *net, int index) {
    return memcmp(request_at(net, index), &mpi->abi.request_null, mpi->abi.handle_bytes) == 0;
}

/* The request itself has already been written after those in use. */
static void net_add(CommNet *net, const MpiJob *job) { net->jobs[net->count++] = *job; }

static Status start_send(CommNet *net, int to, int channel, const void *frame, size_t bytes, const MpiJob *job) {
    TRY(net_reserve(net));
    TRY_MPI(Isend, frame, (int)bytes, mpi->abi.byte, net->world_rank_of[to], net->tag_base + channel, net->world->mpi,
            request_at(net, net->count));
    net->sending[to]++;
    net_add(net, job);
    return STATUS_OK;
}

static Status start_receive(CommNet *net, int from, int channel, MpiWindow *window, int frame) {
    TRY(net_reserve(net));
    window->done[frame] = false;
    TRY_MPI(Irecv, window->memory + (size_t)frame * (size_t)window->frame_bytes, window->frame_bytes, mpi->abi.byte,
            net->world_rank_of[from], net->tag_base + channel, net->world->mpi, request_at(net, net->count));
    window->posted[(window->first + window->posted_count++) % window->count] = frame;
    net_add(net, &(MpiJob){.kind = JOB_RECEIVE, .rank = from, .window = window, .frame = frame});
    return STATUS_OK;
}

static Status start_control(CommNet *net) {
    TRY(net_reserve(net));
    TRY_MPI(Irecv, &net->control, (int)sizeof net->control, mpi->abi.byte, mpi->abi.any_source, net->tag_base + CONTROL,
            net->world->mpi, request_at(net, net->count));
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
        TRY_MPI(Get_count, result, mpi->abi.byte, &bytes);
        job->window->got[job->frame] = bytes < 0 ? 0 : (size_t)bytes;
        job->window->done[job->frame] = true;
    }
    return STATUS_OK;
}

/* Drops the finished requests, which MPI has set to null. */
static void compact(CommNet *net) {
    int kept = 0;
    for (int i = 0; i < net->count; i++) {
        if (request_is_null(net, i)) continue;
        memmove(request_at(net, kept), request_at(net, i), mpi->abi.handle_bytes);
        net->jobs[kept++] = net->jobs[i];
    }
    net->count = kept;
}

/* The error in a status, which is valid only if the call that filled it reported a failure. */
static int status_error(const unsigned char *result, bool one_has_failed) {
    int error = MPI_OK;
    if (one_has_failed) memcpy(&error, result + mpi->abi.status_error_at, sizeof error);
    return error;
}

static Status test_requests(CommNet *net) {
    int finished = 0, class = MPI_OK;
    int error = mpi->Testsome(net->count, net->requests, &finished, net->indices, net->statuses);
    if (error != MPI_OK) mpi->Error_class(error, &class);
    if (class != MPI_OK && class != mpi->abi.err_in_status) return check_mpi(error, "MPI_Testsome");
    if (finished == mpi->abi.undefined || finished == 0) return STATUS_OK;
    Status status = STATUS_OK;
    bool again = false;
    for (int i = 0; i < finished && status == STATUS_OK; i++) {
        const MpiJob *job = &net->jobs[net->indices[i]];
        const unsigned char *result = net->statuses + (size_t)i * mpi->abi.status_bytes;
        int failure = status_error(result, class != MPI_OK);
        if (failure != MPI_OK) {
            status = error_at_rank(check_mpi(failure, "transfer over MPI"), job->rank);
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
    pthread_mutex_lock(&lock);
    Status status = test_requests(net);
    if (status == STATUS_OK && net->receive_failed)
        status = error_fail(STATUS_TRANSPORT, "MPI refused to post another receive");
    pthread_mutex_unlock(&lock);
    return status;
}

uint32_t comm_net_events(const CommNet *net) { return atomic_load_explicit(&net->events, memory_order_relaxed); }

/* ---- frames ---- */

Status comm_net_send(CommNet *net, int to, int channel, const void *frame, size_t bytes, _Atomic uint32_t *readers) {
    pthread_mutex_lock(&lock);
    Status status =
        start_send(net, to, channel, frame, bytes, &(MpiJob){.kind = JOB_SEND, .rank = to, .readers = readers});
    pthread_mutex_unlock(&lock);
    return status;
}

Status comm_net_post(CommNet *net, int to, int channel, const void *frame, size_t bytes) {
    pthread_mutex_lock(&lock);
    Status status = post_copy(net, to, channel, frame, bytes);
    pthread_mutex_unlock(&lock);
    return status;
}

static MpiWindow **window_at(const CommNet *net, int from, int channel) {
    return &net->windows[(size_t)from * NET_CHANNELS + (size_t)channel];
}

static Status open_window(CommNet *net, int from, int channel) {
    MpiWindow *window = NULL;
    TRY(memory_calloc(1, sizeof *window, &window));
    *window_at(net, from, channel) = window;
    window->count = net->size > MANY_RANKS ? WINDOW_MANY_RANKS : WINDOW_MAX;
    window->frame_bytes = channel == NET_BOARD ? BOARD_FRAME_BYTES : (int)(SEGMENT_FRAME_BYTES + net->slot_bytes);
    TRY(memory_alloc((size_t)window->count, (size_t)window->frame_bytes, &window->memory));
    for (int frame = 0; frame < window->count; frame++) TRY(start_receive(net, from, channel, window, frame));
    return STATUS_OK;
}

static Status net_take(CommNet *net, int from, int channel, CommNetFrame *out) {
    *out = (CommNetFrame){0};
    MpiWindow *window = *window_at(net, from, channel);
    if (window == NULL) {
        TRY(open_window(net, from, channel));
        window = *window_at(net, from, channel);
    }
    if (window->posted_count == 0) return STATUS_OK;
    int frame = window->posted[window->first];
    if (!window->done[frame]) {
        TRY(test_requests(net));
        if (!window->done[frame]) return STATUS_OK;
    }
    window->first = (window->first + 1) % window->count;
    window->posted_count--;
    window->held++;
    *out = (CommNetFrame){.frame = window->memory + (size_t)frame * (size_t)window->frame_bytes,
                          .bytes = window->got[frame],
                          .window = frame};
    return STATUS_OK;
}

Status comm_net_take(CommNet *net, int from, int channel, CommNetFrame *out) {
    pthread_mutex_lock(&lock);
    Status status = net_take(net, from, channel, out);
    pthread_mutex_unlock(&lock);
    return status;
}

void comm_net_release(CommNet *net, int from, int channel, int frame) {
    MpiWindow *window = *window_at(net, from, channel);
    pthread_mutex_lock(&lock);
    window->held--;
    if (start_receive(net, from, channel, window, frame) != STATUS_OK) net->receive_failed = true;
    pthread_mutex_unlock(&lock);
}

int comm_net_held(const CommNet *net, int from, int channel) {
    const MpiWindow *window = *window_at(net, from, channel);
    return window == NULL ? 0 : window->held;
}

int comm_net_sending_to(const CommNet *net, int to) { return net->sending[to]; }

/* ---- abort and departure ---- */

static bool mpi_is_over(void) {
    int finalized = 0;
    return mpi == NULL || mpi->Finalized(&finalized) != MPI_OK || finalized;
}

static void send_control(CommNet *net, const ControlMessage *message, const bool *skip) {
    if (mpi_is_over()) return;
    pthread_mutex_lock(&lock);
    for (int rank = 0; rank < net->size; rank++) {
        if (rank == net->rank || (skip != NULL && skip[rank]) || atomic_load(&net->left[rank])) continue;
        (void)post_copy(net, rank, CONTROL, message, sizeof *message);
    }
    (void)test_requests(net);
    pthread_mutex_unlock(&lock);
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
    for (int i = 0; net->windows != NULL && i < net->size * NET_CHANNELS; i++) {
        if (net->windows[i] != NULL) memory_free(net->windows[i]->memory);
        memory_free(net->windows[i]);
    }
    memory_free(net->windows);
    memory_free(net->world_rank_of);
    memory_free(net->sending);
    memory_free(net->left);
    memory_free(net->requests);
    memory_free(net->jobs);
    memory_free(net->indices);
    memory_free(net->statuses);
    memory_free(net);
}

static Status check_tags(const CommNet *world, uint32_t id) {
    int *largest = NULL, found = 0;
    TRY_MPI(Comm_get_attr, world->mpi, mpi->abi.tag_ub, &largest, &found);
    int limit = found ? *largest : 32767;
    if (id >= (uint32_t)limit / TAGS_PER_NET) {
        FAIL(STATUS_TRANSPORT, "MPI has no tags left for communicator number %u (largest tag %d)", id, limit);
    }
    return STATUS_OK;
}

Status comm_net_create(CommNet *world, uint32_t id, int rank, int size, const int *world_rank_of, size_t slot_bytes,
                       CommNet **out) {
    Status status = STATUS_OK;
    CommNet *net = NULL;
    size_t n = (size_t)size;
    TRY(check_tags(world, id));
    TRY(memory_calloc(1, sizeof *net, &net));
    net->world = world;
    net->rank = rank;
    net->size = size;
    net->slot_bytes = slot_bytes;
    net->tag_base = (int)id * TAGS_PER_NET;
    TRY_GOTO(memory_calloc(n * NET_CHANNELS, sizeof *net->windows, &net->windows));
    TRY_GOTO(memory_calloc(n, sizeof *net->world_rank_of, &net->world_rank_of));
    TRY_GOTO(memory_calloc(n, sizeof *net->sending, &net->sending));
    TRY_GOTO(memory_calloc(n, sizeof *net->left, &net->left));
    memcpy(net->world_rank_of, world_rank_of, n * sizeof *world_rank_of);
    pthread_mutex_lock(&lock);
    status = start_control(net);
    pthread_mutex_unlock(&lock);
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
        if (mpi->Cancel(request_at(net, i)) != MPI_OK) all = false;
        if (mpi_test(request_at(net, i), &finished) != MPI_OK || !finished) all = false;
    }
    return all;
}

void comm_net_flush(CommNet *net, double seconds) {
    if (mpi_is_over()) return;
    int64_t deadline_ns = clock_deadline_ns(seconds);
    while (sends_left(net) > 0 && !clock_expired(deadline_ns)) {
        if (comm_net_progress(net) != STATUS_OK) break;
        sched_yield();
    }
}

bool comm_net_destroy(CommNet *net, const bool *skip) {
    if (mpi_is_over()) return false;
    if (atomic_load(&net->broken) || atomic_load(&net->aborted)) {
        comm_net_flush(net, FLUSH_BROKEN_S);
    } else {
        comm_net_flush(net, FLUSH_S);
        ControlMessage leave = {.kind = CONTROL_LEAVE, .from = net->rank};
        send_control(net, &leave, skip);
        comm_net_flush(net, FLUSH_LEAVE_S);
    }
    pthread_mutex_lock(&lock);
    bool quiet = sends_left(net) == 0;
    quiet = cancel_receives(net) && quiet;
    pthread_mutex_unlock(&lock);
    /* What MPI may still access is never freed: a broken job's last megabytes. */
    if (quiet) free_net(net);
    return quiet;
}

/* ---- the world ---- */

static void start_mpi(void) {
    int provided;
    Handlers handlers;
    handlers_save(&handlers); /* it opens more libraries */
    const int error = mpi->Init_thread(NULL, NULL, mpi->abi.thread_multiple, &provided);
    handlers_restore(&handlers);
    if (error != MPI_OK) return;
    initialised_by = getpid();
    mpi->Comm_set_errhandler(mpi->abi.comm_world, mpi->abi.errors_return);
    mpi->Comm_set_errhandler(mpi->abi.comm_self, mpi->abi.errors_return);
}

static Status initialise(int64_t deadline_ns, const CommHooks *hooks) {
    int initialised = 0, finalized = 0, provided = 0;
    const CommMpi *open = NULL;
    TRY(comm_mpi_open(&open));
    pthread_mutex_lock(&lock);
    mpi = open;
    pthread_mutex_unlock(&lock);
    TRY_MPI(Initialized, &initialised);
    TRY_MPI(Finalized, &finalized);
    if (finalized) FAIL(STATUS_TRANSPORT, "MPI has been finalised: no communicator can be made any more");
    if (!initialised) TRY(comm_start_once(start_mpi, "MPI_Init", deadline_ns, hooks));
    TRY_MPI(Query_thread, &provided);
    if (provided < mpi->abi.thread_serialized) {
        FAIL(STATUS_TRANSPORT,
             "MPI was initialised without thread support (level %d): ask for MPI_THREAD_MULTIPLE, or "
             "let cgxffcv initialise it",
             provided);
    }
    return STATUS_OK;
}

/* Polls one request, letting signals through. */
static Status complete(MpiHandle *request, int64_t deadline_ns, const CommHooks *hooks, const char *what) {
    int finished = 0;
    for (int turn = 1;; turn++) {
        pthread_mutex_lock(&lock);
        int error = mpi_test(request, &finished);
        pthread_mutex_unlock(&lock);
        TRY(check_mpi(error, what));
        if (finished) return STATUS_OK;
        if (clock_expired(deadline_ns)) {
            FAIL(STATUS_TIMEOUT, "not all ranks reached %s before the deadline: do all of them create it?", what);
        }
        if (turn < 100) {
            sched_yield();
            continue;
        }
        usleep(200);
        if (turn % 100 == 0 && hooks->check != NULL) TRY(hooks->check(hooks->context));
    }
}

Status comm_net_create_world(int64_t deadline_ns, const CommHooks *hooks, CommNet **out, int *rank, int *size) {
    Status status = STATUS_OK;
    CommNet *net = NULL;
    MpiHandle request = 0;
    TRY(initialise(deadline_ns, hooks));
    TRY(memory_calloc(1, sizeof *net, &net));
    net->world = net;
    TRY_MPI_GOTO(Comm_rank, mpi->abi.comm_world, &net->rank);
    TRY_MPI_GOTO(Comm_size, mpi->abi.comm_world, &net->size);
    pthread_mutex_lock(&lock);
    int error = mpi->Comm_idup(mpi->abi.comm_world, &net->mpi, &request);
    pthread_mutex_unlock(&lock);
    TRY_GOTO(check_mpi(error, "MPI_Comm_idup"));
    status = complete(&request, deadline_ns, hooks, "the new world communicator");
    if (status != STATUS_OK) {
        net = NULL; /* MPI may still write into it */
        goto done;
    }
    TRY_MPI_GOTO(Comm_set_errhandler, net->mpi, mpi->abi.errors_return);
    *rank = net->rank;
    *size = net->size;
    *out = net;
    pthread_mutex_lock(&lock);
    net->next = worlds;
    worlds = net;
    pthread_mutex_unlock(&lock);
    net = NULL;
done:
    memory_free(net);
    return status;
}

Status comm_net_gather(CommNet *world, const void *mine, size_t bytes, void *all, int64_t deadline_ns,
                       const CommHooks *hooks) {
    Status status = STATUS_OK;
    MpiHandle request = 0;
    unsigned char *blocks = NULL; /* owned: rank r's block at r, mine again at the end */
    size_t n = (size_t)world->size;
    TRY(memory_alloc(n + 1, bytes, &blocks));
    memcpy(blocks + n * bytes, mine, bytes);
    pthread_mutex_lock(&lock);
    int error = mpi->Iallgather(blocks + n * bytes, (int)bytes, mpi->abi.byte, blocks, (int)bytes, mpi->abi.byte,
                                world->mpi, &request);
    pthread_mutex_unlock(&lock);
    TRY_GOTO(check_mpi(error, "MPI_Iallgather"));
    status = complete(&request, deadline_ns, hooks, "the new world communicator");
    if (status == STATUS_OK) {
        memcpy(all, blocks, n * bytes);
    } else {
        blocks = NULL; /* MPI may still write into them */
    }
done:
    memory_free(blocks);
    return status;
}

Status comm_net_world_allreduce(CommNet *world, float *data, int64_t elems) {
    const int64_t most = INT64_C(1) << 30;
    for (int64_t at = 0; at < elems; at += most) {
        int count = (int)(elems - at < most ? elems - at : most);
        TRY_MPI(Allreduce, (const void *)mpi->abi.in_place, data + at, count, mpi->abi.float32, mpi->abi.sum,
                world->mpi);
    }
    return STATUS_OK;
}

/* Waits until every rank has reached the end of its program; after a failure some may never, and it gives up. */
static bool wait_for_all_ranks(bool after_failure) {
    MpiHandle request = 0;
    int64_t deadline_ns = clock_deadline_ns(after_failure ? MEET_S : 1e9);
    int finished = 0;
    if (mpi->Ibarrier(mpi->abi.comm_world, &request) != MPI_OK) return false;
    while (!clock_expired(deadline_ns)) {
        if (mpi_test(&request, &finished) != MPI_OK) return false;
        if (finished) return true;
        usleep(500);
    }
    return false;
}

void comm_net_finalize(bool after_failure) {
    if (initialised_by != getpid() || mpi_is_over()) return;
    if (wait_for_all_ranks(after_failure)) mpi->Finalize();
}
