/* Sums on GPUs of which nothing is quantised: which of them our kernels do, and how they are divided for exact.cu.
 * Small ones, for which NCCL takes longer; and all of them where there is no NCCL, or none for their type. */
#include "allreduce/device/state.h"
#include "base/checked.h"

#define LIMIT_VARIABLE "CGXFFCV_COMM_EXACT_KIB" /* the largest that are not left to NCCL */
#define MOST_KIB (1 << 20)
#define TWO_RANKS_KIB 4096
#define MORE_RANKS_KIB 1024
#define SPREAD_BYTES 600000.0 /* that a link carries in the time of one more exchange of flags */
#define BLOCK_BYTES 16384     /* of a block's place: one or two accesses per thread */
#define MOST_BLOCKS 128
#define UNIT 16

static uint64_t ceil_divide(uint64_t value, uint64_t by) { return (value + by - 1) / by; }

bool allreduce_exact_asked(const AllreduceSetup *setup) {
    AllreduceAlgorithm algorithm = setup->options.algorithm;
    return algorithm == ALLREDUCE_ONE_SHOT || algorithm == ALLREDUCE_SRA;
}

bool allreduce_exact_can(const AllreduceSetup *setup) {
    int size = comm_size(setup->comm);
    bool can = setup->exact && setup->options.type <= ALLREDUCE_BF16 && setup->options.op <= ALLREDUCE_AVERAGE &&
               size > 1 && size <= EXCHANGE_MAX_RANKS && !comm_is_disconnected(setup->comm);
    for (int i = 0; can && i < setup->extent_count; i++) {
        AllreduceAlgorithm algorithm = setup->extents[i].algorithm;
        can = setup->extents[i].elems > 0 && algorithm != ALLREDUCE_RING && algorithm != ALLREDUCE_TWO_LEVEL;
    }
    return can;
}

static uint64_t exact_bytes_of(const AllreduceSetup *setup, const AllreduceExtent *extent) {
    return (uint64_t)extent->elems * allreduce_type_bytes(setup->options.type);
}

Status allreduce_exact_wanted(const AllreduceSetup *setup, bool *wanted) {
    int64_t limit = comm_size(setup->comm) == 2 ? TWO_RANKS_KIB : MORE_RANKS_KIB;
    TRY(allreduce_limit_kib(setup->comm, LIMIT_VARIABLE, 0, MOST_KIB, &limit));
    TRY(comm_begin(setup->comm, "agreement on " LIMIT_VARIABLE, 0));
    TRY(comm_end(setup->comm, comm_agree(setup->comm, &limit, sizeof limit)));
    *wanted = allreduce_exact_asked(setup) || exact_bytes_of(setup, &setup->extents[0]) <= (uint64_t)limit << 10;
    return STATUS_OK;
}

void allreduce_exact_choose(const AllreduceSetup *setup, const AllreduceExtent *extent, DeviceExtent *own) {
    double others = (double)comm_size(setup->comm) - 1, bytes = (double)exact_bytes_of(setup, extent);
    double spared = bytes * (others - 2 * others / (others + 1));
    own->one_shot = setup->options.algorithm == ALLREDUCE_ONE_SHOT ||
                    (setup->options.algorithm != ALLREDUCE_SRA && spared <= SPREAD_BYTES);
}

/* The bytes of a run that a rank adds, when the run is divided into units of one part for each rank. */
static uint64_t owned_by(uint64_t bytes, uint64_t slice, uint64_t ranks, uint64_t rank) {
    uint64_t rest = bytes % (slice * ranks), before = rank * slice;
    uint64_t last = rest <= before ? 0 : rest - before < slice ? rest - before : slice;
    return bytes / (slice * ranks) * slice + last;
}

void allreduce_exact_cut(const AllreduceSetup *setup, const AllreduceExtent *extent, const ExchangeWindow *window,
                         DeviceExtent *own) {
    uint64_t bytes = exact_bytes_of(setup, extent), ranks = (uint64_t)comm_size(setup->comm);
    uint64_t row = round_up(ceil_divide(bytes, own->one_shot ? 1 : ranks), UNIT); /* of a run, in one round */
    uint64_t blocks = ceil_divide(row, BLOCK_BYTES), most = window->region_bytes / UNIT;
    if (blocks > MOST_BLOCKS) blocks = MOST_BLOCKS;
    if (blocks > most) blocks = most;
    if (blocks > window->flags) blocks = window->flags;
    uint64_t slice = round_up(ceil_divide(row, blocks), UNIT), room = window->region_bytes / blocks / UNIT * UNIT;
    if (slice > room) slice = room;
    own->exact = (ExchangeExact){.elems = extent->elems,
                                 .places = (uint32_t)blocks,
                                 .rounds = (uint32_t)ceil_divide(row, slice * blocks),
                                 .slice = (uint32_t)slice,
                                 .spread = !own->one_shot};
    uint64_t owned = owned_by(bytes, slice, ranks, (uint64_t)comm_rank(setup->comm));
    own->wire_bytes = own->one_shot ? bytes * (ranks - 1) : bytes - owned + owned * (ranks - 1);
}
