/* Windows: memory of every rank of a host that the GPUs of all of them read and write in place, and what kernels that
 * wait for other ranks go by.
 *
 * A kernel puts data into the window of another rank, fences for the system, and then writes a flag there; the other's
 * kernel waits for the flag. While it waits it looks at `abort` of its own rank's signs, and at a deadline; if it gives
 * up, it leaves a report there, which comm_window_wait turns into a failure that names the rank.
 *
 * Between nodes a rank's base is an outbox in this rank's host memory: a kernel writes there as if it were the window,
 * and hands over a parcel in place of the flag; a thread sends it on (window_post in window.cuh). */
#ifndef CGXFFCV_COMM_WINDOW_H
#define CGXFFCV_COMM_WINDOW_H

#include "comm/comm.h"

typedef struct CommWindow CommWindow;

typedef enum CommWindowKind {
    COMM_WINDOW_PEER,     /* each rank's in its GPU's memory, by CUDA IPC; CGXFFCV_P2P=0 switches it off */
    COMM_WINDOW_STAGED,   /* in page-locked host memory, which needs no peer access */
    COMM_WINDOW_FORWARDED /* in each rank's own host memory: the only one with ranks on several nodes */
} CommWindowKind;

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

/* What a kernel has written into an outbox. */
typedef struct CommWindowParcel {
    uint32_t to;        /* the rank */
    uint32_t at, bytes; /* where in its window, as in the outbox */
    uint32_t flag_at;   /* where the flag stands there, and */
    uint32_t value;     /* what it becomes */
    uint32_t number;    /* written last: how many have been handed over with it */
} CommWindowParcel;

/* Where kernels put parcels. No more than mask + 1 may be on their way. */
typedef struct CommWindowPost {
    CommWindowParcel *parcels; /* circular, in mapped host memory */
    uint32_t *next;            /* in device memory */
    uint32_t mask;
} CommWindowPost;

/* Gives every rank `bytes` bytes of zeros, at least COMM_WINDOW_MIN for each rank. Collective; each rank's calling
 * thread has selected its GPU. Ranks may share a GPU. Where it cannot be had *out is NULL on all ranks and `why` (at
 * least COMM_WHY_BYTES) holds the reason, the same everywhere: a rank on another node or without a GPU, no peer access,
 * no memory, CGXFFCV_P2P=0, or a probe, in which every rank writes into and reads from every other's, has failed.
 * `comm` is borrowed until comm_window_destroy. */
#define COMM_WINDOW_MIN ((size_t)64)
Status comm_window_create(Comm *comm, CommWindowKind kind, size_t bytes, CommWindow **out, char *why);

/* Before comm_destroy, when nothing that reaches into it runs any more; waits a moment until that is so on all ranks.
 * Does nothing if NULL. */
void comm_window_destroy(CommWindow *window);

/* A rank's memory as this rank's GPU addresses it, at least 256-byte aligned. */
void *comm_window_base(const CommWindow *window, int rank);

/* With FORWARDED; NULL where a flag is stored in place. */
const CommWindowPost *comm_window_post(const CommWindow *window);

/* This rank's, as host and device address them. */
CommWindowSigns *comm_window_signs(const CommWindow *window);

/* Waits until the stream has done everything that is on it, or what was on it when the event (NULL: none) was recorded;
 * ends as every wait does (deadline, abort, a lost rank, the check hook), and when a kernel has given up. Then all
 * kernels that look at the signs end, and the communicator is broken. Not while the stream records. */
Status comm_window_wait(CommWindow *window, DeviceStream *stream, DeviceEvent *event);

/* Ends this rank's waiting kernels, now and from now on; from any thread. */
void comm_window_abort(CommWindow *window);

#endif
