/* The plan: checks the options, makes everything that a run needs, runs. Nothing is allocated during a run. */
#include "allreduce/internal.h"
#include "base/hash.h"
#include "base/memory.h"

AllreduceOptions allreduce_defaults(void) {
    return (AllreduceOptions){.type = ALLREDUCE_F32,
                              .op = ALLREDUCE_AVERAGE,
                              .bits = 4,
                              .bucket_size = 1024,
                              .layer_min_size = 1024,
                              .codec = QUANT_MAXMIN,
                              .rounding = QUANT_NEAREST,
                              .algorithm = ALLREDUCE_AUTO,
                              .threads = 1};
}

static Status check_options(const AllreduceOptions *o) {
    if ((unsigned)o->type >= ALLREDUCE_TYPES) FAIL(STATUS_ARGUMENT, "no element type has the number %d", (int)o->type);
    if ((unsigned)o->op >= ALLREDUCE_OPS) FAIL(STATUS_ARGUMENT, "no operation has the number %d", (int)o->op);
    if ((unsigned)o->algorithm >= ALLREDUCE_ALGORITHMS) {
        FAIL(STATUS_ARGUMENT, "no algorithm has the number %d", (int)o->algorithm);
    }
    if (o->bits != ALLREDUCE_UNCOMPRESSED && (o->bits < 1 || o->bits > QUANTIZE_MAX_BITS)) {
        FAIL(STATUS_ARGUMENT, "bits must be between 1 and %d, or %d for no quantisation, not %d", QUANTIZE_MAX_BITS,
             ALLREDUCE_UNCOMPRESSED, o->bits);
    }
    if (o->bucket_size < 1)
        FAIL(STATUS_ARGUMENT, "bucket_size must be at least 1, not %lld", (long long)o->bucket_size);
    if (o->layer_min_size < 0) {
        FAIL(STATUS_ARGUMENT, "layer_min_size must be at least 0, not %lld", (long long)o->layer_min_size);
    }
    if (o->threads < 1 || o->threads > 256) {
        FAIL(STATUS_ARGUMENT, "threads must be between 1 and 256, not %d", o->threads);
    }
    if (o->op == ALLREDUCE_AVERAGE && o->type > ALLREDUCE_F64) {
        FAIL(STATUS_ARGUMENT, "an average of %s is no %s: use a sum", allreduce_type_name(o->type),
             allreduce_type_name(o->type));
    }
    return STATUS_OK;
}

/* The average of numbers is one where their sum is none: elements are scaled before they are added, by a power of two,
 * so that no rounding differs, and by so much that no sum nor its quantiser leaves the range of float32. float16 has
 * room enough in float32, and would lose its small numbers. */
static double choose_scale(const AllreducePlan *plan) {
    const int room = 4;
    int size = comm_size(plan->comm), exponent = 0;
    if (plan->options.op != ALLREDUCE_AVERAGE || plan->options.type == ALLREDUCE_F16 || size == 1) return 1.0;
    while (1 << exponent < size) exponent++;
    return 1.0 / (double)(1 << (exponent + room));
}

/* Chunks as the algorithm owns them. */
static Status make_partition(AllreducePlan *plan) {
    int size = comm_size(plan->comm);
    bool widens = plan->algorithm == ALLREDUCE_RING || plan->algorithm == ALLREDUCE_TWO_LEVEL;
    plan->raw_type = widens ? plan->wide_type : plan->options.type;
    if (plan->algorithm == ALLREDUCE_ONE_SHOT) return layout_partition(plan, 1, 1, &plan->partition);
    if (plan->algorithm == ALLREDUCE_TWO_LEVEL) {
        return layout_partition(plan, comm_local_size(plan->comm), comm_nodes(plan->comm), &plan->partition);
    }
    return layout_partition(plan, 1, size, &plan->partition);
}

static Status make_scratch(AllreducePlan *plan) {
    size_t elems = (size_t)plan->partition.max_slice_elems, ranks = (size_t)comm_size(plan->comm);
    TRY(memory_alloc(elems, allreduce_type_bytes(plan->wide_type), &plan->sum));
    bool scales = plan->residual != NULL || plan->scale != 1.0;
    TRY(memory_alloc(scales ? elems : 0, allreduce_type_bytes(plan->wide_type), &plan->scaled));
    TRY(memory_alloc(plan->options.half_metadata ? elems : 0, sizeof(uint16_t), &plan->half));
    TRY(memory_alloc(plan->options.type == plan->wide_type ? 0 : elems, sizeof(float), &plan->other));
    TRY(memory_calloc(ranks, sizeof *plan->ranks, &plan->ranks));
    TRY(memory_calloc(ranks, sizeof *plan->members[0], &plan->members[0]));
    TRY(memory_calloc(ranks, sizeof *plan->members[1], &plan->members[1]));
    TRY(memory_calloc(ranks, sizeof *plan->shards, &plan->shards));
    TRY(memory_calloc(ranks, sizeof *plan->agreements, &plan->agreements));
    for (int r = 0; r < (int)ranks; r++) plan->members[0][r] = r;
    if (comm_slots(plan->comm) >= (int)ranks) return STATUS_OK;
    TRY(memory_calloc(ranks, sizeof *plan->stashed, &plan->stashed));
    return memory_alloc(ranks, plan->partition.max_slice_bytes, &plan->stash);
}

/* The largest chunk, or for two-level this rank's shard. */
static Chunk largest_holding(const AllreducePlan *plan) {
    Chunk largest = {0};
    const Partition *partition = &plan->partition;
    int nodes = comm_nodes(plan->comm), mine = comm_local_rank(plan->comm);
    for (int c = 0; c < partition->chunks; c++) {
        const Chunk *chunk = &partition->chunk[c];
        if (plan->algorithm != ALLREDUCE_TWO_LEVEL) {
            if (chunk->elems > largest.elems) largest.elems = chunk->elems;
            if (chunk->bytes > largest.bytes) largest.bytes = chunk->bytes;
        } else if (c / nodes == mine) {
            largest.elems += chunk->elems;
            largest.bytes += chunk->bytes;
        }
    }
    return largest;
}

static Status make_holdings(AllreducePlan *plan) {
    bool ring = plan->algorithm == ALLREDUCE_RING;
    if (!ring && plan->algorithm != ALLREDUCE_TWO_LEVEL) return STATUS_OK;
    Chunk largest = largest_holding(plan);
    for (int i = 0; i < (ring ? 2 : 1); i++) {
        TRY(memory_alloc(largest.bytes, 1, &plan->kept[i]));
        if (plan->options.type == plan->wide_type) continue;
        TRY(memory_alloc((size_t)largest.elems, sizeof(float), &plan->partial[i]));
    }
    return STATUS_OK;
}

/* The table under the algorithm that was chosen: "exact" turns every layer into one that travels as it is. */
static Status decide(AllreducePlan *plan, const AllreduceLayer *layers, int count) {
    TRY(layout_layers(plan, layers, count));
    TRY(choose_algorithm(plan));
    if (plan->algorithm != ALLREDUCE_EXACT || !plan->any_quantised) return STATUS_OK;
    layout_layers_destroy(plan);
    return layout_layers(plan, layers, count);
}

Status allreduce_plan_create(Comm *comm, const AllreduceLayer *layers, int count, const AllreduceOptions *options,
                             AllreducePlan **out) {
    Status status = STATUS_OK;
    AllreducePlan *plan = NULL;
    if (count < 0) FAIL(STATUS_ARGUMENT, "a plan cannot have %d layers", count);
    TRY(check_options(options));
    TRY(memory_calloc(1, sizeof *plan, &plan));
    plan->comm = comm;
    plan->options = *options;
    plan->options.costs = NULL;
    plan->has_costs = options->costs != NULL;
    if (plan->has_costs) plan->costs = *options->costs;
    plan->algorithm = options->algorithm;
    plan->wide_type = options->type <= ALLREDUCE_BF16 ? ALLREDUCE_F32 : options->type;
    plan->scale = choose_scale(plan);
    TRY_GOTO(decide(plan, layers, count));
    TRY_GOTO(make_partition(plan));
    plan->options.error_feedback = options->error_feedback && plan->any_quantised;
    if (plan->options.error_feedback) {
        TRY_GOTO(memory_calloc((size_t)plan->elems, sizeof *plan->residual, &plan->residual));
    }
    TRY_GOTO(make_scratch(plan));
    TRY_GOTO(make_holdings(plan));
    if (options->threads > 1) TRY_GOTO(pool_create(options->threads, &plan->pool));
    count_bytes(plan);
    TRY_GOTO(transfer_number(plan));
    *out = plan;
    plan = NULL;
done:
    allreduce_plan_destroy(plan);
    return status;
}

void allreduce_plan_destroy(AllreducePlan *plan) {
    if (plan == NULL) return;
    pool_destroy(plan->pool);
    for (int i = 0; i < 2; i++) {
        memory_free(plan->partial[i]);
        memory_free(plan->kept[i]);
        memory_free(plan->members[i]);
    }
    memory_free(plan->stash);
    memory_free(plan->stashed);
    memory_free(plan->shards);
    memory_free(plan->agreements);
    memory_free(plan->ranks);
    memory_free(plan->other);
    memory_free(plan->half);
    memory_free(plan->scaled);
    memory_free(plan->sum);
    memory_free(plan->residual);
    layout_partition_destroy(&plan->partition);
    layout_layers_destroy(plan);
    memory_free(plan);
}

static Status scatter_gather(AllreducePlan *plan, void *buffer) {
    Exchange exchange = {.group = {plan->members[0], comm_size(plan->comm), comm_rank(plan->comm)},
                         .chunk = plan->partition.chunk,
                         .x = buffer,
                         .type = plan->options.type,
                         .fresh = true,
                         .feedback = plan->options.error_feedback,
                         .gather = true,
                         .to = buffer};
    return exchange_run(plan, &exchange);
}

static Status run(AllreducePlan *plan, void *buffer) {
    TRY(transfer_agree(plan));
    switch (plan->algorithm) {
    case ALLREDUCE_ONE_SHOT:
        return one_shot_run(plan, buffer);
    case ALLREDUCE_RING:
        return ring_run(plan, buffer);
    case ALLREDUCE_TWO_LEVEL:
        return two_level_run(plan, buffer);
    default:
        return scatter_gather(plan, buffer);
    }
}

Status allreduce_plan_run(AllreducePlan *plan, void *buffer) {
    if (comm_size(plan->comm) > 1) {
        TRY(comm_begin(plan->comm, "allreduce", plan->options.timeout_s));
        TRY(comm_end(plan->comm, run(plan, buffer)));
    }
    return STATUS_OK;
}

Status allreduce_check_replicas(Comm *comm, const void *data, size_t bytes) {
    struct {
        uint64_t bytes, hash;
    } mine = {bytes, hash_bytes(data, bytes, 0)};
    TRY(comm_begin(comm, "check of replicas", 0));
    return comm_end(comm, comm_agree(comm, &mine, sizeof mine));
}

int64_t allreduce_plan_elems(const AllreducePlan *plan) { return plan->elems; }

AllreduceAlgorithm allreduce_plan_algorithm(const AllreducePlan *plan) { return plan->algorithm; }

float *allreduce_plan_residual(AllreducePlan *plan) { return plan->residual; }
