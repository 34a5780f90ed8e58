/* Communicators as the caller sees them: created, split, queried, destroyed. */
#include "comm/internal.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/environment.h"
#include "base/hash.h"
#include "base/memory.h"

#define NODES_VARIABLE "CGXFFCV_COMM_NODES"
#define MOST_NODES (1 << 20)
#define TIMEOUT_VARIABLE "CGXFFCV_COMM_TIMEOUT"

/* Whether a communicator of this process broke: then the ranks may not be able to finalise MPI together. */
static _Atomic bool anything_failed;
_Atomic bool comm_aborted_here;

/* ---- options ---- */

static Status read_environment(CommOptions *options) {
    int64_t nodes = options->nodes;
    if (options->timeout_s <= 0) TRY(environment_seconds(TIMEOUT_VARIABLE, INFINITY, &options->timeout_s));
    if (options->nodes <= 0) TRY(environment_whole(NODES_VARIABLE, "nodes", 1, MOST_NODES, &nodes));
    options->nodes = (int)nodes;
    return STATUS_OK;
}

static Status resolve(const CommOptions *given, CommOptions *out) {
    *out = given == NULL ? (CommOptions){0} : *given;
    return read_environment(out);
}

/* Equal on processes that can open each other's memory: the boot, the pid namespace, the user. */
static uint64_t host_identity(void) {
    char text[512] = "";
    size_t used = 0;
    FILE *file = fopen("/proc/sys/kernel/random/boot_id", "re");
    if (file != NULL) {
        used = fread(text, 1, 64, file);
        fclose(file);
    }
    if (used == 0 && gethostname(text, 255) == 0) used = strlen(text);
    ssize_t namespace_bytes = readlink("/proc/self/ns/pid", text + used, 64);
    if (namespace_bytes > 0) used += (size_t)namespace_bytes;
    used += (size_t)snprintf(text + used, sizeof text - used, " %u", (unsigned)geteuid());
    return hash_bytes(text, used, 0);
}

/* ---- creation ---- */

static Status create_alone(const CommOptions *options, Comm **out) {
    int fd = -1;
    TRY(comm_segment_create(1, options->slot_bytes, &fd));
    Status status = comm_attach(fd, 0, 1, options, out);
    close(fd);
    return status;
}

typedef struct WorldGather {
    CommNetWorld *net;
    int64_t deadline_ns;
    const CommHooks *hooks;
} WorldGather;

static Status gather_world(void *context, const void *mine, size_t bytes, void *all) {
    WorldGather *world = context;
    return comm_net_gather(world->net, mine, bytes, all, world->deadline_ns, world->hooks);
}

static Status create_from_mpi(const CommOptions *options, Comm **out) {
    Status status = STATUS_OK;
    CommNetWorld *net = NULL;
    int rank, size;
    double timeout_s = options->timeout_s > 0 ? options->timeout_s : COMM_DEFAULT_TIMEOUT_S;
    int64_t deadline_ns = clock_deadline_ns(timeout_s);
    TRY_GOTO(comm_net_create_world(deadline_ns, &options->hooks, &net, &rank, &size));
    if (options->ranks > 0 && options->ranks != size) {
        CommMpiName name;
        TRY_GOTO(comm_mpi_name(true, &name));
        FAIL_GOTO(
            STATUS_TRANSPORT,
            "the launcher started %d ranks, but MPI reports %d (this is rank %d): the launcher and the MPI library, "
            "%.300s (%.100s), are not from the same installation. Start the ranks with that library's mpirun (cgxffcv "
            "launch -np %d), or name the launcher's libmpi in CGXFFCV_MPI_LIBRARY",
            options->ranks, size, rank, name.path, name.version, options->ranks);
    }
    if (options->nodes > size) {
        FAIL_GOTO(STATUS_ARGUMENT, "nodes=%d, but there are only %d ranks", options->nodes, size);
    }
    WorldGather context = {.net = net, .deadline_ns = deadline_ns, .hooks = &options->hooks};
    Bootstrap bootstrap = {.gather = gather_world,
                           .context = &context,
                           .rank = rank,
                           .size = size,
                           .world_rank = rank,
                           .topology = -1,
                           .host = host_identity(),
                           .machine = host_identity(),
                           .world_net = net,
                           .options = *options};
    if (options->nodes > 0) {
        bootstrap.topology = (int)((int64_t)rank * options->nodes / size);
        bootstrap.host = hash_bytes(&bootstrap.topology, sizeof bootstrap.topology, bootstrap.host);
    }
    TRY_GOTO(comm_join_gathered(&bootstrap, out));
done:
    if (status != STATUS_OK) anything_failed = true;
    return error_at_operation(status, "world");
}

Status comm_create_world(const CommOptions *given, Comm **out) {
    CommOptions options;
    TRY(resolve(given, &options));
    bool alone = options.ranks == 1 && comm_net_running_size() <= 1;
    return alone ? create_alone(&options, out) : create_from_mpi(&options, out);
}

Status comm_segment_create(int size, size_t slot_bytes, int *fd) {
    return comm_segment_new(size, slot_bytes > 0 ? slot_bytes : COMM_DEFAULT_SLOT_BYTES, 1, fd);
}

Status comm_attach(int fd, int rank, int size, const CommOptions *given, Comm **out) {
    CommOptions options;
    CommSegment segment = {0};
    TRY(resolve(given, &options));
    if (options.nodes > size) FAIL(STATUS_ARGUMENT, "nodes=%d, but there are only %d ranks", options.nodes, size);
    TRY(comm_segment_open(fd, size, rank, 0, &segment));
    Status status = comm_join_segment(&segment, rank, size, &options, out);
    if (status != STATUS_OK) comm_segment_close(&segment, false);
    return status;
}

Status comm_create_disconnected(int rank, int size, const int *node_of, Comm **out) {
    Status status = STATUS_OK;
    CommOptions options;
    CommSegment segment = {0};
    int fd = -1;
    if (size < 2 || rank < 0 || rank >= size)
        FAIL(STATUS_ARGUMENT,
             "a communicator without a connection to its ranks is of at least 2 of them, not of rank %d of %d", rank,
             size);
    TRY(resolve(NULL, &options));
    TRY(comm_segment_create(1, 0, &fd));
    TRY_GOTO(comm_segment_open(fd, 1, 0, 0, &segment));
    status = comm_join_disconnected(&segment, rank, size, node_of, &options, out);
    if (status != STATUS_OK) comm_segment_close(&segment, false);
done:
    close(fd);
    return status;
}

static Status gather_parent(void *context, const void *mine, size_t bytes, void *all) {
    return comm_allgather(context, mine, bytes, all);
}

static Status comm_make_part(Comm *comm, int color, int key, Comm **out) {
    Bootstrap bootstrap = {.gather = gather_parent,
                           .context = comm,
                           .rank = comm->rank,
                           .size = comm->size,
                           .color = color < 0 ? -1 : color,
                           .key = key,
                           .world_rank = comm->places[comm->rank].world_rank,
                           .topology = comm->node,
                           .host = comm->host,
                           .machine = comm->host,
                           .world_net = comm->world_net};
    bootstrap.options = (CommOptions){.timeout_s = comm->timeout_s,
                                      .slot_bytes = comm->segment.slot_bytes,
                                      .stall_s = (double)comm->stall_ns * 1e-9,
                                      .hooks = comm->hooks};
    return comm_join_gathered(&bootstrap, out);
}

Status comm_split(Comm *comm, int color, int key, Comm **out) {
    TRY(comm_begin(comm, "split", 0));
    return comm_end(comm, comm_make_part(comm, color, key, out));
}

/* ---- destruction ---- */

void comm_destroy(Comm *comm) {
    if (comm == NULL) return;
    bool mine = comm->owner_pid == (int)getpid();
    bool quiet = true;
    comm_watch_remove(comm);
    if (comm->segment.base != NULL && comm_segment_aborted(&comm->segment) != NULL) anything_failed = true;
    if (mine && comm->net != NULL) quiet = comm_net_destroy(comm->net, comm->shares);
    comm_segment_close(&comm->segment, !quiet);
    comm_join_free(comm);
}

void comm_finalize(void) {
    if (!comm_aborted_here) comm_net_finalize(anything_failed);
}

/* ---- queries ---- */

static Status count_up(Comm *comm, uint64_t key, uint32_t *number) {
    Tally *tally = NULL;
    for (size_t i = 0; i < comm->tallies_count && tally == NULL; i++) {
        if (comm->tallies[i].key == key) tally = &comm->tallies[i];
    }
    if (tally == NULL) {
        size_t bytes = comm->tallies_count * sizeof *tally;
        TRY(memory_resize(&comm->tallies, bytes, bytes + sizeof *tally));
        tally = &comm->tallies[comm->tallies_count++];
        *tally = (Tally){.key = key};
    }
    *number = tally->count++;
    return STATUS_OK;
}

Status comm_number(Comm *comm, uint64_t key, uint32_t *number) {
    pthread_mutex_lock(&comm->lock);
    Status status = count_up(comm, key, number);
    pthread_mutex_unlock(&comm->lock);
    return status;
}

bool comm_is_disconnected(const Comm *comm) { return comm->disconnected; }

int comm_rank(const Comm *comm) { return comm->rank; }

int comm_size(const Comm *comm) { return comm->size; }

int comm_node(const Comm *comm) { return comm->node; }

int comm_nodes(const Comm *comm) { return comm->nodes; }

int comm_local_rank(const Comm *comm) { return comm->places[comm->rank].local_rank; }

int comm_local_size(const Comm *comm) { return comm_local_size_of(comm, comm->node); }

int comm_node_of(const Comm *comm, int rank) { return comm->places[rank].node; }

int comm_local_size_of(const Comm *comm, int node) {
    int count = 0;
    for (int rank = 0; rank < comm->size; rank++) count += comm->places[rank].node == node;
    return count;
}

int comm_rank_at(const Comm *comm, int node, int local_rank) {
    for (int rank = 0; rank < comm->size; rank++) {
        if (comm->places[rank].node == node && comm->places[rank].local_rank == local_rank) return rank;
    }
    return -1;
}

bool comm_shares_memory(const Comm *comm, int rank) { return comm->shares[rank]; }

size_t comm_slot_bytes(const Comm *comm) { return comm->segment.slot_bytes; }

Status comm_mpi_allreduce(Comm *comm, float *data, int64_t elems) {
    if (comm->world_net == NULL) FAIL(STATUS_NOT_BUILT, "MPI_Allreduce needs ranks started by mpirun");
    if (comm->size != comm_net_running_size()) {
        FAIL(STATUS_ARGUMENT, "MPI_Allreduce runs on all %d ranks of the job, not on %d of them",
             comm_net_running_size(), comm->size);
    }
    return comm_net_world_allreduce(comm->world_net, data, elems);
}

int comm_slots(const Comm *comm) { return comm->segment.slots; }

double comm_timeout(const Comm *comm) { return comm->timeout_s; }
