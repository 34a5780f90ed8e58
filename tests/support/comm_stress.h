/* Traffic that every rank can compute: random slices to random groups on all lanes, read in any order; and slices in
 * the strict order of the contract. Used with threads as ranks and under mpirun. */
#ifndef CGXFFCV_TESTS_COMM_STRESS_H
#define CGXFFCV_TESTS_COMM_STRESS_H

#include <string.h>

#include "base/philox.h"
#include "comm/comm.h"

#define STRESS_RANKS 8

/* What rank `from` publishes as its k-th slice; every rank can compute it. */
typedef struct Plan {
    int lane;
    size_t bytes;
    bool to[STRESS_RANKS];
    uint64_t tag;
} Plan;

static Plan plan(const Comm *comm, uint32_t seed, int from, int k) {
    Philox4 r = philox(seed, 9, (uint32_t)from, (uint32_t)k, 0, 0);
    Plan p = {.lane = (int)philox_below(r.word[0], COMM_LANES), .tag = ((uint64_t)from << 32) | (uint64_t)k};
    size_t most = comm_slot_bytes(comm);
    p.bytes = k % 17 == 0 ? most : philox_below(r.word[1], k % 3 == 0 ? (uint32_t)most + 1 : 200);
    for (int rank = 0; rank < comm_size(comm); rank++) p.to[rank] = (r.word[2] >> rank & 1) != 0;
    if (r.word[3] % 4 == 0) memset(p.to, 1, sizeof p.to);
    return p;
}

static unsigned char content(const Plan *p, size_t at) { return (unsigned char)(p->tag * 31 + at * 7 + (at >> 8)); }

static void fill(const Plan *p, unsigned char *data) {
    for (size_t i = 0; i < p->bytes; i++) data[i] = content(p, i);
}

static bool intact(const Plan *p, const unsigned char *data) {
    for (size_t i = 0; i < p->bytes; i++) {
        if (data[i] != content(p, i)) return false;
    }
    return true;
}

typedef struct Stress {
    Comm *comm;
    int slices; /* that each rank publishes */
    uint32_t seed;
} Stress;

/* The next slice after `k` on (from, this rank, lane); `slices` at the end. */
static int next_slice(const Stress *s, int from, int lane, int k) {
    for (k++; k < s->slices; k++) {
        Plan p = plan(s->comm, s->seed, from, k);
        if (p.lane == lane && p.to[comm_rank(s->comm)]) break;
    }
    return k;
}

static Status produce(const Stress *s, int *k) {
    Comm *comm = s->comm;
    CommSlot slot;
    bool got;
    TRY(comm_try_acquire(comm, &slot, &got));
    if (!got) return STATUS_OK;
    Plan p = plan(comm, s->seed, comm_rank(comm), *k);
    int ranks[STRESS_RANKS], count = 0;
    for (int rank = 0; rank < comm_size(comm); rank++) {
        if (p.to[rank]) ranks[count++] = rank;
    }
    fill(&p, slot.data);
    if (count == 1) {
        TRY(comm_publish_to(comm, &slot, p.bytes, p.tag, p.lane, ranks[0]));
    } else {
        TRY(comm_publish(comm, &slot, p.bytes, p.tag, p.lane, ranks, count));
    }
    ++*k;
    return STATUS_OK;
}

/* Takes the next slice of a stream if it has come; *taken counts it. */
static Status consume(const Stress *s, int from, int lane, int *expect, int *taken) {
    CommSlice slice;
    bool got;
    if (*expect >= s->slices) return STATUS_OK;
    TRY(comm_try_receive(s->comm, from, lane, &slice, &got));
    if (!got) return STATUS_OK;
    Plan p = plan(s->comm, s->seed, from, *expect);
    if (slice.tag != p.tag || slice.bytes != p.bytes || slice.from != from || slice.lane != lane ||
        !intact(&p, slice.data)) {
        FAIL(STATUS_FORMAT, "slice %d of rank %d on lane %d is not as it was sent", *expect, from, lane);
    }
    comm_release(s->comm, &slice);
    *expect = next_slice(s, from, lane, *expect);
    ++*taken;
    return STATUS_OK;
}

static Status stress(Comm *comm, int slices, uint32_t seed) {
    Stress s = {.comm = comm, .slices = slices, .seed = seed};
    int streams = comm_size(comm) * COMM_LANES, sent = 0, open = 0;
    int expect[STRESS_RANKS * COMM_LANES];
    for (int i = 0; i < streams; i++) {
        expect[i] = next_slice(&s, i / COMM_LANES, i % COMM_LANES, -1);
        open += expect[i] < slices;
    }
    for (uint32_t turn = 0; open > 0 || sent < slices; turn++) {
        int before = sent, taken = 0;
        if (sent < slices) TRY(produce(&s, &sent));
        for (int i = 0; i < streams; i++) {
            /* Another order on each rank and turn. */
            int which = (int)((turn * 5 + (uint32_t)(comm_rank(comm) * 3 + i)) % (uint32_t)streams);
            bool was_open = expect[which] < slices;
            TRY(consume(&s, which / COMM_LANES, which % COMM_LANES, &expect[which], &taken));
            open -= was_open && expect[which] >= slices;
        }
        if (taken == 0 && sent == before) TRY(comm_wait(comm));
    }
    return STATUS_OK;
}

/* Slices in the strict order (step, producer) with the blocking forms: rank p publishes steps ahead as far as slots
 * go, reads come in the order of the contract. */
static Status ordered(Comm *comm, int steps) {
    int size = comm_size(comm), me = comm_rank(comm), sent = 0, step = 0, from = 0, others[STRESS_RANKS], count = 0;
    for (int rank = 0; rank < size; rank++) {
        if (rank != me) others[count++] = rank;
    }
    while (sent < steps || step < steps) {
        bool moved = false, got;
        if (sent < steps) {
            CommSlot slot;
            TRY(comm_try_acquire(comm, &slot, &got));
            if (got) {
                memset(slot.data, sent ^ me, slot.capacity);
                TRY(comm_publish(comm, &slot, slot.capacity, (uint64_t)sent, 1, others, count));
                sent++;
                moved = true;
            }
        }
        while (step < steps) {
            if (from != me) {
                CommSlice slice;
                TRY(comm_try_receive(comm, from, 1, &slice, &got));
                if (!got) break;
                const unsigned char *data = slice.data;
                unsigned char want = (unsigned char)(step ^ from);
                if (slice.tag != (uint64_t)step || data[0] != want || data[slice.bytes - 1] != want) {
                    FAIL(STATUS_FORMAT, "wrong slice");
                }
                comm_release(comm, &slice);
                moved = true;
            }
            if (++from == size) from = 0, step++;
        }
        if (!moved && (sent < steps || step < steps)) TRY(comm_wait(comm));
    }
    return STATUS_OK;
}

#endif
