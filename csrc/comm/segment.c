/* The shared segment: its layout, creating, mapping and leaving it, doorbells on futexes, heartbeats. Knows seats, not
 * ranks, and nothing of operations or deadlines. */
#include "comm/segment.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/clock.h"

#define MAGIC 0x3167657378676363ULL /* "ccgxseg1" */
#define SLOTS_BUDGET_BYTES ((size_t)7 << 20)
#define SLOTS_MIN 4
#define SEATS_MAX 1024
#define PAGE_BYTES 4096

typedef struct SegmentHeader {
    uint64_t magic, token, slot_bytes, bytes;
    int32_t seats;
    _Alignas(64) _Atomic uint32_t abort_state;
    AbortRecord abort;
} SegmentHeader;

enum { ABORT_NONE = 0, ABORT_BEING_WRITTEN = 1, ABORT_SET = 2 };

static size_t stride_of(size_t slot_bytes) { return round_up(SEGMENT_FRAME_BYTES + slot_bytes, PAGE_BYTES); }

static int slots_of(size_t slot_bytes) {
    size_t fit = SLOTS_BUDGET_BYTES / stride_of(slot_bytes);
    return fit < SLOTS_MIN ? SLOTS_MIN : fit > SEGMENT_SLOTS_MAX ? SEGMENT_SLOTS_MAX : (int)fit;
}

typedef struct SegmentLayout {
    size_t seats, marks, queues, slots, end;
} SegmentLayout;

/* Where everything is: header, seats, marks, queues, slots. */
static SegmentLayout layout_of(int seats, size_t slot_bytes) {
    size_t n = (size_t)seats, slots = (size_t)slots_of(slot_bytes);
    SegmentLayout at = {.seats = round_up(sizeof(SegmentHeader), PAGE_BYTES)};
    at.marks = round_up(at.seats + n * sizeof(Seat), PAGE_BYTES);
    at.queues = round_up(at.marks + n * slots * sizeof(SlotMark), PAGE_BYTES);
    at.slots = round_up(at.queues + n * n * SEGMENT_LANES * sizeof(Queue), PAGE_BYTES);
    at.end = at.slots + n * slots * stride_of(slot_bytes);
    return at;
}

static bool shape_allowed(int seats, size_t slot_bytes) {
    return seats >= 1 && seats <= SEATS_MAX && slot_bytes >= 4096 && slot_bytes <= ((size_t)4 << 20) &&
           slot_bytes % 64 == 0;
}

size_t comm_segment_bytes(int seats, size_t slot_bytes) {
    if (!shape_allowed(seats, slot_bytes)) return 0;
    return layout_of(seats, slot_bytes).end;
}

void comm_segment_format(void *memory, int seats, size_t slot_bytes, uint64_t token) {
    SegmentHeader *header = memory;
    header->token = token;
    header->slot_bytes = slot_bytes;
    header->seats = seats;
    header->bytes = comm_segment_bytes(seats, slot_bytes);
    header->magic = MAGIC;
}

Status comm_segment_memfd(size_t bytes, int *fd) {
    Status status = STATUS_OK;
    int made = memfd_create("cgxffcv", MFD_CLOEXEC);
    if (made < 0) FAIL_ERRNO("memfd_create for shared memory between ranks");
    if (ftruncate(made, (off_t)bytes) != 0) FAIL_ERRNO_GOTO("shared memory of %zu bytes", bytes);
    *fd = made;
    made = -1;
done:
    if (made >= 0) close(made);
    return status;
}

int comm_segment_reach(int pid, int fd) {
    char path[64];
    int opened;
    snprintf(path, sizeof path, "/proc/%d/fd/%d", pid, fd);
    RETRY_EINTR(opened, open(path, O_RDWR | O_CLOEXEC));
    return opened;
}

uint64_t comm_segment_token(uint32_t salt) {
    uint64_t token = (uint64_t)clock_now_ns() * 0x9E3779B97F4A7C15ULL ^ ((uint64_t)getpid() << 32) ^ salt;
    return token == 0 ? 1 : token;
}

Status comm_segment_new(int seats, size_t slot_bytes, uint64_t token, int *fd) {
    Status status = STATUS_OK;
    int made = -1;
    size_t bytes = comm_segment_bytes(seats, slot_bytes);
    if (bytes == 0) {
        FAIL(STATUS_ARGUMENT,
             "a segment of %d ranks with slots of %zu bytes: at most %d ranks are possible, and a multiple of 64 "
             "bytes from 4096 to 4194304",
             seats, slot_bytes, SEATS_MAX);
    }
    TRY(comm_segment_memfd(bytes, &made));
    void *header = mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, made, 0);
    if (header == MAP_FAILED) FAIL_ERRNO_GOTO("mapping shared memory");
    comm_segment_format(header, seats, slot_bytes, token);
    munmap(header, PAGE_BYTES);
    *fd = made;
    made = -1;
done:
    if (made >= 0) close(made);
    return status;
}

static void wake_all(const CommSegment *s) {
    for (int seat = 0; seat < s->seats; seat++) comm_segment_wake(s, seat);
}

static Status take_seat(CommSegment *s, int seat) {
    Seat *mine = comm_segment_seat(s, seat);
    s->seat = seat;
    uint32_t empty = SEAT_EMPTY;
    int pid = (int)getpid();
    if (atomic_load(&mine->pid) != 0) FAIL(STATUS_ARGUMENT, "rank %d of this shared segment is already taken", seat);
    atomic_store(&mine->start_time, comm_segment_process_start(pid));
    atomic_store(&mine->heartbeat_ns, clock_now_ns());
    atomic_store(&mine->pid, pid);
    if (!atomic_compare_exchange_strong(&mine->state, &empty, SEAT_TAKEN)) {
        FAIL(STATUS_ARGUMENT, "rank %d of this shared segment is already taken", seat);
    }
    wake_all(s);
    return STATUS_OK;
}

Status comm_segment_open_memory(void *memory, size_t bytes, int seats, int seat, CommSegment *out) {
    const SegmentHeader *header = memory;
    if (bytes < sizeof *header || header->magic != MAGIC || header->bytes > bytes ||
        comm_segment_bytes(header->seats, header->slot_bytes) != header->bytes) {
        FAIL(STATUS_TRANSPORT,
             "the memory handed over is not a segment of this version of cgxffcv: all ranks must run the "
             "same build");
    }
    if (header->seats != seats) FAIL(STATUS_ARGUMENT, "the segment is for %d ranks, not %d", header->seats, seats);
    if (seat < 0 || seat >= seats) FAIL(STATUS_ARGUMENT, "rank %d is not in [0, %d)", seat, seats);
    SegmentLayout at = layout_of(seats, header->slot_bytes);
    unsigned char *base = memory;
    CommSegment s = {.base = base,
                     .bytes = at.end,
                     .seats = seats,
                     .slots = slots_of(header->slot_bytes),
                     .slot_bytes = header->slot_bytes,
                     .slot_stride = stride_of(header->slot_bytes),
                     .slots_offset = at.slots,
                     .seat_array = (Seat *)(base + at.seats),
                     .marks = (SlotMark *)(base + at.marks),
                     .queues = (Queue *)(base + at.queues)};
    TRY(take_seat(&s, seat));
    *out = s;
    return STATUS_OK;
}

Status comm_segment_open(int fd, int seats, int seat, uint64_t token, CommSegment *out) {
    Status status = STATUS_OK;
    struct stat about;
    void *memory = MAP_FAILED;
    if (fstat(fd, &about) != 0) FAIL_ERRNO("the descriptor of the shared segment (%d)", fd);
    size_t bytes = about.st_size < 0 ? 0 : (size_t)about.st_size;
    if (bytes < PAGE_BYTES) FAIL(STATUS_ARGUMENT, "descriptor %d is not a shared segment", fd);
    memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (memory == MAP_FAILED) FAIL_ERRNO("mapping %zu bytes of shared memory", bytes);
    if (token != 0 && ((SegmentHeader *)memory)->token != token) {
        FAIL_GOTO(STATUS_TRANSPORT, "descriptor %d is not the segment that this communicator made", fd);
    }
    TRY_GOTO(comm_segment_open_memory(memory, bytes, seats, seat, out));
    out->mapped = true;
    out->bytes = bytes;
    memory = MAP_FAILED;
done:
    if (memory != MAP_FAILED) munmap(memory, bytes);
    return status;
}

void comm_segment_close(CommSegment *s, bool keep_mapping) {
    if (s->base == NULL) return;
    if (atomic_load(&comm_segment_seat(s, s->seat)->pid) == (int)getpid()) {
        atomic_store(&comm_segment_seat(s, s->seat)->state, SEAT_LEFT);
        wake_all(s);
    }
    if (s->mapped && !keep_mapping) munmap(s->base, s->bytes);
    s->base = NULL;
}

static long futex(_Atomic uint32_t *word, int operation, uint32_t value, const struct timespec *timeout) {
    return syscall(SYS_futex, (void *)word, operation, value, timeout, NULL, 0);
}

void comm_segment_wake(const CommSegment *s, int seat) {
    Seat *to = comm_segment_seat(s, seat);
    atomic_fetch_add(&to->doorbell, 1);
    if (atomic_load(&to->sleeping) != 0) futex(&to->doorbell, FUTEX_WAKE, 1, NULL);
}

bool comm_segment_sleep(const CommSegment *s, uint32_t seen, int64_t ns) {
    Seat *mine = comm_segment_seat(s, s->seat);
    struct timespec limit = {.tv_sec = ns / CLOCK_NS_PER_SECOND, .tv_nsec = ns % CLOCK_NS_PER_SECOND};
    /* Sequentially consistent, like the wake: either the waker sees the flag or this sees the new number. */
    atomic_store(&mine->sleeping, 1);
    long result = 0;
    if (atomic_load(&mine->doorbell) == seen) result = futex(&mine->doorbell, FUTEX_WAIT, seen, &limit);
    bool interrupted = result == -1 && errno == EINTR;
    atomic_store(&mine->sleeping, 0);
    return !interrupted;
}

void comm_segment_heartbeat(const CommSegment *s) {
    atomic_store_explicit(&comm_segment_seat(s, s->seat)->heartbeat_ns, clock_now_ns(), memory_order_relaxed);
}

bool comm_segment_abort(const CommSegment *s, const AbortRecord *record) {
    SegmentHeader *header = (SegmentHeader *)s->base;
    uint32_t none = ABORT_NONE;
    if (!atomic_compare_exchange_strong(&header->abort_state, &none, ABORT_BEING_WRITTEN)) return false;
    header->abort = *record;
    header->abort.operation[sizeof record->operation - 1] = '\0';
    header->abort.message[sizeof record->message - 1] = '\0';
    atomic_store(&header->abort_state, ABORT_SET);
    wake_all(s);
    return true;
}

const AbortRecord *comm_segment_aborted(const CommSegment *s) {
    SegmentHeader *header = (SegmentHeader *)s->base;
    uint32_t state = atomic_load_explicit(&header->abort_state, memory_order_acquire);
    return state == ABORT_SET ? &header->abort : NULL;
}

uint64_t comm_segment_process_start(int pid) {
    char name[64], text[1024];
    snprintf(name, sizeof name, "/proc/%d/stat", pid);
    FILE *file = fopen(name, "re");
    if (file == NULL) return errno == ENOENT || errno == ESRCH ? 0 : COMM_SEGMENT_START_UNKNOWN;
    size_t got = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    text[got] = '\0';
    /* After the name in parentheses: state is field 3, the start time field 22. */
    char *at = strrchr(text, ')');
    if (at == NULL || at[1] == '\0' || at[2] == 'Z' || at[2] == 'X') return 0;
    for (int field = 2; field < 22 && at != NULL; field++) at = strchr(at + 1, ' ');
    return at == NULL ? 0 : strtoull(at + 1, NULL, 10);
}

/* False if /proc cannot be read: this process may have no descriptors left. */
static bool process_is_gone(int pid, uint64_t start_time) {
    uint64_t found = comm_segment_process_start(pid);
    bool known = found != COMM_SEGMENT_START_UNKNOWN && start_time != COMM_SEGMENT_START_UNKNOWN;
    return known && found != start_time;
}

SeatHealth comm_segment_health(const CommSegment *s, int seat, int64_t stall_ns) {
    Seat *other = comm_segment_seat(s, seat);
    if (atomic_load(&other->state) != SEAT_TAKEN) return SEAT_HEALTHY;
    if (clock_now_ns() - atomic_load(&other->heartbeat_ns) < CLOCK_NS_PER_SECOND / 2) return SEAT_HEALTHY;
    if (process_is_gone(atomic_load(&other->pid), atomic_load(&other->start_time))) {
        /* It may have left between the two checks. */
        return atomic_load(&other->state) == SEAT_TAKEN ? SEAT_DEAD : SEAT_HEALTHY;
    }
    return clock_now_ns() - atomic_load(&other->heartbeat_ns) >= stall_ns ? SEAT_STALLED : SEAT_HEALTHY;
}
