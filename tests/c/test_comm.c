// rooms: base comm
/* The communicator with threads as ranks, over memory that they all share: runs under ASan, and under TSan. */
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/memory.h"
#include "check.h"
#include "comm/internal.h"
#include "comm_ranks.h"
#include "comm_stress.h"

static void run(int size, const CommOptions *options, Body body) { run_ranks(size, options, NULL, body); }

/* ---- streams ---- */

static void stress_body(Comm *comm) {
    RANK_CHECK_OK(comm_begin(comm, "stress", 0));
    RANK_CHECK_OK(comm_end(comm, stress(comm, 300, 7)));
    RANK_CHECK_OK(comm_barrier(comm));
}

static void ordered_body(Comm *comm) {
    RANK_CHECK_OK(comm_begin(comm, "ordered", 0));
    RANK_CHECK_OK(comm_end(comm, ordered(comm, 100)));
}

static void test_streams(void) {
    for (int size = 1; size <= 6; size += size < 3 ? 1 : 3) {
        run(size, &(CommOptions){.slot_bytes = 4096}, stress_body);
        run(size, &(CommOptions){.slot_bytes = (size_t)1 << 20}, ordered_body);
    }
    run(3, &(CommOptions){.slot_bytes = (size_t)4 << 20}, ordered_body);
    run(2, &(CommOptions){0}, stress_body);
}

/* ---- the rules of the contract ---- */

static Status hold(Comm *comm, Status *third) {
    CommSlice slices[3];
    bool got;
    for (int i = 0; i < 3; i++) {
        CommSlot slot;
        TRY(comm_acquire(comm, &slot));
        TRY(comm_publish_to(comm, &slot, 8, (uint64_t)i, 0, comm_rank(comm)));
    }
    TRY(comm_receive(comm, comm_rank(comm), 0, &slices[0]));
    TRY(comm_receive(comm, comm_rank(comm), 0, &slices[1]));
    *third = comm_try_receive(comm, comm_rank(comm), 0, &slices[2], &got);
    comm_release(comm, &slices[1]);
    comm_release(comm, &slices[0]);
    TRY(comm_receive(comm, comm_rank(comm), 0, &slices[2]));
    comm_release(comm, &slices[2]);
    return STATUS_OK;
}

static Status exhaust(Comm *comm, Status *one_more) {
    CommSlot slots[SEGMENT_SLOTS_MAX + 1];
    for (int i = 0; i < comm_slots(comm); i++) TRY(comm_acquire(comm, &slots[i]));
    *one_more = comm_acquire(comm, &slots[comm_slots(comm)]);
    for (int i = 0; i < comm_slots(comm); i++) TRY(comm_publish(comm, &slots[i], 0, 0, 0, NULL, 0));
    return STATUS_OK;
}

static void rules_body(Comm *comm) {
    Status third = STATUS_OK, one_more = STATUS_OK;
    RANK_CHECK_OK(comm_begin(comm, "rules", 0));
    RANK_CHECK_OK(hold(comm, &third));
    RANK_CHECK(third == STATUS_ARGUMENT);
    RANK_CHECK_OK(exhaust(comm, &one_more));
    RANK_CHECK(one_more == STATUS_ARGUMENT);
    CommSlot slot;
    RANK_CHECK_OK(comm_acquire(comm, &slot));
    CommSlot wrong = slot;
    wrong.index = (slot.index + 1) % comm_slots(comm);
    RANK_CHECK(comm_publish_to(comm, &wrong, 8, 0, 0, 0) == STATUS_ARGUMENT);
    RANK_CHECK(comm_publish_to(comm, &slot, slot.capacity + 1, 0, 0, 0) == STATUS_ARGUMENT);
    RANK_CHECK(comm_publish_to(comm, &slot, 8, 0, 0, comm_size(comm)) == STATUS_ARGUMENT);
    RANK_CHECK_OK(comm_publish(comm, &slot, 0, 0, 0, NULL, 0));
    RANK_CHECK_OK(comm_barrier(comm)); /* nested: under the outer name */
    RANK_CHECK_OK(comm_end(comm, STATUS_OK));
    RANK_CHECK(!comm_broken(comm, NULL));
    RANK_CHECK(comm_broadcast(comm, comm_size(comm), NULL, 0) == STATUS_ARGUMENT);
    RANK_CHECK(!comm_broken(comm, NULL));
}

/* ---- collectives ---- */

static void collectives_body(Comm *comm) {
    int size = comm_size(comm), rank = comm_rank(comm);
    static const size_t sizes[] = {0, 1, 8, COMM_HEADER_BYTES, COMM_HEADER_BYTES + 1, 4096, 4097, 300001};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        size_t bytes = sizes[i];
        unsigned char *mine = NULL, *all = NULL;
        RANK_CHECK_OK(memory_alloc(bytes + 1, 1, &mine));
        RANK_CHECK_OK(memory_calloc(bytes * (size_t)size + 1, 1, &all));
        for (size_t j = 0; j < bytes; j++) mine[j] = (unsigned char)(j * 13 + (size_t)rank);
        RANK_CHECK_OK(comm_allgather(comm, mine, bytes, all));
        int wrong = 0;
        for (int other = 0; other < size; other++) {
            for (size_t j = 0; j < bytes; j++) {
                wrong += all[(size_t)other * bytes + j] != (unsigned char)(j * 13 + (size_t)other);
            }
        }
        int root = (int)i % size;
        RANK_CHECK_OK(comm_broadcast(comm, root, mine, bytes));
        for (size_t j = 0; j < bytes; j++) wrong += mine[j] != (unsigned char)(j * 13 + (size_t)root);
        RANK_CHECK(wrong == 0);
        RANK_CHECK_OK(comm_agree(comm, all, bytes < COMM_HEADER_BYTES ? bytes : COMM_HEADER_BYTES));
        memory_free(mine);
        memory_free(all);
    }
    for (int i = 0; i < 200; i++) RANK_CHECK_OK(comm_barrier(comm));
}

static void test_collectives(void) {
    for (int size = 1; size <= 5; size += 2) run(size, &(CommOptions){.slot_bytes = 4096}, collectives_body);
    run(2, &(CommOptions){0}, rules_body);
}

/* ---- topology, split ---- */

static void topology_body(Comm *comm) {
    RANK_CHECK(comm_nodes(comm) == 2 && comm_size(comm) == 5);
    static const int node_of[] = {0, 0, 0, 1, 1}, local_of[] = {0, 1, 2, 0, 1};
    for (int rank = 0; rank < 5; rank++) {
        RANK_CHECK(comm_node_of(comm, rank) == node_of[rank]);
        RANK_CHECK(comm_rank_at(comm, node_of[rank], local_of[rank]) == rank && comm_shares_memory(comm, rank));
    }
    RANK_CHECK(comm_local_size(comm) == (comm_node(comm) == 0 ? 3 : 2) && comm_rank_at(comm, 1, 2) == -1);
    Comm *odd = NULL, *nobody = NULL, *again = NULL;
    int rank = comm_rank(comm);
    RANK_CHECK_OK(comm_split(comm, rank % 2, -rank, &odd));
    RANK_CHECK(comm_size(odd) == (rank % 2 ? 2 : 3) && comm_rank(odd) == (rank % 2 ? (3 - rank) / 2 : (4 - rank) / 2));
    int parents[3], me = rank;
    RANK_CHECK_OK(comm_allgather(odd, &me, sizeof me, parents));
    for (int i = 0; i < comm_size(odd); i++) RANK_CHECK(parents[i] == (rank % 2 ? 3 : 4) - 2 * i);
    RANK_CHECK(comm_nodes(odd) == 2);
    RANK_CHECK_OK(comm_split(comm, rank == 0 ? -1 : 3, 0, &nobody));
    RANK_CHECK((nobody == NULL) == (rank == 0));
    if (nobody != NULL) collectives_body(nobody);
    RANK_CHECK_OK(comm_split(odd, 0, 0, &again));
    comm_destroy(odd);
    stress_body(again);
    comm_destroy(again);
    comm_destroy(nobody);
}

/* ---- failures ---- */

static void mismatch_body(Comm *comm) {
    int count = comm_rank(comm) == 2 ? 6 : 5;
    const ErrorRecord *error = error_record(), *cause = NULL;
    RANK_CHECK(comm_agree(comm, &count, sizeof count) == STATUS_TRANSPORT);
    RANK_CHECK(strstr(error->message, "disagree on 4 bytes") != NULL);
    RANK_CHECK(error->rank == (comm_rank(comm) == 2 ? 0 : 2) && strcmp(error->operation, "agree") == 0);
    RANK_CHECK(comm_broken(comm, &cause) && strstr(cause->message, "disagree") != NULL);
    RANK_CHECK(comm_barrier(comm) == STATUS_TRANSPORT && strstr(error->message, "broken") != NULL);
    RANK_CHECK(strcmp(error->operation, "barrier") == 0);
}

static void different_calls_body(Comm *comm) {
    int value = 0;
    Status status = comm_rank(comm) == 1 ? comm_barrier(comm) : comm_broadcast(comm, 0, &value, sizeof value);
    RANK_CHECK(status == STATUS_TRANSPORT);
    const char *message = error_record()->message;
    RANK_CHECK(strstr(message, "'barrier'") != NULL && strstr(message, "'broadcast'") != NULL);
}

static void abort_body(Comm *comm) {
    if (comm_rank(comm) == 1) {
        usleep(20000);
        comm_abort(comm, "out of cheese");
    }
    RANK_CHECK(comm_barrier(comm) == STATUS_TRANSPORT || comm_rank(comm) == 1);
    RANK_CHECK(comm_barrier(comm) == STATUS_TRANSPORT);
    RANK_CHECK(strstr(error_record()->message, "rank 1 aborted: out of cheese") != NULL);
    RANK_CHECK(error_record()->rank == 1);
}

static void failure_body(Comm *comm) {
    RANK_CHECK_OK(comm_begin(comm, "job", 0));
    RANK_CHECK_OK(comm_barrier(comm));
    Status status = comm_rank(comm) == 0 ? error_fail(STATUS_MEMORY, "no memory for %d", 7) : comm_barrier(comm);
    status = comm_end(comm, status);
    RANK_CHECK(status == (comm_rank(comm) == 0 ? STATUS_MEMORY : STATUS_TRANSPORT));
    if (comm_rank(comm) != 0) RANK_CHECK(strcmp(error_record()->message, "rank 0 failed: no memory for 7") == 0);
}

static void timeout_body(Comm *comm) {
    RANK_CHECK_OK(comm_begin(comm, "job", 0.15));
    Status status = STATUS_OK;
    CommSlice slice;
    if (comm_rank(comm) == 0) status = comm_receive(comm, 1, 0, &slice);
    status = comm_end(comm, status);
    if (comm_rank(comm) == 0) {
        RANK_CHECK(status == STATUS_TIMEOUT && error_record()->rank == 1);
    } else {
        while (!comm_broken(comm, NULL)) usleep(1000);
        RANK_CHECK(comm_barrier(comm) == STATUS_TRANSPORT);
    }
}

static void slot_timeout_body(Comm *comm) {
    RANK_CHECK_OK(comm_begin(comm, "job", 0.15));
    Status status = STATUS_OK;
    for (int i = 0; comm_rank(comm) == 0 && i <= comm_slots(comm) && status == STATUS_OK; i++) {
        CommSlot slot;
        status = comm_acquire(comm, &slot);
        if (status == STATUS_OK) status = comm_publish_to(comm, &slot, 1, 0, 0, 1);
    }
    status = comm_end(comm, status);
    while (comm_rank(comm) != 0 && !comm_broken(comm, NULL)) usleep(1000);
    if (comm_rank(comm) == 0) RANK_CHECK(status == STATUS_TIMEOUT && error_record()->rank == 1);
}

static void left_body(Comm *comm) {
    if (comm_rank(comm) == 1) return;
    RANK_CHECK(comm_barrier(comm) == STATUS_TRANSPORT);
    RANK_CHECK(error_record()->rank == 1 && strstr(error_record()->message, "has left") != NULL);
}

/* Whoever has its data does not care that the sender has gone. */
static void left_after_body(Comm *comm) {
    char data[1000];
    memset(data, 'a' + comm_rank(comm), sizeof data);
    RANK_CHECK_OK(comm_broadcast(comm, 1, data, sizeof data));
    RANK_CHECK(data[999] == 'b');
}

static Status refuse(void *context) {
    (void)context;
    return error_fail(STATUS_INTERRUPTED, "interrupted");
}

static void interrupted_body(Comm *comm) {
    if (comm_rank(comm) == 0) {
        comm->hooks.check = refuse;
        RANK_CHECK(comm_barrier(comm) == STATUS_INTERRUPTED);
    } else {
        while (!comm_broken(comm, NULL)) usleep(1000);
        RANK_CHECK(comm_barrier(comm) == STATUS_TRANSPORT);
        RANK_CHECK(strstr(error_record()->message, "rank 0 was interrupted") != NULL);
    }
}

typedef struct Intruder {
    Comm *comm;
    Status status;
} Intruder;

static void *intrude(void *argument) {
    Intruder *intruder = argument;
    intruder->status = comm_barrier(intruder->comm);
    return NULL;
}

static void second_thread_body(Comm *comm) {
    RANK_CHECK_OK(comm_begin(comm, "job", 0));
    Intruder intruder = {.comm = comm};
    pthread_t thread;
    RANK_CHECK(pthread_create(&thread, NULL, intrude, &intruder) == 0);
    pthread_join(thread, NULL);
    RANK_CHECK(intruder.status == STATUS_TRANSPORT);
    RANK_CHECK_OK(comm_end(comm, comm_barrier(comm)));
    RANK_CHECK_OK(comm_barrier(comm));
}

static void abort_all_body(Comm *comm) {
    RANK_CHECK_OK(comm_barrier(comm));
    if (comm_rank(comm) == 0) comm_abort_all("the end");
    while (!comm_broken(comm, NULL)) usleep(1000);
    RANK_CHECK(comm_barrier(comm) == STATUS_TRANSPORT);
}

/* Whoever waited for a slot, got it, and now waits for a slice, names the rank that owes the slice. */
static void slot_then_slice_body(Comm *comm) {
    CommSlice slice;
    CommSlot slot;
    RANK_CHECK_OK(comm_begin(comm, "job", 1));
    Status status = STATUS_OK;
    if (comm_rank(comm) == 0) {
        for (int i = 0; i < comm_slots(comm) && status == STATUS_OK; i++) {
            status = comm_acquire(comm, &slot);
            if (status == STATUS_OK) status = comm_publish_to(comm, &slot, 1, 0, 0, 1);
        }
        if (status == STATUS_OK) status = comm_acquire(comm, &slot);
        if (status == STATUS_OK) status = comm_receive(comm, 2, 0, &slice);
        status = comm_end(comm, status);
        RANK_CHECK(status == STATUS_TIMEOUT && error_record()->rank == 2);
        RANK_CHECK(strstr(error_record()->message, "for rank 2 to answer") != NULL);
        return;
    }
    if (comm_rank(comm) == 1) {
        status = comm_receive(comm, 0, 0, &slice);
        usleep(200000); /* rank 0 waits by now */
        if (status == STATUS_OK) comm_release(comm, &slice);
    }
    RANK_CHECK_OK(comm_end(comm, status));
    while (!comm_broken(comm, NULL)) usleep(1000);
}

static _Atomic int asked_for, given;

static Status fail_once_all_have_posted(void *context) {
    (void)context;
    atomic_store(&asked_for, 1);
    while (atomic_load(&given) == 0) usleep(1000);
    return error_fail(STATUS_TRANSPORT, "too late to matter");
}

/* A round that is complete counts, whatever fails after it. */
static void failure_after_the_round_body(Comm *comm) {
    if (comm_rank(comm) == 0) {
        comm->hooks.check = fail_once_all_have_posted;
        RANK_CHECK_OK(comm_barrier(comm));
        comm->hooks.check = NULL;
    } else {
        while (atomic_load(&asked_for) == 0) usleep(1000);
        RANK_CHECK_OK(comm_barrier(comm));
        atomic_store(&given, 1);
    }
    RANK_CHECK_OK(comm_barrier(comm));
}

static void forge(Comm *comm, QueueEntry entry) {
    Queue *queue = comm_segment_queue(&comm->segment, comm->segment.seat, comm->places[0].seat, 0);
    uint32_t at = atomic_load(&queue->published);
    queue->entry[at % SEGMENT_SLOTS_MAX] = entry;
    atomic_store(&queue->published, at + 1);
    comm_segment_wake(&comm->segment, comm->places[0].seat);
}

/* What a peer's damaged memory says is not followed out of the slots. */
static void forged_body(Comm *comm) {
    QueueEntry entry = {.slot = (uint32_t)comm_slots(comm), .bytes = 8};
    if (comm_size(comm) == 3) entry = (QueueEntry){.slot = 0, .bytes = (uint32_t)comm_slot_bytes(comm) + 1};
    CommSlice slice;
    if (comm_rank(comm) == 1) forge(comm, entry);
    if (comm_rank(comm) == 0) {
        RANK_CHECK_OK(comm_begin(comm, "job", 0));
        RANK_CHECK(comm_end(comm, comm_receive(comm, 1, 0, &slice)) == STATUS_TRANSPORT);
        RANK_CHECK(error_record()->rank == 1 && strstr(error_record()->message, "corrupt") != NULL);
    }
    while (!comm_broken(comm, NULL)) usleep(1000);
}

static _Atomic int warnings;

static Status count_warning(void *context, int rank, const char *message) {
    (void)context, (void)message;
    atomic_fetch_add(&warnings, rank == 1 ? 1 : 1000);
    return STATUS_OK;
}

/* A rank that goes on showing no sign of life is warned about once. */
static void stalled_body(Comm *comm) {
    if (comm_rank(comm) == 0) {
        comm->hooks.warn = count_warning;
        comm->stall_ns = 6 * CLOCK_NS_PER_SECOND / 10;
        RANK_CHECK_OK(comm_begin(comm, "job", 2));
        RANK_CHECK(comm_end(comm, comm_barrier(comm)) == STATUS_TIMEOUT);
        RANK_CHECK(atomic_load(&warnings) == 1 && error_record()->rank == 1);
    } else {
        comm_watch_remove(comm);
        while (!comm_broken(comm, NULL)) usleep(1000);
    }
}

/* A forked child may not use its parent's communicator. */
static void test_parents_communicator(void) {
    Comm *comm = NULL;
    int status = 0;
    CHECK_OK(comm_create_world(&(CommOptions){.ranks = 1}, &comm));
    pid_t child = fork();
    if (child == 0) _exit(comm_begin(comm, "barrier", 0) == STATUS_TRANSPORT ? 0 : 1);
    CHECK(child > 0 && waitpid(child, &status, 0) == child && status == 0);
    CHECK_OK(comm_end(comm, comm_begin(comm, "barrier", 0)));
    comm_destroy(comm);
}

static bool beats(const Comm *comm, int rank) {
    const Seat *seat = comm_segment_seat(&comm->segment, rank);
    int64_t before = atomic_load(&seat->heartbeat_ns), until = clock_deadline_ns(20);
    while (atomic_load(&seat->heartbeat_ns) == before && !clock_expired(until)) usleep(10000);
    return atomic_load(&seat->heartbeat_ns) != before;
}

/* A forked child's own communicator has a heart of its own, although the parent's thread is not there. The fork waits
 * until the parent's beats steadily: ASan's locks, which a thread takes as it starts or ends, would stay locked. */
static void test_forked_heart(void) {
    Comm *parents = NULL, *comm = NULL;
    int fd = -1;
    CHECK_OK(comm_create_world(&(CommOptions){.ranks = 1}, &parents));
    CHECK_OK(comm_segment_create(2, 4096, &fd));
    CHECK(beats(parents, 0) && beats(parents, 0));
    pid_t child = fork();
    if (child == 0) {
        Comm *own = NULL;
        if (comm_attach(fd, 1, 2, NULL, &own) != STATUS_OK) _exit(1);
        for (;;) pause();
    }
    CHECK_OK(comm_attach(fd, 0, 2, NULL, &comm));
    CHECK(beats(comm, 1));
    CHECK(beats(comm, 1));
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    comm_destroy(comm);
    comm_destroy(parents);
    close(fd);
}

static void test_failures(void) {
    run(3, &(CommOptions){.slot_bytes = 4096}, slot_then_slice_body);
    run(2, &(CommOptions){0}, failure_after_the_round_body);
    run(2, &(CommOptions){0}, forged_body);
    run(3, &(CommOptions){0}, forged_body);
    run(2, &(CommOptions){0}, stalled_body);
    run(3, &(CommOptions){0}, mismatch_body);
    run(3, &(CommOptions){0}, different_calls_body);
    run(4, &(CommOptions){0}, abort_body);
    run(3, &(CommOptions){0}, failure_body);
    run(3, &(CommOptions){0}, timeout_body);
    run(2, &(CommOptions){0}, slot_timeout_body);
    run(3, &(CommOptions){0}, left_body);
    run(3, &(CommOptions){0}, left_after_body);
    run(2, &(CommOptions){0}, interrupted_body);
    run(2, &(CommOptions){0}, second_thread_body);
    run(2, &(CommOptions){0}, abort_all_body);
}

/* A zombie is a dead process; a live one that stops beating is stalled. */
static void test_health(void) {
    CommSegment segments[2];
    void *memory = NULL;
    size_t bytes = comm_segment_bytes(2, 4096);
    CHECK(comm_segment_bytes(2, 4096 + 32) == 0 && comm_segment_bytes(2, 4096 + 64) != 0 &&
          comm_segment_bytes(2, 4032) == 0);
    CHECK_OK(memory_calloc(1, bytes, &memory));
    comm_segment_format(memory, 2, 4096, 1);
    CHECK_OK(comm_segment_open_memory(memory, bytes, 2, 0, &segments[0]));
    CHECK_OK(comm_segment_open_memory(memory, bytes, 2, 1, &segments[1]));
    CHECK(comm_segment_open_memory(memory, bytes, 2, 1, &segments[1]) == STATUS_ARGUMENT);
    CHECK(comm_segment_open_memory(memory, bytes, 3, 1, &segments[1]) == STATUS_ARGUMENT);
    CHECK(comm_segment_health(&segments[0], 1, CLOCK_NS_PER_SECOND) == SEAT_HEALTHY);
    Seat *seat = comm_segment_seat(&segments[0], 1);
    atomic_fetch_sub(&seat->heartbeat_ns, 2 * CLOCK_NS_PER_SECOND);
    CHECK(comm_segment_health(&segments[0], 1, CLOCK_NS_PER_SECOND) == SEAT_STALLED);
    CHECK(comm_segment_health(&segments[0], 1, 100 * CLOCK_NS_PER_SECOND) == SEAT_HEALTHY);
    atomic_fetch_add(&seat->start_time, 1); /* the pid was reused */
    CHECK(comm_segment_health(&segments[0], 1, 100 * CLOCK_NS_PER_SECOND) == SEAT_DEAD);
    pid_t child = fork();
    if (child == 0) {
        for (;;) pause();
    }
    atomic_store(&seat->pid, child);
    atomic_store(&seat->start_time, comm_segment_process_start(child));
    CHECK(comm_segment_health(&segments[0], 1, 100 * CLOCK_NS_PER_SECOND) == SEAT_HEALTHY);
    kill(child, SIGKILL);
    siginfo_t ended;
    CHECK(waitid(P_PID, (id_t)child, &ended, WEXITED | WNOWAIT) == 0); /* a zombie, for nobody has waited for it */
    CHECK(comm_segment_health(&segments[0], 1, 100 * CLOCK_NS_PER_SECOND) == SEAT_DEAD);
    waitpid(child, NULL, 0);
    atomic_store(&seat->pid, getpid());
    comm_segment_close(&segments[1], false);
    CHECK(comm_segment_health(&segments[0], 1, 1) == SEAT_HEALTHY);
    comm_segment_close(&segments[0], false);
    memory_free(memory);
    CHECK(comm_segment_bytes(8, COMM_DEFAULT_SLOT_BYTES) < (size_t)64 << 20);
    CHECK(comm_segment_bytes(0, 4096) == 0 && comm_segment_bytes(1, 4095) == 0 &&
          comm_segment_bytes(1, (size_t)8 << 20) == 0);
}

/* A world of one rank; a build without MPI must not pretend to be alone among several. */
static void test_world(void) {
    Comm *comm = NULL;
    CHECK_OK(comm_create_world(&(CommOptions){.ranks = 1}, &comm));
    CHECK(comm_size(comm) == 1 && comm_timeout(comm) == COMM_DEFAULT_TIMEOUT_S && comm_nodes(comm) == 1);
    const size_t bytes = comm->segment.bytes - comm->segment.slots_offset;
    CHECK(bytes >= (size_t)comm_slots(comm) * comm_slot_bytes(comm));
    CHECK((uintptr_t)(comm->segment.base + comm->segment.slots_offset) % 4096 == 0);
    collectives_body(comm);
    stress_body(comm);
    comm_destroy(comm);
    CHECK(comm_create_world(&(CommOptions){.ranks = 2}, &comm) == STATUS_NOT_BUILT);
    CHECK(strstr(error_record()->message, "CGXFFCV_MPI=1") != NULL);
    comm_destroy(NULL);
    comm_finalize();
}

int main(void) {
    test_health();
    test_parents_communicator();
    test_forked_heart();
    test_world();
    test_streams();
    test_collectives();
    run(5, &(CommOptions){.nodes = 2}, topology_body);
    test_failures();
    return check_result();
}
