/* Where in a workspace's blocks the tiles of an extent are: in regions. For another rank, a rank has in this order:
 *
 * one_shot     terms
 * sra          terms, results
 * two_level    for a rank of its node: terms for each part of that rank's shard, then results of each part of its own;
 *              for the rank with its local rank on another node: terms, results
 *
 * Halves of data and of flags are at the same place for every extent, so that a round does not touch what the previous
 * one uses, and finds flags that are older than itself. */
#include "allreduce/device/state.h"

/* How blocks are divided. */
typedef struct Layout {
    const ExchangeWorkspace *workspace;
    uint64_t region_bytes;
    uint32_t flags;
    int self;
} Layout;

static Layout layout_for(const DeviceEngine *engine, const DeviceExtent *extent) {
    const ExchangeWorkspace *workspace = engine->workspace;
    int nodes = comm_nodes(engine->setup->comm);
    uint32_t each = extent->one_shot ? 1 : extent->two_level && workspace->inside < nodes ? 2 * (uint32_t)nodes : 2;
    return (Layout){.workspace = workspace,
                    .region_bytes = workspace->part_bytes / each / EXCHANGE_ALIGNMENT * EXCHANGE_ALIGNMENT,
                    .flags = workspace->part_flags / each,
                    .self = comm_rank(engine->setup->comm)};
}

static ExchangeRegion region_in(const Layout *layout, ExchangeBlock block, int number, int rank) {
    uint8_t *flags = block.at + (uint64_t)block.parts * layout->workspace->part_bytes;
    return (ExchangeRegion){.at = block.at + (uint64_t)number * layout->region_bytes,
                            .flags = (uint32_t *)(void *)flags + (uint64_t)number * layout->flags,
                            .half = (uint32_t)block.half_bytes,
                            .rank = rank};
}

static ExchangeRegion outgoing(const Layout *layout, int rank, int number) {
    return region_in(layout, allreduce_workspace_outgoing(layout->workspace, rank), number, rank);
}

/* This rank's own; without memory (unless `written`) if its elements are added directly. */
static ExchangeRegion own_region(const Layout *layout, bool written) {
    return (ExchangeRegion){.at = written ? layout->workspace->own : NULL, .rank = layout->self};
}

static void set_row(const Layout *layout, ExchangeWindow *window, int row, int rank, int number) {
    ExchangeBlock block = allreduce_workspace_incoming(layout->workspace, rank);
    window->from[row] = region_in(layout, block, number, rank);
    window->far |= (uint32_t)block.far << row;
}

static void fill_flat(const Layout *layout, const DeviceExtent *extent, int ranks, ExchangeWindow *window) {
    window->owners = window->sinks = ranks;
    for (int r = 0; r < ranks; r++) {
        if (r == layout->self) {
            window->to[r] = own_region(layout, false);
            window->all[r] = window->from[EXCHANGE_RESULTS + r] = own_region(layout, true);
            window->from[r] = own_region(layout, extent->one_shot);
            continue;
        }
        window->to[r] = outgoing(layout, r, 0);
        window->all[r] = outgoing(layout, r, extent->one_shot ? 0 : 1);
        set_row(layout, window, r, r, 0);
        if (!extent->one_shot) set_row(layout, window, EXCHANGE_RESULTS + r, r, 1);
    }
}

/* What goes to the rank with a local rank on this node and comes from it: terms and results of every part. */
static void fill_local(const Layout *layout, const Comm *comm, int local_rank, ExchangeWindow *window,
                       ExchangeLevels *levels) {
    int nodes = comm_nodes(comm), local_size = comm_local_size(comm), node = comm_node(comm);
    int rank = comm_rank_at(comm, node, local_rank);
    bool own = rank == layout->self;
    for (int part = 0; part < nodes; part++) {
        int owner = local_rank * nodes + part, at = part * local_size + local_rank;
        levels->terms[at] = own_region(layout, false);
        levels->pass[at] = own_region(layout, false);
        if (own) continue;
        levels->terms[at] = region_in(layout, allreduce_workspace_incoming(layout->workspace, rank), part, rank);
        levels->pass[at] = outgoing(layout, rank, nodes + part);
        window->to[owner] = outgoing(layout, rank, part);
        set_row(layout, window, EXCHANGE_RESULTS + owner, rank, nodes + part);
    }
    if (!own) window->all[window->sinks++] = levels->pass[node * local_size + local_rank];
}

/* The same for the rank with this local rank on another node. */
static void fill_remote(const Layout *layout, const Comm *comm, int part, ExchangeWindow *window) {
    int owner = comm_local_rank(comm) * comm_nodes(comm) + part;
    int rank = comm_rank_at(comm, part, comm_local_rank(comm));
    if (rank == layout->self) {
        window->to[owner] = window->from[part] = own_region(layout, false);
        window->from[EXCHANGE_RESULTS + owner] = own_region(layout, true);
        return;
    }
    window->to[owner] = outgoing(layout, rank, 0);
    window->all[window->sinks++] = outgoing(layout, rank, 1);
    set_row(layout, window, part, rank, 0);
    set_row(layout, window, EXCHANGE_RESULTS + owner, rank, 1);
}

ExchangeWindow allreduce_regions_of(const DeviceEngine *engine, const DeviceExtent *extent, ExchangeLevels *levels) {
    const Comm *comm = engine->setup->comm;
    const Layout layout = layout_for(engine, extent);
    ExchangeWindow window = {.region_bytes = layout.region_bytes, .flags = layout.flags};
    if (!extent->two_level) {
        fill_flat(&layout, extent, comm_size(comm), &window);
        return window;
    }
    window.owners = comm_size(comm);
    window.all[window.sinks++] = own_region(&layout, true);
    for (int part = 0; part < comm_nodes(comm); part++) fill_remote(&layout, comm, part, &window);
    for (int local_rank = 0; local_rank < comm_local_size(comm); local_rank++)
        fill_local(&layout, comm, local_rank, &window, levels);
    levels->local_size = comm_local_size(comm);
    levels->local_rank = comm_local_rank(comm);
    levels->shard = levels->local_rank * comm_nodes(comm);
    return window;
}
