/* Windows between GPUs. Within a host, a rank's window is memory of its GPU, which the others open through CUDA IPC, or
 * its part of a memfd, which all map and register. In both cases a memfd has a page through which the ranks coordinate
 * the end. Nothing has a name: it vanishes with its last user. Between nodes there are send and receive buffers
 * (forward.c); within each node, its ranks have a window of their own, over a communicator of their own. */
#include "comm/window.h"

#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/clock.h"
#include "base/environment.h"
#include "base/memory.h"
#include "comm/forward.h"
#include "comm/internal.h"
#include "comm/window_probe.h"

#define SWITCH_VARIABLE "CGXFFCV_P2P"
#define PAGE_BYTES 4096
#define REASON_BYTES (COMM_WHY_BYTES - 32)
#define MEET_S 5.0   /* how long to wait for the others at the end */
#define DRAIN_S 0.5  /* how long to wait for kernels after their abort */
#define REPORT_S 0.2 /* how long to wait for a kernel's report after its abort */

/* The first page of the memfd, shared by all ranks. */
typedef struct SharedPage {
    uint64_t token;
    _Alignas(64) _Atomic uint32_t idle; /* ranks whose GPU no longer accesses any window */
    _Atomic uint32_t gone;              /* ranks that have closed the windows of others */
} SharedPage;

struct CommWindow {
    Comm *comm; /* borrowed */
    CommWindowKind kind;
    size_t bytes;         /* of each rank's */
    void **bases;         /* owned, [ranks]: where this rank's GPU finds them, NULL if it does not reach them */
    void *memory;         /* owned: PEER: this rank's */
    CommForward *forward; /* owned: MIXED, FORWARDED */
    Comm *node;           /* owned: MIXED: the ranks of this node */
    CommWindow *inside;   /* owned: MIXED: their windows, if there are several */
    SharedPage *page;     /* owned: a mapping */
    size_t mapping_bytes; /* of it: the page, and with STAGED every rank's window */
    bool registered;      /* the mapping is page-locked */
    bool joined;          /* all ranks have it */
    CommWindowStatus *status_words; /* owned */
    DeviceStream *stream;           /* owned: for filling and probing */
    CommGuard guard;
};

/* What a rank sends the others before they open its memory. */
typedef struct Offer {
    uint64_t token;
    int32_t pid, fd; /* of rank 0's memfd */
    unsigned char handle[DEVICE_HANDLE_BYTES];
} Offer;

/* ---- the parts ---- */

static size_t stride_of(const CommWindow *w) { return round_up(w->bytes, PAGE_BYTES); }

static size_t window_at(const CommWindow *w, int rank) { return PAGE_BYTES + (size_t)rank * stride_of(w); }

static Status check_possible(const CommWindow *w) {
    bool wanted = true;
    if (w->kind == COMM_WINDOW_PEER) TRY(environment_switch(SWITCH_VARIABLE, &wanted));
    if (!wanted) FAIL(STATUS_ARGUMENT, SWITCH_VARIABLE "=0");
    if (device_count() == 0) FAIL(STATUS_CUDA, "no GPU: %s", device_why());
    return STATUS_OK;
}

static bool has_buffers(const CommWindow *w) { return w->kind >= COMM_WINDOW_MIXED; }

/* Makes buffers for the ranks that are not reached in place. */
static Status make_buffers(CommWindow *w, const CommWindowSizes *sizes) {
    const Comm *comm = w->comm;
    bool *remote = NULL;
    TRY(memory_calloc((size_t)comm->size, sizeof *remote, &remote));
    for (int rank = 0; rank < comm->size; rank++) {
        bool near = w->kind == COMM_WINDOW_MIXED && comm->places[rank].node == comm->node;
        remote[rank] = rank != comm->rank && !near;
    }
    Status status = comm_forward_create(w->comm, remote, sizes, w->status_words, &w->forward);
    memory_free(remote);
    return status;
}

static Status make_shared(CommWindow *w, Offer *offer) {
    TRY(device_alloc(round_up(w->bytes, DEVICE_SHARED_UNIT), &w->memory));
    TRY(device_fill(w->memory, 0, w->bytes, w->stream));
    TRY(device_stream_synchronize(w->stream));
    return device_share(w->memory, offer->handle);
}

/* What this rank makes by itself; `fd` is then the caller's. */
static Status window_make(CommWindow *w, const CommWindowSizes *sizes, Offer *offer, int *fd) {
    TRY(check_possible(w));
    TRY(device_stream_create(&w->stream));
    TRY(device_host_alloc(sizeof *w->status_words, &w->status_words));
    memset(w->status_words, 0, sizeof *w->status_words);
    if (has_buffers(w)) return make_buffers(w, sizes);
    if (w->kind == COMM_WINDOW_PEER) TRY(make_shared(w, offer));
    if (w->comm->rank != 0) return STATUS_OK;
    TRY(comm_segment_memfd(w->mapping_bytes, fd));
    offer->token = comm_segment_token(w->comm->id);
    offer->pid = (int32_t)getpid();
    offer->fd = *fd;
    ssize_t written;
    RETRY_EINTR(written, pwrite(*fd, &offer->token, sizeof offer->token, offsetof(SharedPage, token)));
    if (written != (ssize_t)sizeof offer->token) FAIL_ERRNO("writing to shared memory");
    return STATUS_OK;
}

static Status map_memfd(CommWindow *w, int fd, uint64_t token) {
    struct stat about;
    if (fstat(fd, &about) != 0 || about.st_size != (off_t)w->mapping_bytes) {
        FAIL(STATUS_TRANSPORT, "rank 0's shared memory cannot be reached (another container?)");
    }
    /* Puts this rank's pages close to it, and fails, instead of a later SIGBUS, if there is not enough memory. */
    if (w->kind == COMM_WINDOW_STAGED &&
        fallocate(fd, 0, (off_t)window_at(w, w->comm->rank), (off_t)stride_of(w)) != 0) {
        FAIL_ERRNO("%zu MiB of shared memory", (w->bytes >> 20) + 1);
    }
    void *memory = mmap(NULL, w->mapping_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (memory == MAP_FAILED) FAIL_ERRNO("mapping %zu bytes of shared memory", w->mapping_bytes);
    w->page = memory;
    if (w->page->token != token)
        FAIL(STATUS_TRANSPORT, "rank 0's shared memory cannot be reached (another container?)");
    return STATUS_OK;
}

static Status window_map(CommWindow *w, const Offer *offers, int own_fd) {
    if (w->comm->rank == 0) return map_memfd(w, own_fd, offers[0].token);
    int fd = comm_segment_reach(offers[0].pid, offers[0].fd);
    if (fd < 0) FAIL_ERRNO("rank 0's shared memory cannot be opened");
    Status status = map_memfd(w, fd, offers[0].token);
    close(fd);
    return status;
}

static Status open_peers(CommWindow *w, const Offer *offers) {
    for (int rank = 0; rank < w->comm->size; rank++) {
        if (rank == w->comm->rank) {
            w->bases[rank] = w->memory;
            continue;
        }
        if (device_shared_open(offers[rank].handle, &w->bases[rank]) == STATUS_OK) continue;
        ErrorRecord cause = *error_record();
        FAIL(STATUS_CUDA, "its GPU cannot reach rank %d's: %.150s", rank, cause.message);
    }
    return STATUS_OK;
}

static Status register_all(CommWindow *w) {
    unsigned char *there = NULL;
    TRY(device_host_register(w->page, w->mapping_bytes, &there));
    w->registered = true;
    for (int rank = 0; rank < w->comm->size; rank++) w->bases[rank] = there + window_at(w, rank);
    return STATUS_OK;
}

static Status window_open(CommWindow *w, const Offer *offers) {
    return w->kind == COMM_WINDOW_PEER ? open_peers(w, offers) : register_all(w);
}

static void close_others(CommWindow *w) {
    for (int rank = 0; w->kind == COMM_WINDOW_PEER && rank < w->comm->size; rank++) {
        if (rank != w->comm->rank) device_shared_close(w->bases[rank]);
        w->bases[rank] = NULL;
    }
    if (w->registered) device_host_unregister(w->page);
    w->registered = false;
}

/* Zeros it, as it is handed out: after the probe, and before anybody has begun to use it. */
static Status window_clear(CommWindow *w) {
    memset(w->status_words, 0, sizeof *w->status_words);
    TRY(device_fill(w->bases[w->comm->rank], 0, w->bytes, w->stream));
    return device_stream_synchronize(w->stream);
}

/* ---- making, together ---- */

/* How a step went on all ranks: `why` is "" or the first failure. */
static Status agree_on_step(CommWindow *w, Status mine, char *why) {
    Status status = STATUS_OK;
    char text[REASON_BYTES] = "", *all = NULL;
    if (mine == STATUS_INTERRUPTED) return mine;
    if (mine != STATUS_OK) snprintf(text, sizeof text, "%.*s", (int)sizeof text - 1, error_record()->message);
    TRY_GOTO(memory_calloc((size_t)w->comm->size, sizeof text, &all));
    TRY_GOTO(comm_allgather(w->comm, text, sizeof text, all));
    why[0] = '\0';
    for (int rank = 0; rank < w->comm->size && why[0] == '\0'; rank++) {
        const char *theirs = all + (size_t)rank * sizeof text;
        if (theirs[0] != '\0') snprintf(why, COMM_WHY_BYTES, "rank %d: %.*s", rank, (int)sizeof text - 1, theirs);
    }
done:
    memory_free(all);
    return status;
}

/* A window among the ranks of this node, of the first kind that works. */
static Status join_inside(CommWindow *w, const CommWindowSizes *sizes) {
    char why[COMM_WHY_BYTES] = "";
    TRY(comm_split(w->comm, w->comm->node, w->comm->rank, &w->node));
    for (int kind = COMM_WINDOW_PEER; kind <= COMM_WINDOW_STAGED; kind++) {
        if (w->node->size == 1 || w->inside != NULL) return STATUS_OK;
        TRY(comm_window_create(w->node, (CommWindowKind)kind, sizes, &w->inside, why));
    }
    if (w->inside == NULL) FAIL(STATUS_CUDA, "among the ranks of node %d, by local_rank, %.150s", w->comm->node, why);
    return STATUS_OK;
}

static Status join_buffers(CommWindow *w, const CommWindowSizes *sizes, char *why) {
    if (w->kind == COMM_WINDOW_MIXED) {
        TRY(agree_on_step(w, join_inside(w, sizes), why));
        if (why[0] != '\0') return STATUS_OK;
    }
    for (int rank = 0; w->inside != NULL && rank < w->comm->size; rank++) {
        const CommPlace *place = &w->comm->places[rank];
        if (place->node == w->comm->node) w->bases[rank] = w->inside->bases[place->local_rank];
    }
    return agree_on_step(w, comm_forward_start(w->forward), why);
}

/* The steps, each of which must succeed on all ranks before the next one begins; ends early with a reason in `why`. */
static Status window_join(CommWindow *w, const CommWindowSizes *sizes, Offer *offers, int *fd, char *why) {
    Offer mine = {0};
    TRY(agree_on_step(w, window_make(w, sizes, &mine, fd), why));
    if (why[0] != '\0') return STATUS_OK;
    if (has_buffers(w)) return join_buffers(w, sizes, why);
    TRY(comm_allgather(w->comm, &mine, sizeof mine, offers));
    TRY(agree_on_step(w, window_map(w, offers, *fd), why));
    if (why[0] != '\0') return STATUS_OK;
    TRY(agree_on_step(w, window_open(w, offers), why));
    if (why[0] != '\0') return STATUS_OK;
    TRY(agree_on_step(w, comm_probe_run(w->comm, w->bases, w->bytes, w->status_words, w->stream), why));
    if (why[0] != '\0') return STATUS_OK;
    return agree_on_step(w, window_clear(w), why);
}

static void check_nodes(const Comm *comm, CommWindowKind kind, char *why) {
    bool several_nodes = comm->nodes > 1, shared_node = false;
    for (int rank = 0; rank < comm->size; rank++) several_nodes = several_nodes || !comm->shares[rank];
    for (int node = 0; node < comm->nodes; node++) shared_node = shared_node || comm_local_size_of(comm, node) > 1;
    const char *text = kind < COMM_WINDOW_MIXED && several_nodes       ? "the ranks are on several nodes"
                       : kind == COMM_WINDOW_MIXED && comm->nodes == 1 ? "all ranks are on one node"
                       : kind == COMM_WINDOW_MIXED && !shared_node     ? "every rank is alone on its node"
                                                                       : "";
    snprintf(why, COMM_WHY_BYTES, "%s", text);
}

/* Otherwise waiting kernels would go on until their deadline, and so would a wait for them through CUDA. */
static void window_beat(void *context, bool lost) {
    if (lost) comm_window_abort(context);
}

/* Checks that the sizes are the same on all ranks where they must be, and large enough. */
static Status check_sizes(Comm *comm, CommWindowKind kind, const CommWindowSizes *sizes) {
    bool buffers = kind >= COMM_WINDOW_MIXED, windows = kind <= COMM_WINDOW_STAGED;
    uint64_t same[] = {kind, windows ? sizes->bytes : 0, buffers ? sizes->buffer_bytes : 0, buffers ? sizes->sends : 0};
    TRY(comm_agree(comm, same, sizeof same));
    if (windows && sizes->bytes / (size_t)comm->size < COMM_WINDOW_MIN) {
        FAIL(STATUS_ARGUMENT, "a window of %zu bytes is too small", sizes->bytes);
    }
    if (buffers && sizes->buffer_bytes < COMM_WINDOW_MIN)
        FAIL(STATUS_ARGUMENT, "a buffer of %zu bytes is too small", sizes->buffer_bytes);
    return STATUS_OK;
}

static Status window_create(Comm *comm, CommWindowKind kind, const CommWindowSizes *sizes, CommWindow **out,
                            char *why) {
    Status status = STATUS_OK;
    CommWindow *w = NULL;
    Offer *offers = NULL;
    int fd = -1;
    *out = NULL;
    TRY_GOTO(check_sizes(comm, kind, sizes));
    check_nodes(comm, kind, why);
    if (why[0] != '\0') goto done;
    TRY_GOTO(memory_calloc((size_t)comm->size, sizeof *offers, &offers));
    TRY_GOTO(memory_calloc(1, sizeof *w, &w));
    *w = (CommWindow){.comm = comm, .kind = kind, .bytes = sizes->bytes};
    w->mapping_bytes = window_at(w, kind == COMM_WINDOW_STAGED ? comm->size : 0);
    TRY_GOTO(memory_calloc((size_t)comm->size, sizeof *w->bases, &w->bases));
    TRY_GOTO(window_join(w, sizes, offers, &fd, why));
    if (why[0] != '\0') {
        close_others(w);
        TRY_GOTO(comm_barrier(comm));
        goto done;
    }
    w->joined = true;
    w->guard = (CommGuard){.comm = comm, .beat = window_beat, .context = w};
    comm_watch_guard(&w->guard);
    *out = w;
    w = NULL;
done:
    if (fd >= 0) close(fd);
    comm_window_destroy(w);
    memory_free(offers);
    return status;
}

Status comm_window_create(Comm *comm, CommWindowKind kind, const CommWindowSizes *sizes, CommWindow **out, char *why) {
    TRY(comm_begin(comm, "windows between GPUs", 0));
    return comm_end(comm, window_create(comm, kind, sizes, out, why));
}

/* ---- the end ---- */

/* Waits for all ranks to arrive here, but not for long. */
static void wait_for_all(const CommWindow *w, _Atomic uint32_t *count) {
    int64_t deadline_ns = clock_deadline_ns(MEET_S), since_ns = clock_now_ns();
    atomic_fetch_add(count, 1);
    while (atomic_load(count) < (uint32_t)w->comm->size && !clock_expired(deadline_ns)) {
        if (comm_broken(w->comm, NULL)) return;
        comm_poll_pause(since_ns);
    }
}

/* A rank lost on another node breaks this node's communicator, too: nobody waits on it for ranks that do not come. */
static void break_node(const CommWindow *w) {
    const ErrorRecord *cause;
    AbortRecord record = {.code = STATUS_TRANSPORT, .rank = -1};
    if (w->node == NULL || !comm_broken(w->comm, &cause)) return;
    snprintf(record.message, sizeof record.message, "%.*s", (int)sizeof record.message - 1, cause->message);
    comm_wait_break(w->node, &record);
}

/* Nobody's memory is freed while another rank's kernels may write into it. */
static void window_release(CommWindow *w) {
    if (w->joined && w->page != NULL) wait_for_all(w, &w->page->idle);
    close_others(w);
    if (w->joined && w->page != NULL) wait_for_all(w, &w->page->gone);
    device_free(w->memory);
    device_host_free(w->status_words);
    device_stream_destroy(w->stream);
}

void comm_window_destroy(CommWindow *w) {
    if (w == NULL) return;
    const bool own = w->comm->owner_pid == (int)getpid(); /* a forked child has nothing but mappings */
    comm_watch_unguard(&w->guard);
    if (own && w->status_words != NULL) comm_window_abort(w);
    comm_forward_destroy(w->forward, w->joined);
    if (own) break_node(w);
    comm_window_destroy(w->inside);
    comm_destroy(w->node);
    if (own) window_release(w);
    if (w->page != NULL) munmap(w->page, w->mapping_bytes);
    memory_free(w->bases);
    memory_free(w);
}

/* ---- use ---- */

CommWindowKind comm_window_inside(const CommWindow *w) {
    if (w->kind != COMM_WINDOW_MIXED) return w->kind;
    return w->inside == NULL ? COMM_WINDOW_FORWARDED : w->inside->kind;
}

void *comm_window_base(const CommWindow *w, int rank) { return w->bases[rank]; }

void *comm_window_send_buffer(const CommWindow *w, int rank) {
    return w->forward == NULL ? NULL : comm_forward_send_buffer(w->forward, rank);
}

void *comm_window_receive_buffer(const CommWindow *w, int rank) {
    return w->forward == NULL ? NULL : comm_forward_receive_buffer(w->forward, rank);
}

CommWindowSendQueue comm_window_send_queue(const CommWindow *w) {
    return w->forward == NULL ? (CommWindowSendQueue){0} : comm_forward_send_queue(w->forward);
}

CommWindowStatus *comm_window_status_words(const CommWindow *w) { return w->status_words; }

void comm_window_abort(CommWindow *w) { w->status_words->abort = 1; }

static bool reported(const CommWindow *w) { return __atomic_load_n(&w->status_words->reported, __ATOMIC_ACQUIRE) != 0; }

static const char *words_of(uint32_t what) {
    switch (what) {
    case COMM_WINDOW_TERMS:
        return "its share of a sum";
    case COMM_WINDOW_RESULTS:
        return "a sum";
    default:
        return "a sign";
    }
}

static Status check_report(void *context) {
    const CommWindow *w = context;
    const CommWindowStatus *status_words = w->status_words;
    if (!reported(w)) return STATUS_OK;
    if (status_words->what == COMM_WINDOW_SOUND) {
        return error_at_rank(error_fail(STATUS_TRANSPORT,
                                        "what rank %u sent to the GPU of rank %d is damaged (tile %u, epoch %u)",
                                        status_words->rank, w->comm->rank, status_words->tile, status_words->epoch),
                             (int)status_words->rank);
    }
    Status status = error_fail(STATUS_TIMEOUT,
                               "rank %d waited on its GPU for rank %u to send %s (tile %u, epoch %u): it is stopped, "
                               "far behind, or in another call",
                               w->comm->rank, status_words->rank, words_of(status_words->what), status_words->tile,
                               status_words->epoch);
    return error_at_rank(status, (int)status_words->rank);
}

/* Something has failed: ends the kernels. If a deadline names no rank, their report says which one they waited for. */
static Status window_drain(CommWindow *w, DeviceStream *stream, Status status) {
    ErrorRecord cause = *error_record();
    comm_window_abort(w);
    bool nameless = status == STATUS_TIMEOUT && cause.rank < 0, done = false;
    int64_t report_ns = clock_deadline_ns(REPORT_S), deadline_ns = clock_deadline_ns(DRAIN_S),
            since_ns = clock_now_ns();
    while (device_query(stream, NULL, &done) == STATUS_OK && !done && !clock_expired(deadline_ns)) {
        comm_poll_pause(since_ns);
    }
    while (nameless && !reported(w) && !clock_expired(report_ns)) comm_poll_pause(since_ns);
    if (nameless && reported(w)) return check_report(w);
    return error_adopt(&cause);
}

Status comm_window_wait(CommWindow *w, DeviceStream *stream, DeviceEvent *event) {
    Status status = comm_begin(w->comm, "sum on GPUs", 0);
    if (status != STATUS_OK) return comm_broken(w->comm, NULL) ? window_drain(w, stream, status) : status;
    status = comm_poll_device(w->comm, stream, event, check_report, w);
    if (status == STATUS_OK) status = comm_poll_blame(w->comm, check_report(w)); /* a kernel that gives up ends, too */
    if (status != STATUS_OK) status = window_drain(w, stream, status);
    return comm_end(w->comm, status);
}
