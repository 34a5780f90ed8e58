/* Windows: memory of every rank of a host that the GPUs of all of them read and write in place, and what kernels that
 * wait for other ranks go by.
 *
 * A kernel puts data into the window of another rank, fences for the system, and then writes a flag there; the other's
 * kernel waits for the flag. While it waits it looks at `abort` of its own rank's signs, and at a deadline; if it gives
 * up, it leaves a report there, which comm_window_wait turns into a failure that names the rank.
 *
 * Between nodes it writes data and flag into an outbox in its own host memory instead, and hands over a parcel; a
 * thread sends it on, into the inbox that the other rank has for it (window_raise in window.cuh). */
#ifndef CGXFFCV_COMM_WINDOW_H
#define CGXFFCV_COMM_WINDOW_H

#include "comm/comm.h"

typedef struct CommWindow CommWindow;

typedef enum CommWindowKind {
    COMM_WINDOW_PEER,     /* each rank's in its GPU's memory, by CUDA IPC; CGXFFCV_P2P=0 switches it off */
    COMM_WINDOW_STAGED,   /* in page-locked host memory, which needs no peer access */
    COMM_WINDOW_MIXED,    /* of ranks on several nodes: one of these two inside of each, boxes between them */
    COMM_WINDOW_FORWARDED /* boxes between all ranks, wherever they are */
} CommWindowKind;

/* How much there is. */
typedef struct CommWindowRoom {
    size_t bytes; /* of a rank's window, at least COMM_WINDOW_MIN for each rank that reaches it; alike inside a node */
    size_t box_bytes; /* of an outbox and of an inbox, at least COMM_WINDOW_MIN */
    uint32_t parcels; /* that a rank may have on their way */
} CommWindowRoom;
#define COMM_WINDOW_MIN ((size_t)64)

/* What a kernel was waiting for when it gave up. */
typedef enum CommWindowReport {
    COMM_WINDOW_TERMS = 1,   /* another rank's share of a sum */
    COMM_WINDOW_RESULTS = 2, /* a sum */
    COMM_WINDOW_PROBE = 3,
    COMM_WINDOW_SOUND = 4 /* a share that can be read: what has come is damaged */
} CommWindowReport;

/* In mapped host memory, each rank's own. Kernels that give up write the rest, then `reported`. */
typedef struct CommWindowSigns {
    volatile uint32_t abort; /* kernels end as soon as they see that it is not 0 */
    uint32_t reported;       /* 1: the rest is there */
    uint32_t what;           /* CommWindowReport */
    uint32_t rank;           /* that was waited for */
    uint32_t tile, epoch;
} CommWindowSigns;

/* What a kernel has written into an outbox; places are counted from the first outbox on. */
typedef struct CommWindowParcel {
    uint32_t at, bytes;
    uint32_t flag_at; /* in the same outbox, and */
    uint32_t value;   /* what the flag becomes */
    uint32_t number;  /* written last: how many have been handed over with it */
} CommWindowParcel;

/* Where kernels put parcels; zeros where there are no boxes. No more than mask + 1 may be on their way. */
typedef struct CommWindowPost {
    CommWindowParcel *parcels; /* circular, in mapped host memory */
    uint32_t *next;            /* in device memory */
    uint32_t mask;
    unsigned char *outboxes; /* one after the other, `bytes` in all */
    uint64_t bytes;
} CommWindowPost;

/* Gives every rank zeros, as much as the room says; the same room on all ranks, but for `bytes`. Collective; each
 * rank's calling thread has selected its GPU. Ranks may share a GPU. Where it cannot be had *out is NULL on all ranks
 * and `why` (at least COMM_WHY_BYTES) holds the reason, the same everywhere: a rank on another node or without a GPU,
 * no peer access, no memory, CGXFFCV_P2P=0, or a probe, in which every rank writes into and reads from every other's
 * window of its node, has failed. `comm` is borrowed until comm_window_destroy. */
Status comm_window_create(Comm *comm, CommWindowKind kind, const CommWindowRoom *room, CommWindow **out, char *why);

/* Before comm_destroy, when nothing that reaches into it runs any more; waits a moment until that is so on all ranks.
 * Does nothing if NULL. */
void comm_window_destroy(CommWindow *window);

/* How the ranks of this node reach each other: PEER or STAGED; FORWARDED where they do not, or where nobody else is. */
CommWindowKind comm_window_inside(const CommWindow *window);

/* A rank's window as this rank's GPU addresses it, at least 256-byte aligned; NULL of one that is reached through
 * boxes: what goes there, and what comes from there. */
void *comm_window_base(const CommWindow *window, int rank);
void *comm_window_outbox(const CommWindow *window, int rank);
void *comm_window_inbox(const CommWindow *window, int rank);

CommWindowPost comm_window_post(const CommWindow *window);

/* This rank's, as host and device address them. */
CommWindowSigns *comm_window_signs(const CommWindow *window);

/* Waits until the stream has done everything that is on it, or what was on it when the event (NULL: none) was recorded;
 * ends as every wait does (deadline, abort, a lost rank, the check hook), and when a kernel has given up. Then all
 * kernels that look at the signs end, and the communicator is broken. Not while the stream records. */
Status comm_window_wait(CommWindow *window, DeviceStream *stream, DeviceEvent *event);

/* Ends this rank's waiting kernels, now and from now on; from any thread. */
void comm_window_abort(CommWindow *window);

#endif
