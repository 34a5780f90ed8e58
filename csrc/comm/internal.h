/* The communicator itself, and what the files of this folder share. */
#ifndef CGXFFCV_COMM_INTERNAL_H
#define CGXFFCV_COMM_INTERNAL_H

#include <pthread.h>
#include <sys/types.h>

#include "comm/comm.h"
#include "comm/net.h"
#include "comm/segment.h"

#define COMM_INTERNAL_LANE COMM_LANES

typedef enum SlotState { SLOT_FREE, SLOT_ACQUIRED, SLOT_IN_FLIGHT } SlotState;

/* Where a rank is. */
typedef struct CommPlace {
    int node, local_rank;
    int seat;       /* in this rank's segment, or -1 */
    int world_rank; /* in the MPI job, or the rank itself without MPI */
    uint8_t wanted; /* a bit per lane, and NET_BOARD: asked for without success since the last wait */
    bool warned;
} CommPlace;

/* How many times comm_number was asked for a key. */
typedef struct Tally {
    uint64_t key;
    uint32_t count;
} Tally;

struct Comm {
    int rank, size, node, nodes;
    CommPlace *places;       /* owned, [size] */
    int *rank_of_seat;       /* owned, [segment.seats] */
    int *others;             /* owned, [size - 1]: all ranks but this one */
    bool *shares;            /* owned, [size]: reached through the segment */
    CommSegment segment;     /* its mapping is owned */
    CommNet *net;            /* owned; NULL where the segment reaches everyone */
    CommNetWorld *world_net; /* borrowed from the process */
    bool disconnected;       /* nobody can be reached */
    uint64_t host;           /* equal on ranks that may share a segment */
    uint32_t id;
    int owner_pid;
    double timeout_s;
    int64_t stall_ns;
    CommHooks hooks;
    int spins;

    /* The open operation. */
    _Atomic uintptr_t user; /* the thread inside begin/end, 0 for none */
    int depth;
    bool failure_reported; /* an operation of this rank has failed */
    bool in_hook; /* a hook (a signal handler) is running: it must not begin another operation inside this one */
    char operation[STATUS_NAME_BYTES];
    double operation_timeout_s;
    int64_t deadline_ns;
    int64_t next_check_ns;
    int64_t left_since_ns;      /* when a rank of another host was first found to have left while waited for, or 0 */
    uint32_t seen, seen_events; /* the doorbell and the count of the net's transfers at the last wait */
    bool wants_slot;
    uint64_t round;        /* of the board */
    bool *seen_ranks;      /* owned, [size]: scratch of a round */
    unsigned char *blocks; /* owned, [size * COMM_HEADER_BYTES]: scratch of agreement and broadcast */

    /* This rank's slots. */
    SlotState slot_state[SEGMENT_SLOTS_MAX];
    int free_slots[SEGMENT_SLOTS_MAX], free_count;           /* a stack: the warmest on top */
    int in_flight_slots[SEGMENT_SLOTS_MAX], in_flight_count; /* in the order of publication */

    _Atomic bool abort_sent; /* the ranks of other hosts have been notified that it is broken */
    pthread_mutex_t lock;
    ErrorRecord cause; /* filled under `lock` from the abort record */
    bool cause_known;
    Tally *tallies; /* owned, [tallies_count]: of comm_number, under `lock` */
    size_t tallies_count;
    Comm *next; /* in the registry of live communicators */
};

/* Where a new communicator comes from: how its future ranks exchange blocks before it exists. */
typedef struct Bootstrap {
    Status (*gather)(void *context, const void *mine, size_t bytes, void *all);
    void *context;
    int rank, size; /* among the gathering ranks */
    int color, key;
    int world_rank, topology;
    uint64_t host, machine;  /* equal on ranks that may share a segment; that count as one node without a topology */
    CommNetWorld *world_net; /* NULL without MPI */
    CommOptions options;
} Bootstrap;

/* join.c: called by every gathering rank; *out is NULL for a negative color. */
Status comm_join_gathered(const Bootstrap *bootstrap, Comm **out);
/* A communicator whose segment reaches everyone; takes ownership of the segment on success. */
Status comm_join_segment(CommSegment *segment, int rank, int size, const CommOptions *options, Comm **out);
/* One whose segment has a single seat and reaches nobody else; takes ownership likewise. */
Status comm_join_disconnected(CommSegment *segment, int rank, int size, const int *node_of, const CommOptions *options,
                              Comm **out);
void comm_join_free(Comm *comm);

/* wait.c */
/* Records what an unsuccessful try asked for. */
static inline void comm_wait_want(Comm *comm, int from, int channel) {
    comm->places[from].wanted |= (uint8_t)(1u << channel);
}
/* Whether this process has aborted a communicator: then it does not wait for others to finalise MPI with it. */
extern _Atomic bool comm_aborted_here;

/* Breaks the communicator on all its ranks, unless it is broken already. */
void comm_wait_break(Comm *comm, const AbortRecord *record);
/* Whether it is broken, or a rank of this host has died, which breaks it. From any thread; queries no other host. */
bool comm_wait_lost(Comm *comm);

/* poll.c: waiting for a GPU, between begin and end. */
/* Pauses between two polls of a loop that began at `since_ns`. */
void comm_poll_pause(int64_t since_ns);
/* After a failure of a device or its library, waits briefly in case a lost rank caused it, which is then named. */
Status comm_poll_blame(Comm *comm, Status status);
/* Waits until the stream has finished everything, or what precedes the event (NULL: none). Every millisecond `check`
 * says whether something else has failed. */
Status comm_poll_device(Comm *comm, DeviceStream *stream, DeviceEvent *event, Status (*check)(void *context),
                        void *context);

/* watch.c: the registry of live communicators and the heartbeat thread. */
Status comm_watch_add(Comm *comm);
void comm_watch_remove(Comm *comm);
void comm_watch_each(void (*visit)(Comm *comm, void *context), void *context);

/* A GPU works for a communicator on its own, and this process may be waiting for it by means other than ours: on every
 * heartbeat that thread reports whether a rank has been lost. */
typedef struct CommGuard {
    Comm *comm; /* borrowed */
    void (*beat)(void *context, bool lost);
    void *context;
    struct CommGuard *next;
} CommGuard;
void comm_watch_guard(CommGuard *guard);
void comm_watch_unguard(CommGuard *guard); /* it is not called any more; does nothing if it was never added */

/* stream.c, with the private lane allowed */
Status comm_stream_publish(Comm *comm, const CommSlot *slot, size_t bytes, uint64_t tag, int lane, const int *ranks,
                           int count);
Status comm_stream_try_receive(Comm *comm, int from, int lane, CommSlice *slice, bool *got);
Status comm_stream_receive(Comm *comm, int from, int lane, CommSlice *slice);

/* board.c: one round of small blocks (<= COMM_HEADER_BYTES) among all ranks, between begin and end. Fails on every
 * rank if the keys differ. */
typedef enum BoardKind { BOARD_BARRIER = 1, BOARD_BROADCAST, BOARD_ALLGATHER, BOARD_AGREE } BoardKind;
Status comm_board_round(Comm *comm, BoardKind kind, int root, uint64_t total_bytes, const void *mine, size_t bytes,
                        void *all);

#endif
