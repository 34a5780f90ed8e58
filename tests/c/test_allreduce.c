// rooms: base device comm quant allreduce
/* Every algorithm with threads as ranks: sums of four integers, which 2 bits hold, are exact everywhere. */
#include <pthread.h>
#include <string.h>
#include <unistd.h>

#include "allreduce/allreduce.h"
#include "base/memory.h"
#include "check.h"
#include "comm/internal.h"

#define RANKS_MAX 5
#define ELEMS 20011

typedef struct Rank {
    int fd, rank, size, nodes;
    AllreduceAlgorithm algorithm;
    AllreduceType type;
    bool feedback;
    Status status;
    ErrorRecord error;
    uint64_t wire_bytes;
    int wrong;
    size_t explained;
    char text[2048];
} Rank;

static const AllreduceLayer layers[] = {{.name = "a", .elems = 15000, .dims = 2},
                                        {.name = "b", .elems = 11, .dims = 1},
                                        {.elems = 0},
                                        {.name = "c", .elems = 5000, .dims = 2, .bits = 2, .bucket_size = 77}};

/* 0, 1, 2 or 3 times a rank's factor; every bucket that counts spans the same range, so the grid holds every sum. */
static float value_of(int rank, int i) { return (float)((i % 4) * (rank + 1)); }

static float expected_of(int size, int i) { return (float)((i % 4) * size * (size + 1) / 2); }

static Status create(Comm *comm, const AllreduceLayer *table, int count, const AllreduceOptions *options,
                     Allreduce **out) {
    return allreduce_create(comm, &(AllreduceBuffer){.layers = table, .layer_count = count}, options, out);
}

static Status reduce_once(Comm *comm, Rank *self, void *buffer) {
    Status status = STATUS_OK;
    Allreduce *allreduce = NULL;
    AllreduceOptions options = allreduce_defaults();
    options.type = self->type;
    options.op = ALLREDUCE_SUM;
    options.bits = 2;
    options.bucket_size = 256;
    options.algorithm = self->algorithm;
    options.error_feedback = self->feedback;
    TRY(create(comm, layers, sizeof layers / sizeof *layers, &options, &allreduce));
    self->wire_bytes = allreduce_bytes(allreduce, ELEMS).wire;
    self->explained = allreduce_explain(allreduce, self->text, sizeof self->text);
    TRY_GOTO(allreduce_put(allreduce, buffer, allreduce_elems(allreduce), NULL));
    TRY_GOTO(allreduce_check_replicas(comm, buffer, ELEMS * allreduce_type_bytes(self->type)));
done:
    allreduce_destroy(allreduce);
    return status;
}

static void fill(Rank *self, void *buffer) {
    for (int i = 0; i < ELEMS; i++) {
        float value = value_of(self->rank, i);
        if (self->type == ALLREDUCE_F32) ((float *)buffer)[i] = value;
        if (self->type == ALLREDUCE_I32) ((int32_t *)buffer)[i] = (int32_t)value;
        uint32_t bits;
        memcpy(&bits, &value, sizeof bits);
        if (self->type == ALLREDUCE_BF16) ((uint16_t *)buffer)[i] = (uint16_t)(bits >> 16);
    }
}

static void count_wrong(Rank *self, const void *buffer) {
    for (int i = 0; i < ELEMS; i++) {
        float value = 0;
        uint32_t bits = self->type == ALLREDUCE_BF16 ? (uint32_t)((const uint16_t *)buffer)[i] << 16 : 0;
        memcpy(&value, &bits, sizeof value);
        if (self->type == ALLREDUCE_F32) value = ((const float *)buffer)[i];
        if (self->type == ALLREDUCE_I32) value = (float)((const int32_t *)buffer)[i];
        self->wrong += value != expected_of(self->size, i);
    }
}

static void *run_rank(void *argument) {
    Rank *self = argument;
    Comm *comm = NULL;
    void *buffer = NULL;
    CommOptions options = {.timeout_s = 60, .nodes = self->nodes};
    self->status = comm_attach(self->fd, self->rank, self->size, &options, &comm);
    if (self->status == STATUS_OK) self->status = memory_alloc(ELEMS, 4, &buffer);
    if (self->status == STATUS_OK) {
        fill(self, buffer);
        self->status = reduce_once(comm, self, buffer);
        if (self->status == STATUS_OK) count_wrong(self, buffer);
    }
    self->error = *error_record();
    memory_free(buffer);
    comm_destroy(comm);
    return NULL;
}

static void run(int size, int nodes, AllreduceAlgorithm algorithm, AllreduceType type, bool feedback) {
    pthread_t threads[RANKS_MAX];
    Rank ranks[RANKS_MAX];
    int fd = -1;
    CHECK_OK(comm_segment_create(size, 4096, &fd));
    for (int r = 0; r < size; r++) {
        ranks[r] = (Rank){.fd = fd, .rank = r, .size = size, .nodes = nodes, .algorithm = algorithm, .type = type};
        ranks[r].feedback = feedback;
        CHECK(pthread_create(&threads[r], NULL, run_rank, &ranks[r]) == 0);
    }
    for (int r = 0; r < size; r++) pthread_join(threads[r], NULL);
    for (int r = 0; r < size; r++) {
        if (ranks[r].status != STATUS_OK) fprintf(stderr, "rank %d: %s\n", r, ranks[r].error.message);
        CHECK(ranks[r].status == STATUS_OK && ranks[r].wrong == 0);
        CHECK(ranks[r].explained > 100 && ranks[r].explained < sizeof ranks[r].text);
        CHECK(ranks[r].wire_bytes > 0 && strstr(ranks[r].text, allreduce_algorithm_name(algorithm)) != NULL);
    }
    close(fd);
}

static const float odd[3] = {1.5f, -2.25f, 3.125f};

/* Runs a raw layer of 12 bytes, which take 16 on the wire, in slots that were full of other bytes; how often it lies
 * there with something else than zeros behind it, or not at all. */
static Status send_odd(Comm *comm, int *wrong) {
    Allreduce *allreduce = NULL;
    AllreduceOptions options = allreduce_defaults();
    AllreduceLayer layer = {.name = "odd", .elems = 3, .dims = 1};
    float buffer[3];
    int found = 0;
    options.op = ALLREDUCE_SUM;
    options.algorithm = ALLREDUCE_ONE_SHOT;
    memcpy(buffer, odd, sizeof odd);
    char *slots = (char *)comm->segment.base + comm->segment.slots_offset;
    const size_t bytes = comm->segment.bytes - comm->segment.slots_offset;
    if (comm_rank(comm) == 0) memset(slots, 0xAB, bytes);
    TRY(comm_barrier(comm));
    TRY(create(comm, &layer, 1, &options, &allreduce));
    Status status = allreduce_put(allreduce, buffer, allreduce_elems(allreduce), NULL);
    allreduce_destroy(allreduce);
    TRY(status);
    TRY(comm_barrier(comm));
    static const unsigned char zeros[4];
    for (size_t at = 0; at + 16 <= bytes; at += 64) {
        const unsigned char *wire = (const unsigned char *)slots + at;
        if (memcmp(wire, odd, sizeof odd) != 0) continue;
        found++;
        *wrong += memcmp(wire + sizeof odd, zeros, sizeof zeros) != 0;
    }
    *wrong += found != 2;
    return STATUS_OK;
}

static void *run_odd(void *argument) {
    Rank *self = argument;
    Comm *comm = NULL;
    self->status = comm_attach(self->fd, self->rank, self->size, NULL, &comm);
    if (self->status == STATUS_OK) self->status = send_odd(comm, &self->wrong);
    comm_destroy(comm);
    return NULL;
}

static void test_padding(void) {
    pthread_t threads[2];
    Rank ranks[2];
    int fd = -1;
    CHECK_OK(comm_segment_create(2, 4096, &fd));
    for (int r = 0; r < 2; r++) {
        ranks[r] = (Rank){.fd = fd, .rank = r, .size = 2};
        CHECK(pthread_create(&threads[r], NULL, run_odd, &ranks[r]) == 0);
    }
    for (int r = 0; r < 2; r++) pthread_join(threads[r], NULL);
    for (int r = 0; r < 2; r++) CHECK(ranks[r].status == STATUS_OK && ranks[r].wrong == 0);
    close(fd);
}

static void test_refusals(void) {
    Comm *comm = NULL;
    Allreduce *allreduce = NULL;
    CHECK_OK(comm_create_world(&(CommOptions){.ranks = 1}, &comm));
    AllreduceOptions options = allreduce_defaults();
    options.bits = 11;
    CHECK(create(comm, layers, 4, &options, &allreduce) == STATUS_ARGUMENT && allreduce == NULL);
    options = allreduce_defaults();
    options.type = ALLREDUCE_I64;
    CHECK(create(comm, layers, 4, &options, &allreduce) == STATUS_ARGUMENT);
    options = allreduce_defaults();
    AllreduceLayer bad = {.name = "bad", .elems = 10000, .dims = 2, .bits = 12};
    CHECK(create(comm, &bad, 1, &options, &allreduce) == STATUS_ARGUMENT);
    CHECK(strstr(error_record()->message, "layer 0 (bad): bits must be") != NULL);
    bad.elems = INT64_MAX;
    CHECK(create(comm, &bad, 1, &options, &allreduce) == STATUS_ARGUMENT);
    CHECK_OK(create(comm, NULL, 0, &options, &allreduce));
    CHECK_OK(allreduce_put(allreduce, NULL, 0, NULL));
    CHECK(allreduce_call(allreduce) == 1 && allreduce_bytes(allreduce, 0).wire == 0);
    allreduce_destroy(allreduce);
    comm_destroy(comm);
}

int main(void) {
    for (int a = ALLREDUCE_ONE_SHOT; a < ALLREDUCE_ALGORITHMS; a++) {
        run(2, 1, (AllreduceAlgorithm)a, ALLREDUCE_F32, false);
        run(5, 1, (AllreduceAlgorithm)a, ALLREDUCE_F32, true);
        run(4, 2, (AllreduceAlgorithm)a, ALLREDUCE_BF16, false);
        run(3, 3, (AllreduceAlgorithm)a, ALLREDUCE_I32, false);
    }
    test_padding();
    test_refusals();
    return check_result();
}
