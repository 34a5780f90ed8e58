/* Rounds of small blocks: every rank posts one, and waits until it has everyone's. A post says which call it belongs
 * to, so that ranks in different calls notice it before any data is used. Barrier and agreement are one round each. */
#include "comm/internal.h"

#include <inttypes.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/hash.h"
#include "base/memory.h"

/* What travels between hosts: the frame header, then this, then the data. */
typedef struct RemotePost {
    uint64_t round;
    BoardKey key;
} RemotePost;

#define REMOTE_BYTES (SEGMENT_FRAME_BYTES + sizeof(RemotePost) + COMM_HEADER_BYTES)

#define OVERTAKEN_NS 50000000LL

typedef struct Round {
    Comm *comm;
    BoardKey key;
    size_t bytes;
    unsigned char *all; /* borrowed, or NULL */
    int differs;        /* the lowest rank with a different key, or -1 */
    BoardKey other;
    int missing;
} Round;

static const char *const kind_names[] = {[BOARD_BARRIER] = "barrier",
                                         [BOARD_BROADCAST] = "broadcast",
                                         [BOARD_ALLGATHER] = "allgather",
                                         [BOARD_AGREE] = "agreement"};

static void describe_key(const BoardKey *key, char *text, size_t size) {
    char operation[STATUS_NAME_BYTES];
    snprintf(operation, sizeof operation, "%.*s", (int)sizeof operation - 1, key->operation);
    const char *kind = key->kind >= BOARD_BARRIER && key->kind <= BOARD_AGREE ? kind_names[key->kind] : "unknown call";
    if (key->root >= 0) {
        snprintf(text, size, "'%s' (%s of %" PRIu64 " bytes from rank %d)", operation, kind, key->bytes, key->root);
    } else {
        snprintf(text, size, "'%s' (%s of %" PRIu64 " bytes)", operation, kind, key->bytes);
    }
}

static void accept(Round *round, int rank, const BoardKey *key, const void *data) {
    round->missing--;
    if (memcmp(key, &round->key, sizeof *key) == 0) {
        if (round->all != NULL) memcpy(round->all + (size_t)rank * round->bytes, data, round->bytes);
    } else if (round->differs < 0 || rank < round->differs) {
        round->differs = rank;
        round->other = *key;
    }
}

static Status post_remote(const Round *round, const void *mine) {
    Comm *comm = round->comm;
    _Alignas(8) unsigned char frame[REMOTE_BYTES] = {0};
    RemotePost post = {.round = comm->round, .key = round->key};
    FrameHeader header = {.bytes = (uint32_t)(sizeof post + round->bytes)};
    memcpy(frame, &header, sizeof header);
    memcpy(frame + SEGMENT_FRAME_BYTES, &post, sizeof post);
    if (round->bytes > 0) memcpy(frame + SEGMENT_FRAME_BYTES + sizeof post, mine, round->bytes);
    size_t size = SEGMENT_FRAME_BYTES + sizeof post + round->bytes;
    for (int rank = 0; rank < comm->size; rank++) {
        if (comm->places[rank].seat < 0) TRY(comm_net_post(comm->net, rank, NET_BOARD, frame, size));
    }
    return STATUS_OK;
}

static Status post(const Round *round, const void *mine) {
    Comm *comm = round->comm;
    BoardPost *board = &comm_segment_seat(&comm->segment, comm->segment.seat)->board[comm->round & 1];
    board->key = round->key;
    if (round->bytes > 0) memcpy(board->data, mine, round->bytes);
    atomic_store_explicit(&board->round, comm->round, memory_order_release);
    for (int seat = 0; seat < comm->segment.seats; seat++) {
        if (seat != comm->segment.seat) comm_segment_wake(&comm->segment, seat);
    }
    return comm->net == NULL ? STATUS_OK : post_remote(round, mine);
}

static bool poll_local(Round *round, int rank) {
    Comm *comm = round->comm;
    const BoardPost *board = &comm_segment_seat(&comm->segment, comm->places[rank].seat)->board[comm->round & 1];
    if (atomic_load_explicit(&board->round, memory_order_acquire) != comm->round) return false;
    accept(round, rank, &board->key, board->data);
    return true;
}

static Status poll_remote(Round *round, int rank, bool *got) {
    Comm *comm = round->comm;
    CommNetFrame frame;
    *got = false;
    TRY(comm_net_take(comm->net, rank, NET_BOARD, &frame));
    if (frame.frame == NULL) return STATUS_OK;
    RemotePost remote;
    size_t least = SEGMENT_FRAME_BYTES + sizeof remote;
    if (frame.bytes < least) FAIL(STATUS_TRANSPORT, "a post of %zu bytes from rank %d is too short", frame.bytes, rank);
    memcpy(&remote, frame.frame + SEGMENT_FRAME_BYTES, sizeof remote);
    bool same = memcmp(&remote.key, &round->key, sizeof remote.key) == 0;
    if (remote.round != comm->round || (same && frame.bytes - least != round->bytes)) {
        FAIL(STATUS_TRANSPORT, "rank %d is in round %" PRIu64 ", this one in %" PRIu64, rank, remote.round,
             comm->round);
    }
    accept(round, rank, &remote.key, frame.frame + least);
    *got = true;
    comm_net_release(comm->net, rank, NET_BOARD, frame.number);
    return STATUS_OK;
}

/* Polls the boards of the ranks that are still missing. */
static Status poll_missing(Round *round, bool *seen) {
    Comm *comm = round->comm;
    for (int rank = 0; rank < comm->size; rank++) {
        if (seen[rank]) continue;
        if (comm->places[rank].seat >= 0) {
            seen[rank] = poll_local(round, rank);
        } else {
            TRY(poll_remote(round, rank, &seen[rank]));
        }
        if (!seen[rank]) comm_wait_want(comm, rank, NET_BOARD);
    }
    return STATUS_OK;
}

/* A wait has failed. A rank that failed after posting has left its post, though between hosts the news of the failure
 * may have overtaken it: a complete round takes precedence over a failure that came after it. */
static Status poll_after_failure(Round *round, bool *seen) {
    ErrorRecord first = *error_record();
    int64_t until = clock_now_ns() + (round->comm->net == NULL ? 0 : OVERTAKEN_NS);
    Status status = STATUS_OK;
    do {
        if (round->comm->net != NULL) status = comm_net_progress(round->comm->net);
        if (status == STATUS_OK) status = poll_missing(round, seen);
        if (status == STATUS_OK && round->missing == 0) return STATUS_OK;
        sched_yield();
    } while (status == STATUS_OK && !clock_expired(until));
    return error_adopt(&first);
}

static Status collect(Round *round, bool *seen) {
    Comm *comm = round->comm;
    TRY(poll_missing(round, seen));
    while (round->missing > 0) {
        Status status = comm_wait(comm);
        if (status == STATUS_INTERRUPTED) return status;
        if (status != STATUS_OK) return poll_after_failure(round, seen);
        TRY(poll_missing(round, seen));
    }
    return STATUS_OK;
}

static Status fail_differs(const Round *round) {
    char expected[160], got[160];
    describe_key(&round->key, expected, sizeof expected);
    describe_key(&round->other, got, sizeof got);
    return error_at_rank(error_fail(STATUS_TRANSPORT,
                                    "the ranks are in different calls: rank %d expected %s, rank %d is in %s",
                                    round->comm->rank, expected, round->differs, got),
                         round->differs);
}

Status comm_board_round(Comm *comm, BoardKind kind, int root, uint64_t total_bytes, const void *mine, size_t bytes,
                        void *all) {
    if (all != NULL && bytes > 0) memcpy((unsigned char *)all + (size_t)comm->rank * bytes, mine, bytes);
    comm->round++;
    if (comm->size == 1) return STATUS_OK;
    Round round = {.comm = comm, .bytes = bytes, .all = all, .differs = -1, .missing = comm->size - 1};
    round.key = (BoardKey){.kind = kind, .root = root, .bytes = total_bytes};
    memcpy(round.key.operation, comm->operation, sizeof round.key.operation);
    bool *seen = comm->seen_ranks;
    memset(seen, 0, (size_t)comm->size * sizeof *seen);
    seen[comm->rank] = true;
    TRY(post(&round, mine));
    TRY(collect(&round, seen));
    return round.differs < 0 ? STATUS_OK : fail_differs(&round);
}

/* ---- the collectives of one round ---- */

Status comm_barrier(Comm *comm) {
    TRY(comm_begin(comm, "barrier", 0));
    return comm_end(comm, comm_board_round(comm, BOARD_BARRIER, -1, 0, NULL, 0, NULL));
}

static Status compare(const Comm *comm, const void *header, size_t bytes, const unsigned char *all) {
    for (int rank = 0; rank < comm->size; rank++) {
        const void *other = all + (size_t)rank * bytes;
        if (memcmp(header, other, bytes) == 0) continue;
        return error_at_rank(error_fail(STATUS_TRANSPORT,
                                        "the ranks disagree on %zu bytes: those of rank %d have the hash %016" PRIx64
                                        ", those of rank %d %016" PRIx64,
                                        bytes, comm->rank, hash_bytes(header, bytes, 0), rank,
                                        hash_bytes(other, bytes, 0)),
                             rank);
    }
    return STATUS_OK;
}

static Status agree(Comm *comm, const void *header, size_t bytes) {
    TRY(comm_board_round(comm, BOARD_AGREE, -1, bytes, header, bytes, comm->blocks));
    return compare(comm, header, bytes, comm->blocks);
}

Status comm_agree(Comm *comm, const void *header, size_t bytes) {
    if (bytes > COMM_HEADER_BYTES)
        FAIL(STATUS_ARGUMENT, "a header of %zu bytes, but at most %d are compared", bytes, COMM_HEADER_BYTES);
    TRY(comm_begin(comm, "agree", 0));
    return comm_end(comm, agree(comm, header, bytes));
}
