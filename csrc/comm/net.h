/* The transport between hosts: mpi.c and mpi_world.c, or mpi_none.c, the stub for a build without MPI.
 *
 * A world is all ranks of the job. A net belongs to one communicator in it and moves whole frames between its ranks on
 * channels (one per lane, one for the boards, one for control). Nothing here blocks: requests are started, and
 * comm_net_progress completes them. Frames of one (from, to, channel) arrive in order. A frame is a FrameHeader in
 * SEGMENT_FRAME_BYTES bytes, then its data. */
#ifndef CGXFFCV_COMM_NET_H
#define CGXFFCV_COMM_NET_H

#include "comm/segment.h"

#define NET_BOARD SEGMENT_LANES /* the channel of the small collectives */
#define NET_CHANNELS (SEGMENT_LANES + 1)

typedef struct CommNetWorld CommNetWorld;
typedef struct CommNet CommNet;

typedef struct FrameHeader {
    uint64_t tag;
    uint32_t bytes; /* of data after the header */
} FrameHeader;

typedef struct CommNetFrame {
    unsigned char *frame; /* NULL if nothing has arrived */
    size_t bytes;         /* including the header */
    int number;           /* private: for comm_net_release */
} CommNetFrame;

/* The number of ranks that MPI reports; 0 if it is not running in this process. */
int comm_net_running_size(void);

/* Initialises MPI unless it is running already, and duplicates its world; gives the rank and size in the job. Polls the
 * check hook until `deadline_ns`; after that MPI may go on initialising, and a later call waits for it. The world
 * lives until the process ends. */
Status comm_net_create_world(int64_t deadline_ns, const CommHooks *hooks, CommNetWorld **out, int *rank, int *size);

/* Block r of `all` becomes rank r's `mine`, over all ranks of the job. */
Status comm_net_gather(CommNetWorld *world, const void *mine, size_t bytes, void *all, int64_t deadline_ns,
                       const CommHooks *hooks);

/* The net of a communicator whose rank r is `world_rank_of[r]` in the job; `id` is the same on all its ranks and
 * differs from that of any net that shares two of them. Frames hold at most `slot_bytes` of data. */
Status comm_net_create(CommNetWorld *world, uint32_t id, int rank, int size, const int *world_rank_of,
                       size_t slot_bytes, CommNet **out);

/* Waits briefly for transfers under way, then, if nothing failed, notifies the ranks not in `skip` that this one has
 * left. False if some transfers are still under way: then their memory must stay where it is. */
bool comm_net_destroy(CommNet *net, const bool *skip);

/* Sends the frame in place; *readers is decremented when it may be modified again. */
Status comm_net_send(CommNet *net, int to, int channel, const void *frame, size_t bytes, _Atomic uint32_t *readers);

/* Sends a copy. */
Status comm_net_post(CommNet *net, int to, int channel, const void *frame, size_t bytes);

/* Completes what can be completed. Notices aborts and departures of other ranks. */
Status comm_net_progress(CommNet *net);
/* How many transfers have been completed since the start, by whichever call. */
uint32_t comm_net_events(const CommNet *net);

/* The next frame of (from, this rank, channel), if it is there; stays valid until comm_net_release. */
Status comm_net_take(CommNet *net, int from, int channel, CommNetFrame *out);
/* A failure is reported by the next comm_net_progress. */
void comm_net_release(CommNet *net, int from, int channel, int number);
/* Frames taken and not released. */
int comm_net_held(const CommNet *net, int from, int channel);
/* Sends to that rank that are not complete. */
int comm_net_sending_to(const CommNet *net, int to);

/* Sends it to all ranks of the communicator not in `skip` (one flag per rank, NULL for none); from any thread. */
void comm_net_abort(CommNet *net, const AbortRecord *record, const bool *skip);
/* The abort received from another rank; NULL if none. */
const AbortRecord *comm_net_aborted(const CommNet *net);

/* Pushes out pending sends, for at most this long. */
void comm_net_flush(CommNet *net, double seconds);

bool comm_net_has_left(const CommNet *net, int rank);

/* MPI_Allreduce itself: the sum of float32 over all ranks of the job, in place. Blocks without a deadline. */
Status comm_net_world_allreduce(CommNetWorld *world, float *data, int64_t elems);

/* Finalises MPI together with all ranks if comm_net_create_world initialised it; after a failure only if they arrive
 * within half a second. Nets that are left after that do nothing. */
void comm_net_finalize(bool after_failure);

#endif
