/* How a communicator is created: its future ranks gather who and where they are, one rank of each host makes the
 * segment, the others open it through /proc, and all learn whether everyone succeeded. */
#include "comm/internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/hash.h"
#include "base/memory.h"

#define JOIN_VERSION 0x31306e696f6a6763ULL
#define SPINS 1000
#define SPINS_CROWDED 20
#define DEFAULT_STALL_S 5.0

/* The three blocks that are gathered, in turn. */
typedef struct JoinInfo {
    uint64_t version, host, machine, slot_bytes;
    int32_t topology, color, key, world_rank, nodes;
    uint32_t next_id;
} JoinInfo;

typedef struct JoinOffer {
    uint64_t token;
    int32_t pid, fd;
} JoinOffer;

typedef struct JoinOutcome {
    int32_t code;
    int32_t cut_off; /* the memory of a rank of this host cannot be opened */
    char message[200];
} JoinOutcome;

typedef struct Join {
    const Bootstrap *bootstrap;
    JoinInfo *infos;       /* owned, of all gathering ranks */
    JoinOffer *offers;     /* owned */
    JoinOutcome *outcomes; /* owned */
    int *members;          /* owned: new rank -> rank among the gathering ranks */
    int rank, size;
    uint32_t id;
    int fd; /* owned, if this rank made the segment */
    uint64_t token;
    Comm *comm; /* owned until handed out */
    bool cut_off;
} Join;

static _Atomic uint32_t next_id = 1;

/* ---- the communicator's own tables ---- */

void comm_join_free(Comm *comm) {
    if (comm == NULL) return;
    memory_free(comm->places);
    memory_free(comm->rank_of_seat);
    memory_free(comm->shares);
    memory_free(comm->others);
    memory_free(comm->seen_ranks);
    memory_free(comm->blocks);
    memory_free(comm->tallies);
    pthread_mutex_destroy(&comm->lock);
    memory_free(comm);
}

static Status join_allocate(int rank, int size, const CommOptions *options, Comm **out) {
    Status status = STATUS_OK;
    Comm *comm = NULL;
    TRY(memory_calloc(1, sizeof *comm, &comm));
    pthread_mutex_init(&comm->lock, NULL);
    size_t n = (size_t)size;
    TRY_GOTO(memory_calloc(n, sizeof *comm->places, &comm->places));
    TRY_GOTO(memory_calloc(n, sizeof *comm->rank_of_seat, &comm->rank_of_seat));
    TRY_GOTO(memory_calloc(n, sizeof *comm->shares, &comm->shares));
    TRY_GOTO(memory_calloc(n, sizeof *comm->others, &comm->others));
    TRY_GOTO(memory_calloc(n, sizeof *comm->seen_ranks, &comm->seen_ranks));
    TRY_GOTO(memory_calloc(n, COMM_HEADER_BYTES, &comm->blocks));
    comm->rank = rank;
    comm->size = size;
    for (int other = 0, count = 0; other < size; other++) {
        comm->places[other].seat = -1;
        if (other != rank) comm->others[count++] = other;
    }
    comm->owner_pid = (int)getpid();
    comm->timeout_s = options->timeout_s > 0 ? options->timeout_s : COMM_DEFAULT_TIMEOUT_S;
    comm->stall_ns = clock_duration_ns(options->stall_s > 0 ? options->stall_s : DEFAULT_STALL_S);
    comm->hooks = options->hooks;
    *out = comm;
    comm = NULL;
done:
    comm_join_free(comm);
    return status;
}

/* Numbers nodes and local ranks from a key per rank that is equal on ranks of one node. */
static void number_nodes(Comm *comm, const uint64_t *keys) {
    comm->nodes = 0;
    for (int rank = 0; rank < comm->size; rank++) {
        CommPlace *place = &comm->places[rank];
        place->node = -1;
        for (int before = 0; before < rank; before++) {
            if (keys[before] != keys[rank]) continue;
            place->node = comm->places[before].node;
            place->local_rank++;
        }
        if (place->node < 0) place->node = comm->nodes++;
    }
    comm->node = comm->places[comm->rank].node;
}

/* The last steps, once places and segment exist: frees the slots, chooses how long to spin, starts the heartbeat. */
static Status activate(Comm *comm, int ranks_here) {
    for (int rank = 0; rank < comm->size; rank++) {
        int seat = comm->places[rank].seat;
        comm->shares[rank] = seat >= 0;
        if (seat >= 0) comm->rank_of_seat[seat] = rank;
    }
    for (int slot = comm->segment.slots - 1; slot >= 0; slot--) comm->free_slots[comm->free_count++] = slot;
    comm->spins = ranks_here <= sysconf(_SC_NPROCESSORS_ONLN) ? SPINS : SPINS_CROWDED;
    return comm_watch_add(comm);
}

/* ---- over an existing segment ---- */

static Status wait_for_seats(Comm *comm) {
    TRY(comm_begin(comm, "attach", 0));
    Status status = STATUS_OK;
    for (int seat = 0; seat < comm->size && status == STATUS_OK;) {
        if (atomic_load(&comm_segment_seat(&comm->segment, seat)->state) != SEAT_EMPTY) {
            seat++;
            continue;
        }
        comm_wait_want(comm, seat, NET_BOARD);
        status = comm_wait(comm);
    }
    return comm_end(comm, status);
}

Status comm_join_segment(CommSegment *segment, int rank, int size, const CommOptions *options, Comm **out) {
    Status status = STATUS_OK;
    Comm *comm = NULL;
    uint64_t *keys = NULL;
    bool registered = false;
    int nodes = options->nodes > 0 ? options->nodes : 1;
    if (nodes > size) FAIL(STATUS_ARGUMENT, "nodes=%d, but there are only %d ranks", nodes, size);
    TRY_GOTO(join_allocate(rank, size, options, &comm));
    TRY_GOTO(memory_calloc((size_t)size, sizeof *keys, &keys));
    for (int other = 0; other < size; other++) {
        keys[other] = (uint64_t)other * (uint64_t)nodes / (uint64_t)size;
        comm->places[other].seat = comm->places[other].world_rank = other;
    }
    number_nodes(comm, keys);
    comm->segment = *segment;
    TRY_GOTO(activate(comm, size));
    registered = true;
    TRY_GOTO(wait_for_seats(comm));
    *out = comm;
    comm = NULL;
done:
    if (registered && comm != NULL) comm_watch_remove(comm);
    memory_free(keys);
    comm_join_free(comm);
    return status;
}

Status comm_join_disconnected(CommSegment *segment, int rank, int size, const int *node_of, const CommOptions *options,
                              Comm **out) {
    Status status = STATUS_OK;
    Comm *comm = NULL;
    uint64_t *keys = NULL;
    TRY_GOTO(join_allocate(rank, size, options, &comm));
    TRY_GOTO(memory_calloc((size_t)size, sizeof *keys, &keys));
    for (int other = 0; other < size; other++) {
        keys[other] = (uint64_t)node_of[other];
        comm->places[other].world_rank = other;
    }
    number_nodes(comm, keys);
    comm->places[rank].seat = 0;
    comm->disconnected = true;
    comm->segment = *segment;
    TRY_GOTO(activate(comm, 1));
    *out = comm;
    comm = NULL;
done:
    memory_free(keys);
    comm_join_free(comm);
    return status;
}

/* ---- by gathering ---- */

static Status join_gather(const Join *join, const void *mine, size_t bytes, void *all) {
    return join->bootstrap->gather(join->bootstrap->context, mine, bytes, all);
}

static const JoinInfo *info_of(const Join *join, int rank) { return &join->infos[join->members[rank]]; }

static const JoinInfo *my_info(const Join *join) { return &join->infos[join->bootstrap->rank]; }

/* Who joins, ordered by (key, rank among the gathering ranks). */
static void choose_members(Join *join) {
    const JoinInfo *mine = my_info(join);
    join->size = 0;
    for (int other = 0; other < join->bootstrap->size; other++) {
        if (join->infos[other].color != mine->color) continue;
        int at = join->size++;
        for (; at > 0 && info_of(join, at - 1)->key > join->infos[other].key; at--) {
            join->members[at] = join->members[at - 1];
        }
        join->members[at] = other;
    }
    for (int rank = 0; rank < join->size; rank++) {
        if (join->members[rank] == join->bootstrap->rank) join->rank = rank;
    }
}

static Status gather_infos(Join *join) {
    const Bootstrap *n = join->bootstrap;
    JoinInfo mine = {.version = JOIN_VERSION,
                     .host = n->host,
                     .machine = n->machine,
                     .slot_bytes = n->options.slot_bytes > 0 ? n->options.slot_bytes : COMM_DEFAULT_SLOT_BYTES,
                     .topology = n->topology,
                     .color = n->color,
                     .key = n->key,
                     .world_rank = n->world_rank,
                     .nodes = n->options.nodes,
                     .next_id = atomic_load(&next_id)};
    TRY(join_gather(join, &mine, sizeof mine, join->infos));
    for (int rank = 0; rank < n->size; rank++) {
        const JoinInfo *info = &join->infos[rank];
        if (info->next_id > join->id) join->id = info->next_id;
        if (info->version != mine.version) {
            return error_at_rank(
                error_fail(STATUS_TRANSPORT, "rank %d runs a different version of cgxffcv from rank %d", rank, n->rank),
                rank);
        }
        if (info->nodes != mine.nodes || info->slot_bytes != mine.slot_bytes) {
            return error_at_rank(
                error_fail(STATUS_TRANSPORT,
                           "rank %d asks for nodes=%d, slot_bytes=%llu, but rank %d for nodes=%d, slot_bytes=%llu "
                           "(arguments or CGXFFCV_COMM_NODES): they must be the same on all ranks",
                           rank, info->nodes, (unsigned long long)info->slot_bytes, n->rank, mine.nodes,
                           (unsigned long long)mine.slot_bytes),
                rank);
        }
    }
    atomic_store(&next_id, join->id + 1);
    return STATUS_OK;
}

/* Fills the tables of the new communicator from the gathered infos; counts the seats in this rank's segment. */
static Status fill_places(Join *join, int *seats) {
    Status status = STATUS_OK;
    uint64_t *keys = NULL;
    const JoinInfo *mine = my_info(join);
    TRY_GOTO(join_allocate(join->rank, join->size, &join->bootstrap->options, &join->comm));
    TRY_GOTO(memory_calloc((size_t)join->size, sizeof *keys, &keys));
    *seats = 0;
    for (int rank = 0; rank < join->size; rank++) {
        const JoinInfo *info = info_of(join, rank);
        keys[rank] = info->topology >= 0 ? (uint64_t)info->topology : info->machine;
        join->comm->places[rank].seat = info->host == mine->host ? (*seats)++ : -1;
        join->comm->places[rank].world_rank = info->world_rank;
    }
    number_nodes(join->comm, keys);
    join->comm->host = mine->host;
    join->comm->id = join->id;
    join->comm->world_net = join->bootstrap->world_net;
done:
    memory_free(keys);
    return status;
}

/* The lowest new rank of this host makes the segment. */
static Status make_segment(Join *join, int seats) {
    if (join->comm->places[join->rank].seat != 0) return STATUS_OK;
    join->token = comm_segment_token(join->id);
    return comm_segment_new(seats, (size_t)my_info(join)->slot_bytes, join->token, &join->fd);
}

static Status open_segment(Join *join, int seats) {
    Comm *comm = join->comm;
    int seat = comm->places[join->rank].seat;
    if (seat == 0) return comm_segment_open(join->fd, seats, 0, join->token, &comm->segment);
    int maker = 0;
    while (comm->places[maker].seat != 0) maker++;
    const JoinOffer *offer = &join->offers[join->members[maker]];
    if (offer->fd < 0) FAIL(STATUS_TRANSPORT, "rank %d did not make a shared segment", maker);
    int fd = comm_segment_reach(offer->pid, offer->fd);
    if (fd < 0) {
        join->cut_off = true;
        FAIL_ERRNO("rank %d cannot open the shared memory of rank %d, /proc/%d/fd/%d (CGXFFCV_COMM_NODES=%d goes "
                   "through MPI instead)",
                   join->rank, maker, offer->pid, offer->fd, join->size);
    }
    Status status = comm_segment_open(fd, seats, seat, offer->token, &comm->segment);
    close(fd);
    return status;
}

static Status make_net(const Join *join) {
    Status status = STATUS_OK;
    int *world_ranks = NULL;
    bool remote = false;
    TRY_GOTO(memory_calloc((size_t)join->size, sizeof *world_ranks, &world_ranks));
    for (int rank = 0; rank < join->size; rank++) {
        world_ranks[rank] = info_of(join, rank)->world_rank;
        remote = remote || join->comm->places[rank].seat < 0;
    }
    if (remote) {
        TRY_GOTO(comm_net_create(join->bootstrap->world_net, join->id, join->rank, join->size, world_ranks,
                                 join->comm->segment.slot_bytes, &join->comm->net));
    }
done:
    memory_free(world_ranks);
    return status;
}

/* Everything that this rank does alone, between the gathers; `so_far` is the status up to here. */
static Status join_up(Join *join, Status so_far, int seats) {
    TRY(so_far);
    TRY(open_segment(join, seats));
    TRY(make_net(join));
    return activate(join->comm, join->bootstrap->options.nodes > 0 ? join->size : seats);
}

static Status check_outcomes(const Join *join) {
    for (int rank = 0; rank < join->size; rank++) {
        const JoinOutcome *outcome = &join->outcomes[join->members[rank]];
        if (outcome->code == STATUS_OK) continue;
        return error_at_rank(error_fail(STATUS_TRANSPORT, "rank %d could not join the new communicator: %.*s", rank,
                                        (int)sizeof outcome->message - 1, outcome->message),
                             rank);
    }
    return STATUS_OK;
}

static Status join_all(Join *join) {
    TRY(gather_infos(join));
    int seats = 0;
    bool joins = join->bootstrap->color >= 0;
    Status status = STATUS_OK;
    if (joins) {
        choose_members(join);
        status = fill_places(join, &seats);
        if (status == STATUS_OK) status = make_segment(join, seats);
    }
    ErrorRecord first = *error_record();
    JoinOffer offer = {.token = join->token, .pid = (int32_t)getpid(), .fd = join->fd};
    TRY(join_gather(join, &offer, sizeof offer, join->offers));
    if (status != STATUS_OK) error_adopt(&first);
    if (joins) status = join_up(join, status, seats);
    JoinOutcome outcome = {.code = (int32_t)status, .cut_off = join->cut_off};
    if (status != STATUS_OK) snprintf(outcome.message, sizeof outcome.message, "%.190s", error_record()->message);
    first = *error_record();
    TRY(join_gather(join, &outcome, sizeof outcome, join->outcomes));
    for (int rank = 0; rank < join->bootstrap->size; rank++) join->cut_off |= join->outcomes[rank].cut_off != 0;
    if (status != STATUS_OK) return error_adopt(&first);
    return joins ? check_outcomes(join) : STATUS_OK;
}

/* *cut_off, the same on all ranks: some ranks cannot share memory although they share a host. */
static Status join_once(const Bootstrap *bootstrap, Comm **out, bool *cut_off) {
    Status status = STATUS_OK;
    Join join = {.bootstrap = bootstrap, .fd = -1};
    size_t n = (size_t)bootstrap->size;
    TRY_GOTO(memory_calloc(n, sizeof *join.infos, &join.infos));
    TRY_GOTO(memory_calloc(n, sizeof *join.offers, &join.offers));
    TRY_GOTO(memory_calloc(n, sizeof *join.outcomes, &join.outcomes));
    TRY_GOTO(memory_calloc(n, sizeof *join.members, &join.members));
    TRY_GOTO(join_all(&join));
    *out = join.comm;
    join.comm = NULL;
done:
    *cut_off = join.cut_off;
    if (join.fd >= 0) close(join.fd);
    comm_destroy(join.comm);
    memory_free(join.infos);
    memory_free(join.offers);
    memory_free(join.outcomes);
    memory_free(join.members);
    return status;
}

/* Ranks of one host in separate containers or user namespaces cannot open each other's memory: then everyone goes
 * through MPI. */
Status comm_join_gathered(const Bootstrap *bootstrap, Comm **out) {
    bool cut_off = false;
    Status status = join_once(bootstrap, out, &cut_off);
    if (!cut_off || bootstrap->world_net == NULL) return status;
    comm_destroy(*out);
    *out = NULL;
    Bootstrap separate = *bootstrap;
    separate.host = hash_bytes(&bootstrap->world_rank, sizeof bootstrap->world_rank, bootstrap->host);
    return join_once(&separate, out, &cut_off);
}
