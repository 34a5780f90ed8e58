/* The workspaces of this process, by communicator. Ranks may drop a plan sooner or later than others do: so whenever a
 * workspace is wanted they compare whether all still have the same one, and make a new one if not. */
#include "allreduce/device/workspace.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "allreduce/device/state.h"
#include "base/memory.h"

#define SWITCH_VARIABLE "CGXFFCV_COMM_KERNELS"
#define SIZE_VARIABLE "CGXFFCV_COMM_WINDOW_KIB" /* of the data of a half, for tests and for scarce memory */
#define LEAST_KIB 8
#define DATA_BYTES (UINT64_C(10) << 20) /* of a half; a part of it may be as large, for what stays with the rank */
#define HOST_BYTES (UINT64_C(28) << 20) /* of the halves of all ranks, if they are in host memory */
#define SEND_BYTES (UINT64_C(32) << 20) /* of a rank between nodes, in total; */
#define NODE_BYTES (UINT64_C(52) << 20) /* of all ranks of a node */
#define FLAGS (UINT64_C(64) << 10)      /* of a half */
#define FLAG_SHARE 160                  /* between nodes: bytes of data per flag */
#define LEAST_FLAGS 1024

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static ExchangeWorkspace *workspaces; /* under the lock, as is `users` of each */

/* A rank's contribution. */
typedef struct Offer {
    uint32_t number; /* of its newest workspace of this communicator; 0: none */
    uint32_t off;
    uint64_t data_bytes; /* the most that it wants */
} Offer;

/* The communicator's newest workspace, with one user more; NULL if there is none. */
static ExchangeWorkspace *share_newest(const Comm *comm) {
    ExchangeWorkspace *newest = NULL;
    pthread_mutex_lock(&lock);
    for (ExchangeWorkspace *workspace = workspaces; workspace != NULL; workspace = workspace->next) {
        if (workspace->comm == comm && (newest == NULL || workspace->number > newest->number)) newest = workspace;
    }
    if (newest != NULL) newest->users++;
    pthread_mutex_unlock(&lock);
    return newest;
}

static void workspace_destroy(ExchangeWorkspace *workspace) {
    if (workspace == NULL) return;
    device_event_destroy(workspace->ran);
    comm_window_destroy(workspace->window);
    device_free(workspace->own);
    device_free(workspace->state);
    memory_free(workspace);
}

static Status read_settings(Comm *comm, Offer *offer) {
    bool enabled = true;
    int64_t kib = (int64_t)(DATA_BYTES >> 10);
    TRY(allreduce_switch(comm, SWITCH_VARIABLE, &enabled));
    TRY(allreduce_limit_kib(comm, SIZE_VARIABLE, LEAST_KIB, kib, &kib));
    offer->off = !enabled;
    offer->data_bytes = (uint64_t)kib << 10;
    return STATUS_OK;
}

/* The most ranks on a node, or the fewest. */
static uint64_t ranks_per_node(const Comm *comm, bool most) {
    int found = comm_local_size_of(comm, 0);
    for (int node = 1; node < comm_nodes(comm); node++) {
        int local_size = comm_local_size_of(comm, node);
        if ((local_size > found) == most) found = local_size;
    }
    return (uint64_t)found;
}

/* How many ranks a rank reaches through buffers: the maximum over all ranks. */
static uint64_t buffers_of(const Comm *comm, CommWindowKind kind) {
    return (uint64_t)comm_size(comm) - (kind == COMM_WINDOW_MIXED ? ranks_per_node(comm, false) : 1);
}

/* Bytes of a part between nodes: a rank has buffers for both directions in host memory, and perhaps its window. */
static uint64_t part_between(const Comm *comm, const ExchangeWorkspace *workspace) {
    uint64_t most = ranks_per_node(comm, true), share = NODE_BYTES / most;
    uint64_t neighbours = workspace->kind == COMM_WINDOW_MIXED ? most - 1 : 0;
    uint64_t parts = 4 * buffers_of(comm, workspace->kind) + 2 * neighbours * (uint64_t)workspace->inside;
    uint64_t flags = sizeof(uint32_t) * LEAST_FLAGS;
    return (share < SEND_BYTES ? share : SEND_BYTES) / parts * FLAG_SHARE / (FLAG_SHARE + sizeof(uint32_t)) - flags;
}

/* If two levels are possible, blocks between the ranks of a host have room for the results of every node. */
static void workspace_measure(const Comm *comm, uint64_t data_bytes, ExchangeWorkspace *workspace) {
    const uint64_t ranks = (uint64_t)comm_size(comm), others = ranks - 1;
    const bool between = workspace->kind >= COMM_WINDOW_MIXED;
    uint64_t most = data_bytes / others;
    workspace->inside = workspace->kind == COMM_WINDOW_MIXED && allreduce_nodes_are_equal(comm) ? comm_nodes(comm) : 1;
    uint64_t room = workspace->kind == COMM_WINDOW_STAGED ? HOST_BYTES / ranks / others
                    : between                             ? part_between(comm, workspace)
                                                          : most;
    workspace->part_bytes = (room < most ? room : most) / EXCHANGE_ALIGNMENT * EXCHANGE_ALIGNMENT;
    uint64_t flags = between ? workspace->part_bytes / FLAG_SHARE : FLAGS / others;
    workspace->part_flags =
        (uint32_t)((flags < LEAST_FLAGS ? LEAST_FLAGS : flags) / EXCHANGE_ALIGNMENT * EXCHANGE_ALIGNMENT);
}

static uint64_t half_of(const ExchangeWorkspace *workspace, int parts) {
    return (uint64_t)parts * (workspace->part_bytes + workspace->part_flags * sizeof(uint32_t));
}

static Status make_window_of_kind(Comm *comm, uint64_t data_bytes, ExchangeWorkspace *workspace, char *why) {
    workspace_measure(comm, data_bytes, workspace);
    uint64_t neighbours =
        (uint64_t)(workspace->kind == COMM_WINDOW_MIXED ? comm_local_size(comm) : comm_size(comm)) - 1;
    uint64_t flags = buffers_of(comm, workspace->kind) * 2 * workspace->part_flags;
    CommWindowSizes sizes = {.bytes = neighbours * 2 * half_of(workspace, workspace->inside),
                             .buffer_bytes = 2 * half_of(workspace, 1),
                             .sends = (uint32_t)flags};
    return comm_window_create(comm, workspace->kind, &sizes, &workspace->window, why);
}

/* Makes a window of the first kind that is possible; if none is, the reason against the last kind says the most. */
static Status make_window(Comm *comm, uint64_t data_bytes, ExchangeWorkspace *workspace, char *why) {
    for (int kind = COMM_WINDOW_PEER; kind <= COMM_WINDOW_FORWARDED && workspace->window == NULL; kind++) {
        workspace->kind = (CommWindowKind)kind;
        TRY(make_window_of_kind(comm, data_bytes, workspace, why));
    }
    return STATUS_OK;
}

/* ---- blocks ---- */

/* In a rank's window, the block of one that writes there: the blocks of all others are in rank order. */
static ExchangeBlock block_in(const ExchangeWorkspace *workspace, int rank, int source) {
    ExchangeBlock block = {.at = comm_window_base(workspace->window, rank),
                           .half_bytes = half_of(workspace, workspace->inside),
                           .parts = workspace->inside,
                           .far = comm_window_inside(workspace->window) == COMM_WINDOW_STAGED};
    for (int before = 0; block.at != NULL && before < source; before++) {
        bool there = before != rank && comm_window_base(workspace->window, before) != NULL;
        if (there) block.at += 2 * block.half_bytes;
    }
    return block;
}

static ExchangeBlock block_of_buffer(const ExchangeWorkspace *workspace, void *buffer) {
    return (ExchangeBlock){.at = buffer, .half_bytes = half_of(workspace, 1), .parts = 1, .far = true};
}

ExchangeBlock allreduce_workspace_outgoing(const ExchangeWorkspace *workspace, int rank) {
    void *buffer = comm_window_send_buffer(workspace->window, rank);
    return buffer == NULL ? block_in(workspace, rank, comm_rank(workspace->comm)) : block_of_buffer(workspace, buffer);
}

ExchangeBlock allreduce_workspace_incoming(const ExchangeWorkspace *workspace, int rank) {
    void *buffer = comm_window_receive_buffer(workspace->window, rank);
    return buffer == NULL ? block_in(workspace, comm_rank(workspace->comm), rank) : block_of_buffer(workspace, buffer);
}

/* ---- making ---- */

/* Zeroed, since readers read the padding, too. */
static Status make_own(ExchangeWorkspace *workspace, uint64_t bytes) {
    TRY(device_alloc(bytes, &workspace->own));
    return device_fill(workspace->own, 0, bytes, NULL);
}

/* Makes what is this rank's alone. */
static Status make_state(ExchangeWorkspace *workspace) {
    TRY(make_own(workspace, workspace->part_bytes));
    TRY(device_alloc(sizeof *workspace->state, &workspace->state));
    TRY(device_fill(workspace->state, 0, sizeof *workspace->state, NULL));
    TRY(device_stream_synchronize(NULL));
    return device_event_create(&workspace->ran);
}

static Status make_workspace(Comm *comm, uint32_t number, uint64_t data_bytes, ExchangeWorkspace **out, char *why) {
    Status status = STATUS_OK;
    ExchangeWorkspace *workspace = NULL;
    TRY(memory_calloc(1, sizeof *workspace, &workspace));
    *workspace = (ExchangeWorkspace){.comm = comm, .number = number, .users = 1};
    TRY_GOTO(make_window(comm, data_bytes, workspace, why));
    if (workspace->window == NULL) goto done;
    TRY_GOTO(comm_begin(comm, "making sums on GPUs", 0));
    TRY_GOTO(comm_end(comm, make_state(workspace))); /* the others see a failure before the window is destroyed */
    pthread_mutex_lock(&lock);
    workspace->next = workspaces;
    workspaces = workspace;
    pthread_mutex_unlock(&lock);
    *out = workspace;
    workspace = NULL;
done:
    workspace_destroy(workspace);
    return status;
}

/* *out is this rank's newest workspace, or NULL, and becomes the one to use. Without the lock: other threads may be
 * making workspaces of other communicators at the same time, and in a different order from other ranks. */
static Status workspace_join(Comm *comm, Offer *offers, ExchangeWorkspace **out, char *why) {
    ExchangeWorkspace *workspace = *out;
    Offer mine = {.number = workspace == NULL ? 0 : workspace->number};
    uint32_t greatest = 0;
    bool same = workspace != NULL, off = false;
    TRY(read_settings(comm, &mine));
    uint64_t data_bytes = mine.data_bytes;
    TRY(comm_allgather(comm, &mine, sizeof mine, offers));
    for (int r = 0; r < comm_size(comm); r++) {
        if (offers[r].number > greatest) greatest = offers[r].number;
        same = same && offers[r].number == mine.number;
        if (offers[r].data_bytes < data_bytes) data_bytes = offers[r].data_bytes;
        if (offers[r].off == 0 || off) continue;
        snprintf(why, ALLREDUCE_WHY_BYTES, "rank %d: " SWITCH_VARIABLE "=0", r);
        off = true;
    }
    if (same && !off) return STATUS_OK;
    allreduce_workspace_leave(workspace);
    *out = NULL;
    return off ? STATUS_OK : make_workspace(comm, greatest + 1, data_bytes, out, why);
}

Status allreduce_workspace_join(Comm *comm, ExchangeWorkspace **out, char *why) {
    Offer *offers = NULL;
    *out = NULL;
    TRY(memory_calloc((size_t)comm_size(comm), sizeof *offers, &offers));
    *out = share_newest(comm);
    Status status = workspace_join(comm, offers, out, why);
    if (status != STATUS_OK) {
        allreduce_workspace_leave(*out);
        *out = NULL;
    }
    memory_free(offers);
    return status;
}

void allreduce_workspace_leave(ExchangeWorkspace *workspace) {
    if (workspace == NULL) return;
    pthread_mutex_lock(&lock);
    bool last = --workspace->users == 0;
    for (ExchangeWorkspace **at = &workspaces; last && *at != NULL;) {
        if (*at == workspace) {
            *at = workspace->next;
        } else {
            at = &(*at)->next;
        }
    }
    pthread_mutex_unlock(&lock);
    if (last) workspace_destroy(workspace);
}

Status allreduce_workspace_begin_run(ExchangeWorkspace *workspace, DeviceStream *stream) {
    bool capturing;
    TRY(device_capturing(stream, &capturing));
    return capturing ? STATUS_OK : device_stream_wait(stream, workspace->ran);
}

Status allreduce_workspace_end_run(ExchangeWorkspace *workspace, DeviceStream *stream) {
    bool capturing;
    TRY(device_capturing(stream, &capturing));
    return capturing ? STATUS_OK : device_event_record(workspace->ran, stream);
}
