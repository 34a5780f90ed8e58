/* Communication between ranks: communicators, zero-copy streams of slices, small collectives, deadlines, abort.
 *
 * Within a host, ranks share one anonymous memory segment; between hosts (or simulated nodes) MPI carries the same
 * slices. The caller sees no difference except in speed.
 *
 * Calls. Every exchange happens between comm_begin and comm_end. The collectives below call both themselves, but may
 * also be used between the caller's own begin and end (then under its operation name and deadline). One thread at a
 * time per communicator: comm_begin refuses a second one. Only comm_abort may be called from any thread at any time.
 * All ranks make the same calls in the same order.
 *
 * Streams. Each rank owns a small pool of slots (comm_slots of comm_slot_bytes each). A producer acquires a slot, fills
 * it in place, and publishes it to one rank or to several (write once, read many); its readers get a pointer to the
 * same bytes, and the slot is free again when the last of them has released it. A stream is (from, to, lane): its
 * slices arrive whole and in the order of publication; streams are independent of each other. A rank may publish to
 * itself. Slots may stay in flight past comm_end and are reclaimed later.
 *
 * Progress. The try forms never block; comm_wait sleeps until something has changed. There is no deadlock, with one
 * slot or many, if the slices of an operation can be put into one order (for example by step, then by producer) such
 * that every rank publishes in that order, takes slices in that order, and releases each before it takes the next but
 * one. A rank that cannot get a slot must go on taking the slices that precede the one it wants to publish (loop over
 * the try forms, comm_wait when none of them did anything). The blocking forms wait only for what they were asked for,
 * and suit code in which that order is obvious.
 *
 * Failure. Every wait ends at the deadline of its operation, at abort, when a rank of the communicator on this host
 * dies (PEER_LOST within about 1 s, naming it), when a rank being waited for has left, or when the `check` hook says
 * so. After a failure inside begin/end the communicator is broken on all ranks: their current and later calls fail at
 * once with the first cause. A new one can be created. */
#ifndef CGXFFCV_COMM_COMM_H
#define CGXFFCV_COMM_COMM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "device/device.h"

#define COMM_LANES 3 /* independent streams for each ordered pair of ranks: 0, 1, 2 */
#define COMM_DEFAULT_TIMEOUT_S 300.0
#define COMM_HEADER_BYTES 512 /* the most that comm_agree compares, and that comm_allgather takes in one step */
#define COMM_DEFAULT_SLOT_BYTES ((size_t)256 << 10)
#define COMM_HELD_MAX 2 /* slices of one stream that a reader may hold unreleased */

typedef struct Comm Comm;

/* Callbacks on the waiting thread during a wait, with none of our locks held; NULL if not wanted. */
typedef struct CommHooks {
    Status (*check)(void *context); /* at least every 100 ms; a failure ends the wait with that status */
    Status (*warn)(void *context, int rank, const char *message); /* a rank is stopped; a failure ends the wait */
    void *context;                                                /* borrowed until comm_destroy */
} CommHooks;

/* Zeros give the defaults. All ranks pass the same `nodes` and `slot_bytes`. */
typedef struct CommOptions {
    double timeout_s;  /* of every operation that does not name its own; else CGXFFCV_COMM_TIMEOUT, else 300 */
    int nodes;         /* pretend that the ranks are on this many nodes; else CGXFFCV_COMM_NODES, else the real nodes */
    size_t slot_bytes; /* a multiple of 64 in 4 KiB .. 4 MiB; else 256 KiB */
    double stall_s;    /* a rank without a heartbeat for this long draws a warning; else 5 */
    int ranks;         /* for comm_create_world: how many the launcher started; 0: as many as MPI reports */
    CommHooks hooks;
} CommOptions;

/* Creates the communicator of all ranks of the job: through MPI (initialised here if nobody else has), or of one rank
 * if options->ranks is 1 and MPI is not running. Collective. NOT_BUILT if that needs MPI and this build has none;
 * TIMEOUT if not all ranks arrive. Destroy with comm_destroy. */
Status comm_create_world(const CommOptions *options, Comm **out);

/* Without MPI: creates the segment for `size` ranks on this host. The caller passes its descriptor to them and closes
 * it once each has called comm_attach. `slot_bytes` 0 gives the default. */
Status comm_segment_create(int size, size_t slot_bytes, int *fd);

/* Joins the segment as `rank` of `size`; waits for the others. The descriptor stays the caller's. With `nodes` the
 * topology is simulated, but all bytes still go through the segment. options->slot_bytes is ignored. */
Status comm_attach(int fd, int rank, int size, const CommOptions *options, Comm **out);

/* A communicator that only describes where the ranks are: rank r of `size` >= 2 is on node number `node_of[r]`, there
 * is no connection, and every operation fails. For callers that move the bytes themselves. Not collective. */
Status comm_create_disconnected(int rank, int size, const int *node_of, Comm **out);
bool comm_is_disconnected(const Comm *comm);

/* Splits: ranks of equal `color` form a new communicator, ordered by (key, old rank); a negative color joins none and
 * gets NULL. The options are the parent's. Collective over the parent. The child may outlive the parent. */
Status comm_split(Comm *comm, int color, int key, Comm **out);

/* Leaves and frees, if not NULL; not collective. Ranks that still wait for this one fail, saying that it left. */
void comm_destroy(Comm *comm);

int comm_rank(const Comm *comm);
int comm_size(const Comm *comm);
int comm_node(const Comm *comm);       /* index of this rank's node in [0, comm_nodes) */
int comm_nodes(const Comm *comm);      /* nodes, real or simulated */
int comm_local_rank(const Comm *comm); /* index among the ranks of this node, in rank order */
int comm_local_size(const Comm *comm);
int comm_node_of(const Comm *comm, int rank);
int comm_local_size_of(const Comm *comm, int node);
/* The rank that is number `local_rank` of `node`; -1 if there is none. */
int comm_rank_at(const Comm *comm, int node, int local_rank);
/* Whether slices to that rank go through shared memory (true for this rank itself). */
bool comm_shares_memory(const Comm *comm, int rank);

size_t comm_slot_bytes(const Comm *comm);
int comm_slots(const Comm *comm); /* slots that this rank owns, at least 4 */

double comm_timeout(const Comm *comm);

/* Opens an operation: its name appears in every failure (at most 31 bytes, borrowed until comm_end), its deadline is
 * `timeout_s` from now (<= 0: the communicator's). Fails at once if the communicator is broken, aborted, in use by
 * another thread, or another process's. Nested calls keep the outer name and deadline. */
Status comm_begin(Comm *comm, const char *operation, double timeout_s);

/* Closes it and returns `status`. If the operation failed, the communicator becomes broken and the other ranks fail at
 * once with the cause in the thread's error record. Use: return comm_end(comm, work(comm, ...)); */
Status comm_end(Comm *comm, Status status);

/* A slot to fill. */
typedef struct CommSlot {
    void *data;      /* 64-byte aligned, borrowed until published */
    size_t capacity; /* comm_slot_bytes */
    int index;       /* private */
} CommSlot;

/* A received slice. */
typedef struct CommSlice {
    const void *data; /* 64-byte aligned, borrowed until comm_release */
    size_t bytes;
    uint64_t tag; /* as published */
    int from, lane;
    uint32_t token; /* private */
} CommSlice;

/* Takes a free slot of this rank's pool. *got says whether there was one. */
Status comm_try_acquire(Comm *comm, CommSlot *slot, bool *got);
Status comm_acquire(Comm *comm, CommSlot *slot);

/* Hands the first `bytes` bytes (may be 0) of an acquired slot to the given ranks (each at most once; none: the slot is
 * free again), under a tag of the caller's choice. The producer may still read the bytes until its next acquire. Never
 * blocks. */
Status comm_publish(Comm *comm, const CommSlot *slot, size_t bytes, uint64_t tag, int lane, const int *ranks,
                    int count);
Status comm_publish_to(Comm *comm, const CommSlot *slot, size_t bytes, uint64_t tag, int lane, int rank);

/* The next slice of the stream (from, this rank, lane), if it has arrived. */
Status comm_try_receive(Comm *comm, int from, int lane, CommSlice *slice, bool *got);
Status comm_receive(Comm *comm, int from, int lane, CommSlice *slice);
/* After the last read of slice->data; slices may be released in any order. */
void comm_release(Comm *comm, const CommSlice *slice);

/* Sleeps until something has changed since the last comm_wait (a slice arrived, a slot became free; wakes spuriously,
 * too): for use after try calls that got nothing. A failure names what those calls asked for. */
Status comm_wait(Comm *comm);

/* Lets the transports make progress and checks for abort; call it every millisecond or so during long computation
 * inside an operation. */
Status comm_progress(Comm *comm);

/* Collectives; each begins and ends by itself and checks that all ranks are in the same call. */
Status comm_barrier(Comm *comm);
/* `data` goes from `root` to all; `bytes` is the same everywhere, any size. */
Status comm_broadcast(Comm *comm, int root, void *data, size_t bytes);
/* Block r of `all` (comm_size * bytes) becomes rank r's `mine`; `bytes` is the same everywhere, any size. */
Status comm_allgather(Comm *comm, const void *mine, size_t bytes, void *all);

/* Compares `bytes` (<= COMM_HEADER_BYTES) between all ranks; on a difference every rank fails with TRANSPORT, the
 * message naming a rank that differs, the hash of what this rank expected and of what it got. */
Status comm_agree(Comm *comm, const void *header, size_t bytes);

/* How many times this was called with that key before on this communicator, so that ranks that create the same things
 * in the same order give them the same numbers. From any thread. */
Status comm_number(Comm *comm, uint64_t key, uint32_t *number);

/* Breaks the communicator for all its ranks at once, without waiting for anything; from any thread. The others see
 * "rank R aborted: message". */
void comm_abort(Comm *comm, const char *message);

/* comm_abort on every live communicator of this process, for exception hooks; gives MPI up to 50 ms to pass it on. */
void comm_abort_all(const char *message);

/* Whether it is broken; then *cause (borrowed until comm_destroy, NULL allowed) is the first cause. */
bool comm_broken(Comm *comm, const ErrorRecord **cause);

/* MPI_Allreduce itself, for comparison: the sum of float32 over all ranks, in place, on a communicator of all ranks of
 * the job. Blocks without deadline or check. NOT_BUILT without MPI, ARGUMENT on another communicator. */
Status comm_mpi_allreduce(Comm *comm, float *data, int64_t elems);

/* Sums of device memory over the ranks, through NCCL. Each rank's calling thread has selected its GPU (device_select)
 * before comm_device_create and calls everything else with the same one selected. */
typedef struct CommDevice CommDevice;

/* Connects the GPUs of all ranks, or returns the existing connection: it is shared, and sums on different streams run
 * one after the other (captured sums run where their graph is launched). Collective. If NCCL cannot be used, *out is
 * NULL on all ranks and `why` (at least COMM_WHY_BYTES) holds the reason, the same everywhere: not in this build,
 * library not found, two ranks on one GPU (which NCCL refuses), CGXFFCV_COMM_NCCL=0. TRANSPORT if it should work but
 * does not. `comm` is borrowed until comm_device_destroy. */
#define COMM_WHY_BYTES 256
Status comm_device_create(Comm *comm, CommDevice **out, char *why);

/* Call before comm_destroy, and after destroying the graphs that hold its sums. The last user's call shuts NCCL down,
 * waiting a moment for the other ranks to get here, too. Does nothing if NULL. */
void comm_device_destroy(CommDevice *device);

/* A human-readable name of what carries the sums: "NCCL 2.28.9". */
const char *comm_device_name(const CommDevice *device);

typedef enum CommType { COMM_F32, COMM_F16, COMM_BF16 } CommType;

typedef struct CommPiece {
    void *data; /* device memory */
    int64_t elems;
} CommPiece;

/* Enqueues on the stream: each piece becomes its sum or mean over all ranks, in place, the same bytes everywhere. All
 * ranks make the same calls in the same order. May be captured in a graph. Does not wait for the sums. */
Status comm_device_allreduce(CommDevice *device, const CommPiece *pieces, int count, CommType type, bool average,
                             DeviceStream *stream);

/* Waits until the stream has finished all work on it, or only what precedes the event (NULL: none); ends as every wait
 * does (deadline, abort, a lost rank, the check hook), and when NCCL reports a failure. After a failure hanging sums
 * are ended, too, and the communicator is broken. Not while the stream is capturing.
 *
 * A stream that waits for a lost rank accepts only so many launches before the driver blocks the next one, without a
 * deadline. Callers that enqueue sums on a stream wait before there are many. */
Status comm_device_wait(CommDevice *device, DeviceStream *stream, DeviceEvent *event);

/* The version of the NCCL library found (22809 is 2.28.9); 0 if there is none, or if this build has no NCCL. */
int comm_nccl_version(void);

/* The MPI library that this process has opened. With `open`, opens one if there is none yet: the one through which
 * ranks started like this process would find each other. The strings stay valid until the process ends; `family` is
 * NULL if none is open. */
typedef struct CommMpiName {
    const char *family, *path, *version; /* "Open MPI", "/usr/lib/libmpi.so.40", "Open MPI v4.1.4" */
} CommMpiName;
Status comm_mpi_name(bool open, CommMpiName *out);

/* Finalises MPI if this library initialised it; at process exit, after the last comm_destroy. Waits for all ranks to
 * reach their end; after a failure only for half a second, then leaves MPI as it is, and mpirun ends the job. */
void comm_finalize(void);

#endif
