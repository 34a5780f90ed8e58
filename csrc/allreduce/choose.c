/* Which algorithm runs: by the user's word, by measured costs, or by a rule; the bytes that each sends; and the
 * measurement. */
#include <stdio.h>

#include "allreduce/engine.h"
#include "base/clock.h"
#include "base/memory.h"

#define SMALL_BYTES 32768 /* of all a rank sends: below it latency decides */

/* The first node with another number of ranks than node 0; 0 if there is none. */
static int odd_node(const Comm *comm) {
    for (int node = 1; node < comm_nodes(comm); node++) {
        if (comm_local_size_of(comm, node) != comm_local_size_of(comm, 0)) return node;
    }
    return 0;
}

static bool nodes_are_equal(const Comm *comm) { return odd_node(comm) == 0; }

/* What there is to choose for. */
typedef struct Choice {
    const AllreduceSetup *setup;
    const WireTable *table;
    AllreduceExtent *extent;
} Choice;

static Status choose(const Choice *choice, AllreduceAlgorithm algorithm, const char *reason) {
    choice->extent->algorithm = algorithm;
    snprintf(choice->extent->reason, sizeof choice->extent->reason, "%s", reason);
    return STATUS_OK;
}

static Status choose_by_rule(const Choice *choice) {
    const Comm *comm = choice->setup->comm;
    const AllreduceOptions *options = &choice->setup->options;
    int size = comm_size(comm);
    bool quantises = choice->table->any_quantized;
    double item = quantises ? (double)options->bits / 8.0 : (double)allreduce_type_bytes(options->type);
    bool small = (double)choice->table->elems * item * (size - 1) <= SMALL_BYTES;
    if (small) return choose(choice, ALLREDUCE_ONE_SHOT, "by rule: a small call, latency decides");
    if (comm_nodes(comm) > 1 && comm_local_size(comm) > 1 && nodes_are_equal(comm)) {
        return choose(choice, ALLREDUCE_TWO_LEVEL, "by rule: several ranks on each of several nodes");
    }
    if (!quantises) return choose(choice, ALLREDUCE_EXACT, "by rule: nothing in this call is quantised");
    if (size == 2) return choose(choice, ALLREDUCE_ONE_SHOT, "by rule: two ranks, one quantisation");
    return choose(choice, ALLREDUCE_SRA, "by rule: more than two ranks");
}

double allreduce_predict(const AllreduceSetup *setup, AllreduceAlgorithm algorithm, int64_t call_elems) {
    const AllreduceCosts *costs = &setup->costs;
    double elems = (double)call_elems * (double)allreduce_type_bytes(setup->options.type) / 4.0;
    const double *seconds = costs->seconds[algorithm];
    if (seconds[0] <= 0) return 0;
    int last = ALLREDUCE_COST_SIZES - 1, i = 1;
    if (elems <= (double)costs->elems[0]) return seconds[0];
    while (i < last && elems > (double)costs->elems[i]) i++;
    double x0 = (double)costs->elems[i - 1], x1 = (double)costs->elems[i];
    double slope = (seconds[i] - seconds[i - 1]) / (x1 - x0);
    if (slope < 0) slope = 0;
    return seconds[i - 1] + slope * (elems - x0);
}

static Status choose_by_costs(const Choice *choice) {
    const AllreduceSetup *setup = choice->setup;
    AllreduceAlgorithm best = ALLREDUCE_AUTO;
    double least = 0;
    for (int a = 0; a < ALLREDUCE_ALGORITHMS; a++) {
        double seconds = allreduce_predict(setup, (AllreduceAlgorithm)a, choice->table->elems);
        if (seconds <= 0 || (best != ALLREDUCE_AUTO && seconds >= least)) continue;
        if (a == ALLREDUCE_TWO_LEVEL && !nodes_are_equal(setup->comm)) continue;
        best = (AllreduceAlgorithm)a;
        least = seconds;
    }
    if (best == ALLREDUCE_AUTO) return choose_by_rule(choice);
    return choose(choice, best, "by measured costs: the cheapest of those below");
}

Status allreduce_choose(const AllreduceSetup *setup, const WireTable *table, AllreduceExtent *extent) {
    const Comm *comm = setup->comm;
    const AllreduceOptions *options = &setup->options;
    const Choice choice = {setup, table, extent};
    if (options->algorithm == ALLREDUCE_TWO_LEVEL && !nodes_are_equal(comm)) {
        FAIL(STATUS_ARGUMENT,
             "two_level needs the same number of ranks on every node, and node 0 has %d, node %d has %d: use sra",
             comm_local_size_of(comm, 0), odd_node(comm), comm_local_size_of(comm, odd_node(comm)));
    }
    if (comm_size(comm) == 1) return choose(&choice, ALLREDUCE_SRA, "one rank: nothing is sent");
    if (options->algorithm != ALLREDUCE_AUTO) return choose(&choice, options->algorithm, "as asked for");
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
        uint64_t nodes = (uint64_t)comm_nodes(comm), seats = (uint64_t)comm_local_size(comm), shard = 0;
        const uint64_t *mine = chunk + (uint64_t)comm_local_rank(comm) * nodes;
        for (uint64_t m = 0; m < nodes; m++) shard += mine[m];
        uint64_t own = mine[comm_node(comm)];
        return (all - shard) + (shard - own) + own * (nodes - 1) + shard * (seats - 1);
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

/* ---- measuring ---- */

static const int64_t measured_elems[ALLREDUCE_COST_SIZES] = {1024, 32768, 262144, 2097152};
static const int measured_runs[ALLREDUCE_COST_SIZES] = {20, 10, 5, 3};

/* The least of several runs after one to warm up. */
static Status measure_one(Comm *comm, AllreduceAlgorithm algorithm, int size, float *buffer, double *seconds) {
    Status status = STATUS_OK;
    Allreduce *allreduce = NULL;
    AllreduceOptions options = allreduce_defaults();
    AllreduceLayer layer = {.elems = measured_elems[size], .bits = options.bits};
    AllreduceBuffer all = {.layers = &layer, .layer_count = 1};
    options.algorithm = algorithm;
    TRY(allreduce_create(comm, &all, &options, &allreduce));
    for (int i = 0; i <= measured_runs[size]; i++) {
        TRY_GOTO(comm_barrier(comm));
        double start = clock_now_seconds();
        TRY_GOTO(allreduce_put(allreduce, buffer, layer.elems, NULL));
        double taken = clock_now_seconds() - start;
        if (i > 0 && (*seconds == 0 || taken < *seconds)) *seconds = taken;
    }
done:
    allreduce_destroy(allreduce);
    return status;
}

Status allreduce_measure(Comm *comm, AllreduceCosts *out) {
    static const AllreduceAlgorithm algorithms[] = {ALLREDUCE_ONE_SHOT, ALLREDUCE_SRA, ALLREDUCE_TWO_LEVEL,
                                                    ALLREDUCE_EXACT};
    Status status = STATUS_OK;
    float *buffer = NULL;
    size_t elems = (size_t)measured_elems[ALLREDUCE_COST_SIZES - 1];
    AllreduceCosts costs = {.elems = {0}};
    TRY(memory_alloc(elems, sizeof *buffer, &buffer));
    for (size_t i = 0; i < elems; i++) buffer[i] = (float)(i % 1021) - 510.0f;
    for (int s = 0; s < ALLREDUCE_COST_SIZES; s++) costs.elems[s] = measured_elems[s];
    for (size_t a = 0; comm_size(comm) > 1 && a < sizeof algorithms / sizeof *algorithms; a++) {
        bool levels = comm_nodes(comm) > 1 && nodes_are_equal(comm);
        if (algorithms[a] == ALLREDUCE_TWO_LEVEL && !levels) continue;
        for (int s = 0; s < ALLREDUCE_COST_SIZES; s++) {
            TRY_GOTO(measure_one(comm, algorithms[a], s, buffer, &costs.seconds[algorithms[a]][s]));
        }
    }
    TRY_GOTO(comm_broadcast(comm, 0, &costs, sizeof costs));
    *out = costs;
done:
    memory_free(buffer);
    return status;
}
