/* The traffic of tests/support/comm_stress.h under mpirun: streams.c SLICES ROUNDS SLOT_BYTES. Prints "rank R of N:
 * fine". */
#include <stdio.h>
#include <stdlib.h>

#include "base/hash.h"
#include "base/memory.h"
#include "comm_stress.h"

static Status agree_on_contents(Comm *comm, size_t bytes) {
    unsigned char *mine = NULL, *all = NULL;
    TRY(memory_alloc(bytes, 1, &mine));
    TRY(memory_alloc(bytes, (size_t)comm_size(comm), &all));
    for (size_t i = 0; i < bytes; i++) mine[i] = (unsigned char)(i * 3 + (size_t)comm_rank(comm));
    TRY(comm_allgather(comm, mine, bytes, all));
    uint64_t hash = hash_bytes(all, bytes * (size_t)comm_size(comm), 0);
    memory_free(mine);
    memory_free(all);
    return comm_agree(comm, &hash, sizeof hash);
}

static Status job(Comm *comm, int slices, int rounds) {
    for (int round = 0; round < rounds; round++) {
        TRY(stress(comm, slices, (uint32_t)round + 1));
        TRY(ordered(comm, 40));
        if (round % 2 == 0) TRY(comm_barrier(comm));
        TRY(agree_on_contents(comm, 1000001));
    }
    return STATUS_OK;
}

static Status work(Comm *comm, int slices, int rounds) {
    TRY(comm_begin(comm, "traffic", 60));
    return comm_end(comm, job(comm, slices, rounds));
}

int main(int argc, char **argv) {
    Comm *comm = NULL, *part = NULL;
    int slices = argc > 1 ? atoi(argv[1]) : 100, rounds = argc > 2 ? atoi(argv[2]) : 1;
    CommOptions options = {.slot_bytes = argc > 3 ? (size_t)atoi(argv[3]) : 0};
    Status status = comm_create_world(&options, &comm);
    if (status == STATUS_OK) status = work(comm, slices, rounds);
    if (status == STATUS_OK) status = comm_split(comm, comm_rank(comm) % 2, -comm_rank(comm), &part);
    if (status == STATUS_OK) status = work(part, slices, 1);
    if (status == STATUS_OK) status = comm_barrier(comm);
    if (status != STATUS_OK) {
        fprintf(stderr, "failed: %s\n", error_record()->message);
        return 1;
    }
    printf("rank %d of %d: fine\n", comm_rank(comm), comm_size(comm));
    comm_destroy(part);
    comm_destroy(comm);
    comm_finalize();
    return 0;
}
