/* The memory that the ranks of one host share: heartbeats, doorbells, boards, queues of slices, and the slots.
 *
 * A segment has one seat per rank. It is a memfd, so it vanishes with its last user, however that process ends. All
 * access goes through atomics: counters only grow, nothing is ever reset, nobody holds a lock. */
#ifndef CGXFFCV_COMM_SEGMENT_H
#define CGXFFCV_COMM_SEGMENT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "comm/comm.h"

#define SEGMENT_LANES (COMM_LANES + 1) /* the last is for the collectives of this folder */
#define SEGMENT_SLOTS_MAX 32
#define SEGMENT_FRAME_BYTES 64 /* room before a slot's data for the transport between hosts */
#define SEGMENT_TEXT_BYTES 512

/* Why a communicator is broken; plain data, so that it can be sent. */
typedef struct AbortRecord {
    int32_t code; /* the Status of every call from now on */
    int32_t rank; /* the culprit, or -1 */
    char operation[STATUS_NAME_BYTES];
    char message[SEGMENT_TEXT_BYTES];
} AbortRecord;

typedef enum SeatState { SEAT_EMPTY = 0, SEAT_TAKEN = 1, SEAT_LEFT = 2 } SeatState;

/* Identifies a collective call; compared between ranks before its data is used. */
typedef struct BoardKey {
    uint32_t kind;
    int32_t root;
    uint64_t bytes;
    char operation[STATUS_NAME_BYTES];
} BoardKey;

typedef struct BoardPost {
    _Alignas(64) _Atomic uint64_t round; /* written last */
    BoardKey key;
    uint32_t data_bytes;
    _Alignas(64) unsigned char data[COMM_HEADER_BYTES];
} BoardPost;

typedef struct Seat {
    _Alignas(64) _Atomic uint32_t doorbell; /* rung by whoever changed something for this seat */
    _Atomic uint32_t sleeping;
    _Alignas(64) _Atomic uint32_t state;
    _Atomic int32_t pid;
    _Atomic uint64_t start_time; /* of the process, from /proc: detects a reused pid */
    _Atomic int64_t heartbeat_ns;
    BoardPost board[2]; /* rounds alternate: nobody is two rounds ahead of a reader */
} Seat;

typedef struct QueueEntry {
    uint32_t slot, bytes;
    uint64_t tag;
} QueueEntry;

/* The slices of one stream. It cannot overflow: a slot is in it at most once. */
typedef struct Queue {
    _Alignas(64) _Atomic uint32_t published; /* written by the producer */
    _Alignas(64) _Atomic uint32_t taken;     /* written by the reader, as is the next */
    _Atomic uint32_t released;
    _Alignas(64) QueueEntry entry[SEGMENT_SLOTS_MAX];
} Queue;

typedef struct SlotMark {
    _Alignas(64) _Atomic uint32_t readers; /* that have not released it yet */
} SlotMark;

typedef struct CommSegment {
    unsigned char *base; /* owned if `mapped`, else borrowed */
    size_t bytes;
    bool mapped;
    int seats, seat, slots;
    size_t slot_bytes, slot_stride, slots_offset;
    Seat *seat_array;
    SlotMark *marks;
    Queue *queues;
} CommSegment;

/* The size of a segment of that shape; 0 if the shape is not allowed. */
size_t comm_segment_bytes(int seats, size_t slot_bytes);

/* Writes the empty segment into zeroed memory. */
void comm_segment_format(void *memory, int seats, size_t slot_bytes, uint64_t token);

/* Zeroed anonymous memory that processes can share: a memfd, close-on-exec. */
Status comm_segment_memfd(size_t bytes, int *fd);

/* Opens a descriptor of another process of this user on this host; -1 and errno if that fails. */
int comm_segment_reach(int pid, int fd);

/* A practically unique number; never 0. */
uint64_t comm_segment_token(uint32_t salt);

/* A formatted segment in a new memfd, close-on-exec. */
Status comm_segment_new(int seats, size_t slot_bytes, uint64_t token, int *fd);

/* Maps the segment behind the descriptor (which stays the caller's) and takes the seat; `token` 0 takes any. */
Status comm_segment_open(int fd, int seats, int seat, uint64_t token, CommSegment *out);

/* The same over memory that several threads of one process share. */
Status comm_segment_open_memory(void *memory, size_t bytes, int seats, int seat, CommSegment *out);

/* Leaves the seat, wakes everyone. The memory stays mapped with `keep_mapping`, for transfers that still use it. */
void comm_segment_close(CommSegment *segment, bool keep_mapping);

static inline Seat *comm_segment_seat(const CommSegment *s, int seat) { return &s->seat_array[seat]; }

static inline SlotMark *comm_segment_mark(const CommSegment *s, int seat, int slot) {
    return &s->marks[(size_t)seat * (size_t)s->slots + (size_t)slot];
}

static inline Queue *comm_segment_queue(const CommSegment *s, int from, int to, int lane) {
    return &s->queues[((size_t)from * (size_t)s->seats + (size_t)to) * SEGMENT_LANES + (size_t)lane];
}

/* The frame of a slot; its data begins SEGMENT_FRAME_BYTES later. */
static inline unsigned char *comm_segment_frame(const CommSegment *s, int seat, int slot) {
    return s->base + s->slots_offset + ((size_t)seat * (size_t)s->slots + (size_t)slot) * s->slot_stride;
}

static inline unsigned char *comm_segment_data(const CommSegment *s, int seat, int slot) {
    return comm_segment_frame(s, seat, slot) + SEGMENT_FRAME_BYTES;
}

static inline uint32_t comm_segment_doorbell(const CommSegment *s) {
    return atomic_load_explicit(&s->seat_array[s->seat].doorbell, memory_order_acquire);
}

/* Rings that seat's doorbell: something has changed for it. */
void comm_segment_wake(const CommSegment *segment, int seat);

/* Sleeps until this seat's doorbell differs from `seen`, at most `ns`; false if a signal cut it short. */
bool comm_segment_sleep(const CommSegment *segment, uint32_t seen, int64_t ns);

void comm_segment_heartbeat(const CommSegment *segment);

/* Breaks the communicator on this host; false if it was broken already. */
bool comm_segment_abort(const CommSegment *segment, const AbortRecord *record);
/* The record, or NULL while there is none. */
const AbortRecord *comm_segment_aborted(const CommSegment *segment);

typedef enum SeatHealth { SEAT_HEALTHY, SEAT_STALLED, SEAT_DEAD } SeatHealth;

/* Looks up the process of a seat (a few microseconds); SEAT_STALLED after `stall_ns` without a heartbeat. */
SeatHealth comm_segment_health(const CommSegment *segment, int seat, int64_t stall_ns);

#define COMM_SEGMENT_START_UNKNOWN UINT64_MAX

/* When a process started, in the kernel's ticks; 0 if there is none (a zombie counts as none), UNKNOWN if /proc cannot
 * be read, for lack of descriptors say. */
uint64_t comm_segment_process_start(int pid);

#endif
