/* Which algorithm runs: by the user's choice, by measured costs, or by a rule; and the bytes that each sends. */
#include <stdio.h>

#include "allreduce/engine.h"
#include "base/memory.h"

#define SMALL_BYTES 32768 /* of all that a rank sends: up to this, latency decides */
/* Likewise: from here on, a bus's second direction gains more than a third kernel costs. */
#define BUS_BYTES 2097152.0

/* The first node whose number of ranks differs from node 0's; 0 if there is none. */
static int odd_node(const Comm *comm) {
    for (int node = 1; node < comm_nodes(comm); node++) {
        if (comm_local_size_of(comm, node) != comm_local_size_of(comm, 0)) return node;
    }
    return 0;
}

bool allreduce_nodes_are_equal(const Comm *comm) { return odd_node(comm) == 0; }

/* What an algorithm is chosen for. */
typedef struct Choice {
    const AllreduceSetup *setup;
    const WireTable *table;
    AllreduceExtent *extent;
} Choice;

static Status choice_take(const Choice *choice, AllreduceAlgorithm algorithm, const char *reason) {
    choice->extent->algorithm = algorithm;
    snprintf(choice->extent->reason, sizeof choice->extent->reason, "%s", reason);
    return STATUS_OK;
}

static Status choose_by_rule(const Choice *choice) {
    const Comm *comm = choice->setup->comm;
    const AllreduceOptions *options = &choice->setup->options;
    int size = comm_size(comm);
    bool quantizes = choice->table->any_quantized;
    double item = quantizes ? (double)options->bits / 8.0 : (double)allreduce_type_bytes(options->type);
    double sent = (double)choice->table->elems * item * (size - 1);
    if (sent <= SMALL_BYTES) return choice_take(choice, ALLREDUCE_ONE_SHOT, "by rule: a small call, latency decides");
    if (comm_nodes(comm) > 1 && comm_local_size(comm) > 1 && allreduce_nodes_are_equal(comm)) {
        return choice_take(choice, ALLREDUCE_TWO_LEVEL, "by rule: several ranks on each of several nodes");
    }
    if (!quantizes) return choice_take(choice, ALLREDUCE_EXACT, "by rule: nothing in this call is quantised");
    if (size == 2 && choice->setup->link == ALLREDUCE_LINK_BUS && sent >= BUS_BYTES) {
        return choice_take(choice, ALLREDUCE_SRA, "by rule: two ranks through host memory, in both directions at once");
    }
    if (size == 2) return choice_take(choice, ALLREDUCE_ONE_SHOT, "by rule: two ranks, one quantisation");
    return choice_take(choice, ALLREDUCE_SRA, "by rule: more than two ranks");
}

/* If sending unquantised elements is cheaper than what was asked for, it is also more accurate. */
static Status choose_plain(const Choice *choice, AllreduceAlgorithm next, double seconds, double next_seconds) {
    char reason[sizeof choice->extent->reason];
    int length = snprintf(reason, sizeof reason, "by measured costs: plain is faster here, %.1f us", seconds * 1e6);
    if (next != ALLREDUCE_AUTO && length > 0 && (size_t)length < sizeof reason) {
        snprintf(reason + length, sizeof reason - (size_t)length, "; %d bits with %s would take %.1f us",
                 choice->setup->options.bits, allreduce_algorithm_name((int)next), next_seconds * 1e6);
    }
    return choice_take(choice, ALLREDUCE_EXACT, reason);
}

static Status choose_by_costs(const Choice *choice) {
    const AllreduceSetup *setup = choice->setup;
    const AllreduceExtent *first = setup->extents;
    AllreduceAlgorithm best = ALLREDUCE_AUTO;
    double least = 0, plain = allreduce_predict(setup, ALLREDUCE_EXACT, choice->table->elems);
    if (choice->extent != first) { /* one engine does them all: it compresses every length, or none */
        if (first->algorithm == ALLREDUCE_EXACT) return choice_take(choice, ALLREDUCE_EXACT, first->reason);
        plain = 0;
    }
    for (int a = 0; a < ALLREDUCE_ALGORITHMS; a++) {
        double seconds = allreduce_predict(setup, (AllreduceAlgorithm)a, choice->table->elems);
        if (a == ALLREDUCE_EXACT || seconds <= 0 || (best != ALLREDUCE_AUTO && seconds >= least)) continue;
        if (a == ALLREDUCE_TWO_LEVEL && !allreduce_nodes_are_equal(setup->comm)) continue;
        best = (AllreduceAlgorithm)a;
        least = seconds;
    }
    if (plain > 0 && (best == ALLREDUCE_AUTO || plain <= least)) return choose_plain(choice, best, plain, least);
    if (best == ALLREDUCE_AUTO) return choose_by_rule(choice);
    return choice_take(choice, best, "by measured costs: the cheapest of those below");
}

Status allreduce_choose(const AllreduceSetup *setup, const WireTable *table, AllreduceExtent *extent) {
    const Comm *comm = setup->comm;
    const AllreduceOptions *options = &setup->options;
    const Choice choice = {setup, table, extent};
    if (options->algorithm == ALLREDUCE_TWO_LEVEL && !allreduce_nodes_are_equal(comm)) {
        FAIL(STATUS_ARGUMENT,
             "two_level needs the same number of ranks on every node, but node 0 has %d, node %d has %d: use sra",
             comm_local_size_of(comm, 0), odd_node(comm), comm_local_size_of(comm, odd_node(comm)));
    }
    if (comm_size(comm) == 1) return choice_take(&choice, ALLREDUCE_SRA, "one rank: nothing is sent");
    if (options->algorithm != ALLREDUCE_AUTO) return choice_take(&choice, options->algorithm, "as requested");
    return options->costs != NULL && table->any_quantized ? choose_by_costs(&choice) : choose_by_rule(&choice);
}

/* ---- bytes ---- */

/* What this rank sends, given the bytes of each chunk. */
static uint64_t bytes_sent(const Comm *comm, const AllreduceExtent *extent, const uint64_t *chunk) {
    uint64_t all = 0, size = (uint64_t)comm_size(comm), me = (uint64_t)comm_rank(comm);
    for (int c = 0; c < extent->map->chunks; c++) all += chunk[c];
    switch (extent->algorithm) {
    case ALLREDUCE_ONE_SHOT:
        return all * (size - 1);
    case ALLREDUCE_RING: /* summands: all chunks but me + 1; results: all but me + 2 */
        return 2 * all - chunk[(me + 1) % size] - chunk[(me + 2) % size];
    case ALLREDUCE_TWO_LEVEL: {
        uint64_t nodes = (uint64_t)comm_nodes(comm), local_size = (uint64_t)comm_local_size(comm), shard = 0;
        const uint64_t *mine = chunk + (uint64_t)comm_local_rank(comm) * nodes;
        for (uint64_t m = 0; m < nodes; m++) shard += mine[m];
        uint64_t own = mine[comm_node(comm)];
        return (all - shard) + (shard - own) + own * (nodes - 1) + shard * (local_size - 1);
    }
    default:
        return (all - chunk[me]) + chunk[me] * (size - 1);
    }
}

Status allreduce_count_bytes(const AllreduceSetup *setup, AllreduceExtent *extent) {
    const WireMap *map = extent->map;
    uint64_t *wire = NULL, *plain;
    if (comm_size(setup->comm) == 1) return STATUS_OK;
    TRY(memory_calloc(2 * (size_t)map->chunks, sizeof *wire, &wire));
    plain = wire + map->chunks;
    for (int c = 0; c < map->chunks; c++) {
        wire[c] = wire_chunk(map, c)->bytes;
        plain[c] = (uint64_t)wire_chunk(map, c)->elems * allreduce_type_bytes(map->type);
    }
    extent->bytes = (AllreduceBytes){bytes_sent(setup->comm, extent, wire), bytes_sent(setup->comm, extent, plain)};
    memory_free(wire);
    return STATUS_OK;
}
