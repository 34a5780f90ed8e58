/* Windows: memory of each rank of a host that the GPUs of all its ranks read and write in place, and the status words
 * of kernels that wait for other ranks.
 *
 * A kernel writes data into the window of another rank, issues a system-wide fence and then sets a flag there, for
 * which the other rank's kernel waits. While it waits it checks `abort` in its own rank's status words, and a deadline;
 * if it gives up, it leaves a report there, which comm_window_wait turns into a failure that names the rank.
 *
 * Between nodes it writes data and flag into a send buffer in its own host memory instead, and queues a send (a
 * descriptor); a thread forwards it into the other rank's receive buffer (see window_raise). */
#ifndef CGXFFCV_COMM_WINDOW_H
#define CGXFFCV_COMM_WINDOW_H

#include "comm/comm.h"

typedef struct CommWindow CommWindow;

typedef enum CommWindowKind {
    COMM_WINDOW_PEER,     /* in the memory of each rank's GPU, through CUDA IPC; CGXFFCV_P2P=0 switches it off */
    COMM_WINDOW_STAGED,   /* in page-locked host memory, which needs no peer access */
    COMM_WINDOW_MIXED,    /* for ranks on several nodes: one of the above within each node, buffers between nodes */
    COMM_WINDOW_FORWARDED /* buffers between all ranks, wherever they are */
} CommWindowKind;

/* The sizes of windows and buffers. */
typedef struct CommWindowSizes {
    size_t bytes; /* of a rank's window, at least COMM_WINDOW_MIN per rank that reaches it; the same within a node */
    size_t buffer_bytes; /* of a send buffer and of a receive buffer, at least COMM_WINDOW_MIN */
    uint32_t sends;      /* that a rank may have in flight */
} CommWindowSizes;
#define COMM_WINDOW_MIN ((size_t)64)

/* What a kernel was waiting for when it gave up. */
typedef enum CommWindowReport {
    COMM_WINDOW_TERMS = 1,   /* another rank's share of a sum */
    COMM_WINDOW_RESULTS = 2, /* a sum */
    COMM_WINDOW_PROBE = 3,
    COMM_WINDOW_SOUND = 4 /* an intact share: the one that arrived is damaged */
} CommWindowReport;

/* Status words in mapped host memory, one set per rank. Kernels that give up write the rest, then `reported`. */
typedef struct CommWindowStatus {
    volatile uint32_t abort; /* kernels end as soon as they see that it is not 0 */
    uint32_t reported;       /* 1: the rest is valid */
    uint32_t what;           /* CommWindowReport */
    uint32_t rank;           /* that was waited for */
    uint32_t tile, epoch;
} CommWindowStatus;

/* Describes what a kernel has written into a send buffer; offsets are from the start of the first send buffer. */
typedef struct CommWindowSend {
    uint32_t at, bytes;
    uint32_t flag_at; /* in the same send buffer */
    uint32_t value;   /* that the flag is to take */
    uint32_t number;  /* written last: how many have been handed over, this one included */
} CommWindowSend;

/* The queue into which kernels put sends; zeros if there are no buffers. At most mask + 1 may be in flight. */
typedef struct CommWindowSendQueue {
    CommWindowSend *sends; /* circular, in mapped host memory */
    uint32_t *next;        /* in device memory */
    uint32_t mask;
    unsigned char *send_buffers; /* one after the other, `bytes` in all */
    uint64_t bytes;
} CommWindowSendQueue;

/* Gives every rank zeroed windows and buffers of these sizes; `sizes` are the same on all ranks, except for `bytes`.
 * Collective; each rank's calling thread has selected its GPU. Ranks may share a GPU. If it is impossible, *out is NULL
 * on all ranks and `why` (at least COMM_WHY_BYTES) holds the reason, the same everywhere: a rank on another node or
 * without a GPU, no peer access, no memory, CGXFFCV_P2P=0, or a failed probe (every rank writes to and reads from every
 * other's window on its node). `comm` is borrowed until comm_window_destroy. */
Status comm_window_create(Comm *comm, CommWindowKind kind, const CommWindowSizes *sizes, CommWindow **out, char *why);

/* Call before comm_destroy, once nothing that accesses it is running; waits a moment for all ranks to get there.
 * Does nothing if NULL. */
void comm_window_destroy(CommWindow *window);

/* How the ranks of this node reach each other: PEER or STAGED; FORWARDED if they do not, or if there is only one. */
CommWindowKind comm_window_inside(const CommWindow *window);

/* A rank's window as this rank's GPU addresses it, at least 256-byte aligned; NULL for a rank reached through buffers:
 * the send buffer holds what goes to it, the receive buffer what comes from it. */
void *comm_window_base(const CommWindow *window, int rank);
void *comm_window_send_buffer(const CommWindow *window, int rank);
void *comm_window_receive_buffer(const CommWindow *window, int rank);

CommWindowSendQueue comm_window_send_queue(const CommWindow *window);

/* This rank's status words, at an address valid on both host and device. */
CommWindowStatus *comm_window_status_words(const CommWindow *window);

/* Waits until the stream has finished all work on it, or only what precedes the event (NULL: none); ends as every wait
 * does (deadline, abort, a lost rank, the check hook), and when a kernel has given up. After a failure all kernels that
 * check the status words end, and the communicator is broken. Not while the stream is capturing. */
Status comm_window_wait(CommWindow *window, DeviceStream *stream, DeviceEvent *event);

/* Ends this rank's waiting kernels, now and from now on; from any thread. */
void comm_window_abort(CommWindow *window);

#endif
