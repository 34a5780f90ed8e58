/* What carries bytes between hosts: mpi.c, and mpi_none.c, the twin of a build without MPI.
 *
 * A Net belongs to one communicator and moves whole frames between its ranks on channels (one a lane, one for the
 * boards, one for control). Nothing here blocks: requests are started, and comm_net_progress completes them. Frames of
 * one (from, to, channel) arrive in order. A frame is a FrameHeader in SEGMENT_FRAME_BYTES bytes and its data. */
#ifndef CGXFFCV_COMM_NET_H
#define CGXFFCV_COMM_NET_H

#include "comm/segment.h"

#define NET_BOARD SEGMENT_LANES /* the channel of the small collectives */
#define NET_CHANNELS (SEGMENT_LANES + 1)

typedef struct CommNet CommNet;

typedef struct FrameHeader {
    uint64_t tag;
    uint32_t bytes; /* of data behind the header */
} FrameHeader;

typedef struct CommNetFrame {
    unsigned char *frame; /* NULL where nothing has come */
    size_t bytes;         /* with the header */
    int window;           /* private */
} CommNetFrame;

/* How many ranks MPI knows; 0 where it does not run in this process. */
int comm_net_running_size(void);

/* Starts MPI unless it runs already and duplicates its world: rank and size of the job. Polls the check hook until
 * `deadline_ns`; after that MPI may go on starting, and a later call waits for that. The net stays until the process
 * ends. */
Status comm_net_create_world(int64_t deadline_ns, const CommHooks *hooks, CommNet **out, int *rank, int *size);

/* Block r of `all` becomes rank r's `mine`, over all ranks of the job; only on the net of comm_net_create_world. */
Status comm_net_gather(CommNet *world, const void *mine, size_t bytes, void *all, int64_t deadline_ns,
                       const CommHooks *hooks);

/* The net of a communicator whose rank r is `world_rank_of[r]` in the job; `id` is the same on its ranks, and no other
 * net that shares two of its ranks has it. Frames hold at most `slot_bytes` of data. */
Status comm_net_create(CommNet *world, uint32_t id, int rank, int size, const int *world_rank_of, size_t slot_bytes,
                       CommNet **out);

/* Waits briefly for transfers under way, then, if nothing failed, tells the ranks not in `skip` that this one has left.
 * False if some transfers are left: then their memory must stay where it is. */
bool comm_net_destroy(CommNet *net, const bool *skip);

/* Sends the frame in place; *readers goes down by one when it may change again. */
Status comm_net_send(CommNet *net, int to, int channel, const void *frame, size_t bytes, _Atomic uint32_t *readers);

/* Sends a copy. */
Status comm_net_post(CommNet *net, int to, int channel, const void *frame, size_t bytes);

/* Completes what can be completed. Sees abort and departures of others. */
Status comm_net_progress(CommNet *net);
/* How many transfers have been completed since the start, by whichever call. */
uint32_t comm_net_events(const CommNet *net);

/* The next frame of (from, this rank, channel), if it is there; stays valid until comm_net_release. */
Status comm_net_take(CommNet *net, int from, int channel, CommNetFrame *out);
/* A failure shows in the next comm_net_progress. */
void comm_net_release(CommNet *net, int from, int channel, int window);
/* Frames taken and not released. */
int comm_net_held(const CommNet *net, int from, int channel);
/* Sends to that rank that are not complete. */
int comm_net_sending_to(const CommNet *net, int to);

/* Tells all ranks of the communicator that are not in `skip` (one flag a rank, NULL for none); from any thread. */
void comm_net_abort(CommNet *net, const AbortRecord *record, const bool *skip);
/* What another rank has told; NULL while nothing. */
const AbortRecord *comm_net_aborted(const CommNet *net);

/* Pushes out what is being sent, for at most so long. */
void comm_net_flush(CommNet *net, double seconds);

bool comm_net_has_left(const CommNet *net, int rank);

/* MPI_Allreduce itself: the sum of float32 over all ranks of the job, in place. Blocks without a deadline. */
Status comm_net_world_allreduce(CommNet *world, float *data, int64_t elems);

/* Ends MPI, if comm_net_create_world began it, together with all ranks; after a failure only if they come within half a
 * second. What is left of nets after that does nothing. */
void comm_net_finalize(bool after_failure);

#endif
