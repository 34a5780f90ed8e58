/* Threads as the ranks of a communicator, over memory that they all share. */
#ifndef CGXFFCV_TESTS_COMM_RANKS_H
#define CGXFFCV_TESTS_COMM_RANKS_H

#include <pthread.h>

#include "base/memory.h"
#include "check.h"
#include "comm/internal.h"

#define MAX_RANKS 8

typedef void (*Body)(Comm *comm);

typedef struct World {
    void *memory;
    size_t bytes;
    int size, rank;
    CommOptions options;
    void (*begin)(int rank); /* in each thread, before it joins; or NULL */
    Body body;
} World;

static pthread_mutex_t check_lock = PTHREAD_MUTEX_INITIALIZER;

/* The harness counts without atomics; ranks take turns. */
#define RANK_CHECK(condition)                                                                                          \
    do {                                                                                                               \
        bool holds_ = (condition);                                                                                     \
        pthread_mutex_lock(&check_lock);                                                                               \
        CHECK(holds_ &&#condition);                                                                                    \
        pthread_mutex_unlock(&check_lock);                                                                             \
    } while (0)

#define RANK_CHECK_OK(call)                                                                                            \
    do {                                                                                                               \
        Status rank_status_ = (call);                                                                                  \
        pthread_mutex_lock(&check_lock);                                                                               \
        CHECK_OK(rank_status_);                                                                                        \
        pthread_mutex_unlock(&check_lock);                                                                             \
    } while (0)

static void *run_rank(void *argument) {
    World *world = argument;
    CommSegment segment;
    Comm *comm = NULL;
    if (world->begin != NULL) world->begin(world->rank);
    RANK_CHECK_OK(comm_segment_open_memory(world->memory, world->bytes, world->size, world->rank, &segment));
    RANK_CHECK_OK(comm_join_segment(&segment, world->rank, world->size, &world->options, &comm));
    if (comm != NULL) RANK_CHECK_OK(comm_barrier(comm)); /* a late rank would join what an early one has broken */
    if (comm != NULL) world->body(comm);
    comm_destroy(comm);
    return NULL;
}

static void run_ranks(int size, const CommOptions *options, void (*begin)(int rank), Body body) {
    size_t slot_bytes = options->slot_bytes > 0 ? options->slot_bytes : COMM_DEFAULT_SLOT_BYTES;
    void *memory = NULL;
    size_t bytes = comm_segment_bytes(size, slot_bytes);
    CHECK_OK(memory_calloc(1, bytes, &memory));
    comm_segment_format(memory, size, slot_bytes, 1);
    pthread_t threads[MAX_RANKS];
    World worlds[MAX_RANKS];
    for (int rank = 0; rank < size; rank++) {
        worlds[rank] = (World){memory, bytes, size, rank, *options, begin, body};
        RANK_CHECK(pthread_create(&threads[rank], NULL, run_rank, &worlds[rank]) == 0);
    }
    for (int rank = 0; rank < size; rank++) pthread_join(threads[rank], NULL);
    memory_free(memory);
}

#endif
