/* What carries bytes between hosts: mpi.c, and mpi_none.c, the twin of a build without MPI.
 *
 * A Net belongs to one communicator and moves whole frames between its ranks on channels (one a lane, one for the
 * boards, one for control). Nothing here blocks: requests are started, and net_progress completes them. Frames of one
 * (from, to, channel) arrive in order. A frame is a FrameHeader in SEGMENT_FRAME_BYTES bytes and its data. */
#ifndef CGXFFCV_COMM_NET_H
#define CGXFFCV_COMM_NET_H

#include "comm/segment.h"

#define NET_BOARD SEGMENT_LANES /* the channel of the small collectives */
#define NET_CHANNELS (SEGMENT_LANES + 1)

typedef struct Net Net;

typedef struct FrameHeader {
    uint64_t tag;
    uint32_t bytes; /* of data behind the header */
} FrameHeader;

typedef struct NetFrame {
    unsigned char *frame; /* NULL where nothing has come */
    size_t bytes;         /* with the header */
    int window;           /* private */
} NetFrame;

/* How many ranks MPI knows; 0 where it does not run in this process. */
int net_running_size(void);

/* Starts MPI unless it runs already and duplicates its world: rank and size of the job. Polls the check hook until
 * `deadline_ns`; after that MPI may go on starting, and a later call waits for that. The net stays until the process
 * ends. */
Status net_create_world(int64_t deadline_ns, const CommHooks *hooks, Net **out, int *rank, int *size);

/* Block r of `all` becomes rank r's `mine`, over all ranks of the job; only on the net of net_create_world. */
Status net_gather(Net *world, const void *mine, size_t bytes, void *all, int64_t deadline_ns, const CommHooks *hooks);

/* The net of a communicator whose rank r is `world_rank_of[r]` in the job; `id` is the same on its ranks, and no other
 * net that shares two of its ranks has it. Frames hold at most `slot_bytes` of data. */
Status net_create(Net *world, uint32_t id, int rank, int size, const int *world_rank_of, size_t slot_bytes, Net **out);

/* Waits briefly for transfers under way, then, if nothing failed, tells the ranks not in `skip` that this one has left.
 * False if some transfers are left: then their memory must stay where it is. */
bool net_destroy(Net *net, const bool *skip);

/* Sends the frame in place; *readers goes down by one when it may change again. */
Status net_send(Net *net, int to, int channel, const void *frame, size_t bytes, _Atomic uint32_t *readers);

/* Sends a copy. */
Status net_post(Net *net, int to, int channel, const void *frame, size_t bytes);

/* Completes what can be completed. Sees abort and departures of others. */
Status net_progress(Net *net);
/* How many transfers have been completed since the start, by whichever call. */
uint32_t net_events(const Net *net);

/* The next frame of (from, this rank, channel), if it is there; stays valid until net_release. */
Status net_take(Net *net, int from, int channel, NetFrame *out);
/* A failure shows in the next net_progress. */
void net_release(Net *net, int from, int channel, int window);
/* Frames taken and not released. */
int net_held(const Net *net, int from, int channel);
/* Sends to that rank that are not complete. */
int net_sending_to(const Net *net, int to);

/* Tells all ranks of the communicator that are not in `skip` (one flag a rank, NULL for none); from any thread. */
void net_abort(Net *net, const AbortRecord *record, const bool *skip);
/* What another rank has told; NULL while nothing. */
const AbortRecord *net_aborted(const Net *net);

/* Pushes out what is being sent, for at most so long. */
void net_flush(Net *net, double seconds);

bool net_has_left(const Net *net, int rank);

/* MPI_Allreduce itself: the sum of float32 over all ranks of the job, in place. Blocks without a deadline. */
Status net_world_allreduce(Net *world, float *data, int64_t elems);

/* Ends MPI, if net_create_world began it, together with all ranks; after a failure only if they come within half a
 * second. What is left of nets after that does nothing. */
void net_finalize(bool after_failure);

#endif
