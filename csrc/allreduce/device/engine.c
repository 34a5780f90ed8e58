/* The engines that sum on GPUs with our own kernels, which write codes or elements into each other's windows, in device
 * memory if the GPUs reach each other, else in page-locked host memory. The first does what is quantised and small
 * sums; the second, tried after NCCL, does what is left. Runs are enqueued on the caller's stream, may be captured, and
 * count themselves. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "allreduce/device/state.h"
#include "base/memory.h"

#define X(codec, word) [codec] = allreduce_exchange_##word,
static const ExchangeLaunch launchers[QUANT_CODEC_COUNT] = {QUANT_CODECS(X)};
#undef X

/* ---- runs ---- */

/* Which of the owners this rank is. */
static int own_number(const DeviceEngine *engine, const DeviceExtent *extent) {
    const Comm *comm = engine->setup->comm;
    return extent->two_level ? comm_local_rank(comm) * comm_nodes(comm) + comm_node(comm) : comm_rank(comm);
}

ExchangeRound allreduce_device_round(const DeviceEngine *engine, const DeviceExtent *extent, int number) {
    const DeviceShare *shares = extent->tiles.shares + (int64_t)number * extent->tiles.owners;
    const DeviceShare *last = &shares[extent->tiles.owners - 1], *own = &shares[own_number(engine, extent)];
    ExchangeRound round = {.begin = shares->tile,
                           .end = last->tile + last->tiles,
                           .number = (uint32_t)number,
                           .blocks = engine->setup->blocks};
    round.own_begin = extent->one_shot ? round.begin : own->tile;
    round.own_end = extent->one_shot ? round.begin : own->tile + own->tiles;
    if (number == extent->tiles.rounds - 1) round.rounds = (uint32_t)extent->tiles.rounds;
    return round;
}

Status allreduce_device_put(const DeviceEngine *engine, const DeviceExtent *extent, ExchangeKernel kernel,
                            const ExchangeRound *round, void *buffer, DeviceStream *stream) {
    const ExchangeLaunch launch = launchers[engine->setup->options.codec];
    const bool others = extent->tiles.quick < extent->tiles.count;
    ExchangeRound first = *round;
    if (others) first.rounds = 0; /* a later kernel is the run's last */
    if (extent->tiles.quick > 0) {
        const ExchangeLaunch quick = extent->plan.window.far ? allreduce_exchange_quick_far : allreduce_exchange_quick;
        TRY(quick(kernel, &extent->plan, &first, buffer, stream));
    }
    return others ? launch(kernel, &extent->plan, round, buffer, stream) : STATUS_OK;
}

static Status put_round(DeviceEngine *engine, const DeviceExtent *extent, int number, void *buffer,
                        DeviceStream *stream) {
    if (extent->two_level) return allreduce_levels_put(engine, extent, number, buffer, stream);
    ExchangeRound round = allreduce_device_round(engine, extent, number);
    bool pushes = round.own_end - round.own_begin < round.end - round.begin;
    if (pushes) TRY(allreduce_device_put(engine, extent, EXCHANGE_PUSH, &round, buffer, stream));
    if (round.own_begin < round.own_end) {
        TRY(allreduce_device_put(engine, extent, EXCHANGE_REDUCE, &round, buffer, stream));
    }
    return allreduce_device_put(engine, extent, EXCHANGE_GATHER, &round, buffer, stream);
}

static Status put_rounds(DeviceEngine *engine, const DeviceExtent *extent, void *buffer, DeviceStream *stream) {
    TRY(allreduce_workspace_begin_run(engine->workspace, stream));
    if (engine->setup->exact)
        TRY(allreduce_exchange_exact(&extent->plan, &extent->exact, engine->setup->blocks, buffer, stream));
    for (int i = 0; i < extent->tiles.rounds; i++) TRY(put_round(engine, extent, i, buffer, stream));
    return allreduce_workspace_end_run(engine->workspace, stream);
}

static Status device_engine_put(void *state, const AllreduceExtent *extent, void *buffer, DeviceStream *stream) {
    DeviceEngine *engine = state;
    const DeviceExtent *own = &engine->extents[extent - engine->setup->extents];
    TRY(comm_begin(engine->setup->comm, "sum on GPUs", 0));
    return comm_end(engine->setup->comm, put_rounds(engine, own, buffer, stream));
}

static Status device_engine_wait(void *state, DeviceStream *stream, DeviceEvent *event) {
    const DeviceEngine *engine = state;
    if (engine->workspace == NULL) return allreduce_external_wait(engine, stream, event);
    return comm_window_wait(engine->workspace->window, stream, event);
}

static Status set_call(void *state, uint32_t call) {
    DeviceEngine *engine = state;
    TRY(device_synchronize()); /* runs under way count themselves */
    engine->setup->run->call = call;
    TRY(device_copy(engine->call, &engine->setup->run->call, sizeof call, NULL));
    return device_stream_synchronize(NULL);
}

/* ---- making ---- */

static void device_engine_destroy(void *state) {
    DeviceEngine *engine = state;
    if (engine == NULL) return;
    for (int i = 0; i < ALLREDUCE_MAX_EXTENTS; i++) {
        DeviceExtent *extent = &engine->extents[i];
        allreduce_tiles_destroy(&extent->tiles);
        device_free(extent->on_device);
    }
    device_free(engine->codes.codes);
    device_free(engine->residual);
    device_free(engine->call);
    allreduce_workspace_leave(engine->workspace);
    allreduce_external_destroy(engine);
    memory_free(engine);
}

/* As the CPU's quantiser does it: multiplication if that gives the same bits. */
static void set_division(ExchangePlan *plan, double divisor) {
    int exponent;
    bool power = frexp(divisor, &exponent) == 0.5;
    plan->divides = !power;
    plan->divisor = power ? (float)(1.0 / divisor) : (float)divisor;
}

/* The part of a plan that options and map determine. */
static ExchangePlan plan_of(const DeviceEngine *engine, const AllreduceExtent *extent, const DeviceExtent *own) {
    const AllreduceSetup *setup = engine->setup;
    const AllreduceOptions *options = &setup->options;
    double timeout_s = options->timeout_s > 0 ? options->timeout_s : comm_timeout(setup->comm);
    double ranks = (double)comm_size(setup->comm), scale = extent->map->scale;
    bool levels = own->two_level;
    ExchangePlan plan = {.run = setup->run,
                         .call = engine->call,
                         .residual = extent->feedback ? engine->residual : NULL,
                         .codes = extent->feedback ? engine->codes : (ResidualCodes){NULL, NULL},
                         .tiles = own->on_device,
                         .ranks = levels ? comm_nodes(setup->comm) : comm_size(setup->comm),
                         .rank = levels ? comm_node(setup->comm) : comm_rank(setup->comm),
                         .self = comm_rank(setup->comm),
                         .one_shot = own->one_shot,
                         .wide = extent->map->raw_type != extent->map->type,
                         .stochastic = options->rounding == QUANT_STOCHASTIC,
                         .half_metadata = options->half_metadata,
                         .type = (QuantType)options->type,
                         .seed = options->seed,
                         .timeout_ns = (uint64_t)(timeout_s * 1e9),
                         .scale = (float)scale,
                         .unscaled = (float)(1.0 / scale)};
    set_division(&plan, options->op == ALLREDUCE_AVERAGE ? ranks * scale : 1.0);
    return plan;
}

ExchangePlan allreduce_device_plan(const DeviceEngine *engine, const AllreduceExtent *extent, DeviceExtent *own) {
    ExchangePlan plan = plan_of(engine, extent, own);
    const ExchangeWorkspace *workspace = engine->workspace;
    plan.external = workspace == NULL;
    plan.window = workspace == NULL ? engine->external.window : allreduce_regions_of(engine, own, &own->levels);
    plan.state = workspace == NULL ? engine->external.state : workspace->state;
    plan.status_words = workspace == NULL ? engine->external.status_words : comm_window_status_words(workspace->window);
    if (workspace != NULL) plan.send_queue = comm_window_send_queue(workspace->window);
    return plan;
}

/* Like allreduce_count_bytes. */
static uint64_t count_bytes(const DeviceEngine *engine, const DeviceExtent *extent) {
    const Comm *comm = engine->setup->comm;
    uint64_t others = (uint64_t)comm_size(comm) - 1, all = extent->tiles.bytes, shard = 0;
    if (extent->one_shot) return all * others;
    uint64_t own = extent->tiles.owned[own_number(engine, extent)];
    if (!extent->two_level) return all - own + own * others;
    uint64_t nodes = (uint64_t)comm_nodes(comm), local_size = (uint64_t)comm_local_size(comm);
    for (uint64_t m = 0; m < nodes; m++) shard += extent->tiles.owned[(uint64_t)comm_local_rank(comm) * nodes + m];
    return (all - shard) + (shard - own) + own * (nodes - 1) + shard * (local_size - 1);
}

Status allreduce_device_upload_tiles(DeviceExtent *extent) {
    size_t bytes = (size_t)extent->tiles.count * sizeof *extent->tiles.tiles;
    TRY(device_alloc(bytes, &extent->on_device));
    TRY(device_copy(extent->on_device, extent->tiles.tiles, bytes, NULL));
    TRY(device_stream_synchronize(NULL));
    memory_free(extent->tiles.tiles);
    extent->tiles.tiles = NULL;
    return STATUS_OK;
}

/* *fits: whether every bucket fits. */
static Status make_tiles(const DeviceEngine *engine, const AllreduceExtent *extent, DeviceExtent *own, bool *fits) {
    own->one_shot = extent->algorithm == ALLREDUCE_ONE_SHOT;
    own->two_level = extent->algorithm == ALLREDUCE_TWO_LEVEL;
    ExchangeWindow window = allreduce_regions_of(engine, own, &own->levels);
    DeviceRoom room = {(uint32_t)window.region_bytes, window.flags};
    TRY(allreduce_tiles_create(extent->map, own->one_shot, room, &own->tiles));
    *fits = own->tiles.count >= 0;
    if (!*fits) return STATUS_OK;
    own->wire_bytes = count_bytes(engine, own);
    return allreduce_device_upload_tiles(own);
}

static Status make_extent(DeviceEngine *engine, int number, bool *fits) {
    const AllreduceExtent *extent = &engine->setup->extents[number];
    DeviceExtent *own = &engine->extents[number];
    if (engine->setup->exact) {
        allreduce_exact_choose(engine->setup, extent, own);
        ExchangeWindow window = allreduce_regions_of(engine, own, &own->levels);
        allreduce_exact_cut(engine->setup, extent, &window, own);
    } else {
        TRY(make_tiles(engine, extent, own, fits));
        if (!*fits) return STATUS_OK;
    }
    own->plan = allreduce_device_plan(engine, extent, own);
    return STATUS_OK;
}

static Status make_residual(DeviceEngine *engine) {
    const AllreduceExtent *extent = allreduce_fed_extent(engine->setup);
    void *block;
    if (extent == NULL) return STATUS_OK;
    bool whole = extent->feedback == ALLREDUCE_FEEDBACK_F32;
    size_t bytes = whole ? (size_t)extent->elems * sizeof *engine->residual : allreduce_residual_bytes(extent->map);
    TRY(device_alloc(bytes, &block));
    if (whole) {
        engine->residual = block;
    } else {
        engine->codes = allreduce_residual_codes(extent->map, block);
    }
    return device_fill(block, 0, bytes, NULL);
}

static Status make_parts(DeviceEngine *engine, char *why, bool *fits) {
    const AllreduceSetup *setup = engine->setup;
    TRY(device_alloc(sizeof *engine->call, &engine->call));
    TRY(device_fill(engine->call, 0, sizeof *engine->call, NULL));
    TRY(make_residual(engine));
    if (engine->workspace == NULL) {
        TRY(allreduce_external_create(engine, fits));
        engine->extents[0].wire_bytes = *fits ? count_bytes(engine, &engine->extents[0]) : 0;
    }
    for (int i = 0; engine->workspace != NULL && i < setup->extent_count && *fits; i++)
        TRY(make_extent(engine, i, fits));
    if (!*fits) snprintf(why, ALLREDUCE_WHY_BYTES, "a bucket is larger than the GPUs' windows allow");
    return STATUS_OK;
}

/* The others must be notified of a failure, say for lack of GPU memory: they would wait for this rank in their next
 * operation, and this one for them when its workspace is destroyed. */
static Status make_extents(DeviceEngine *engine, char *why, bool *fits) {
    Comm *comm = engine->setup->comm;
    if (engine->workspace == NULL) return make_parts(engine, why, fits);
    TRY(comm_begin(comm, "making sums on GPUs", 0));
    return comm_end(comm, make_parts(engine, why, fits));
}

/* Why this engine does not serve, or NULL: the same on all ranks. */
static const char *refusal(const AllreduceSetup *setup) {
    const AllreduceOptions *options = &setup->options;
    int size = comm_size(setup->comm);
    if (options->type > ALLREDUCE_BF16 || options->op > ALLREDUCE_AVERAGE) return "not quantised";
    if (size == 1) return "one rank";
    if (size > EXCHANGE_MAX_RANKS) return "more than 16 ranks";
    for (int i = 0; i < setup->extent_count; i++) {
        AllreduceAlgorithm algorithm = setup->extents[i].algorithm;
        if (setup->extents[i].elems == 0) return "nothing to sum";
        bool levels = algorithm == ALLREDUCE_TWO_LEVEL && !comm_is_disconnected(setup->comm);
        if (algorithm != ALLREDUCE_ONE_SHOT && algorithm != ALLREDUCE_SRA && !levels) {
            return comm_is_disconnected(setup->comm) ? "only one_shot and sra run on GPUs"
                                                     : "only one_shot, sra and two_level run on GPUs";
        }
    }
    return NULL;
}

/* Makes the engine, with or without a workspace; *state is its state, or `why` says why there is none. */
static Status make(AllreduceSetup *setup, ExchangeWorkspace *workspace, char *why, void **state) {
    Status status = STATUS_OK;
    DeviceEngine *engine = NULL;
    bool fits = true;
    TRY_GOTO(memory_calloc(1, sizeof *engine, &engine));
    engine->setup = setup;
    engine->workspace = workspace;
    workspace = NULL;
    TRY_GOTO(make_extents(engine, why, &fits));
    if (fits) {
        *state = engine;
        engine = NULL;
    }
done:
    allreduce_workspace_leave(workspace);
    device_engine_destroy(engine);
    return status;
}

/* For exact sums: as the `fallback` after NCCL, or before it is tried. */
static Status create_exact(AllreduceSetup *setup, bool fallback, char *why, void **state) {
    ExchangeWorkspace *workspace = NULL;
    bool wanted = fallback;
    if (!setup->on_device || !allreduce_exact_can(setup)) return STATUS_OK;
    if (!fallback) {
        TRY(allreduce_compare(setup, setup->extents, setup->extent_count));
        TRY(allreduce_exact_wanted(setup, &wanted));
    }
    if (!wanted) return STATUS_OK;
    TRY(allreduce_workspace_join(setup->comm, &workspace, why));
    if (workspace == NULL) return STATUS_OK;
    if (!fallback && workspace->kind >= COMM_WINDOW_MIXED && !allreduce_exact_asked(setup)) {
        allreduce_workspace_leave(workspace);
        return STATUS_OK;
    }
    return make(setup, workspace, why, state);
}

/* NCCL's reason says more than the lack of windows. */
static Status create_fallback(AllreduceSetup *setup, char *why, void **state) {
    char ours[ALLREDUCE_WHY_BYTES];
    (void)why;
    return create_exact(setup, true, ours, state);
}

static Status create_external(AllreduceSetup *setup, const char *refused, char *why, void **state) {
    if (setup->exact) refused = "nothing is quantised";
    if (refused != NULL)
        FAIL(STATUS_ARGUMENT, "a sum whose messages the caller moves cannot run on a GPU here: %s", refused);
    TRY(make(setup, NULL, why, state));
    if (*state == NULL) FAIL(STATUS_ARGUMENT, "a message of more than 4 GiB cannot be moved by the caller");
    return STATUS_OK;
}

static Status device_engine_create(AllreduceSetup *setup, char *why, void **state) {
    ExchangeWorkspace *workspace = NULL;
    if (!setup->on_device) return STATUS_OK;
    const char *refused = setup->exact ? NULL : refusal(setup);
    if (comm_is_disconnected(setup->comm)) return create_external(setup, refused, why, state);
    if (setup->exact) return create_exact(setup, false, why, state);
    if (refused != NULL) {
        snprintf(why, ALLREDUCE_WHY_BYTES, "%s", refused);
        return STATUS_OK;
    }
    TRY(allreduce_compare(setup, setup->extents, setup->extent_count));
    TRY(allreduce_workspace_join(setup->comm, &workspace, why));
    if (workspace == NULL) return STATUS_OK;
    Status status = workspace->kind == COMM_WINDOW_STAGED ? allreduce_settle(setup, ALLREDUCE_LINK_BUS) : STATUS_OK;
    if (status == STATUS_OK) return make(setup, workspace, why, state);
    allreduce_workspace_leave(workspace);
    return status;
}

/* ---- the residual ---- */

static float *residual_at(const void *state) {
    (void)state;
    return NULL;
}

static Status copy_now(void *to, const void *from, size_t bytes) {
    TRY(device_copy(to, from, bytes, NULL));
    return device_stream_synchronize(NULL);
}

/* All codes in host memory; to be freed. */
static Status fetch_codes(const DeviceEngine *engine, const WireMap *map, ResidualCodes *out) {
    void *block;
    size_t bytes = allreduce_residual_bytes(map);
    TRY(memory_alloc(bytes, 1, &block));
    *out = allreduce_residual_codes(map, block);
    return copy_now(block, engine->codes.codes, bytes);
}

static Status copy_residual(const void *state, float *to, int64_t elems) {
    const DeviceEngine *engine = state;
    const WireMap *map = allreduce_fed_extent(engine->setup)->map;
    ResidualCodes codes = {0};
    if (engine->residual != NULL) return copy_now(to, engine->residual, (size_t)elems * sizeof *to);
    Status status = fetch_codes(engine, map, &codes);
    if (status == STATUS_OK) allreduce_residual_unpack(map, codes, elems, to);
    memory_free(codes.codes);
    return status;
}

static Status restore(void *state, const float *residual, int64_t elems) {
    DeviceEngine *engine = state;
    const WireMap *map = allreduce_fed_extent(engine->setup)->map;
    ResidualCodes codes = {0};
    if (engine->residual != NULL) return copy_now(engine->residual, residual, (size_t)elems * sizeof *residual);
    Status status = fetch_codes(engine, map, &codes); /* those after `elems` stay */
    if (status == STATUS_OK) {
        allreduce_residual_pack(map, residual, elems, codes);
        status = copy_now(engine->codes.codes, codes.codes, allreduce_residual_bytes(map));
    }
    memory_free(codes.codes);
    return status;
}

/* ---- queries ---- */

static AllreduceBytes device_engine_bytes_of(const void *state, const AllreduceExtent *extent) {
    const DeviceEngine *engine = state;
    uint64_t wire = engine->extents[extent - engine->setup->extents].wire_bytes;
    return (AllreduceBytes){wire, engine->setup->exact ? wire : extent->bytes.plain};
}

/* Where kernels write for the ranks of their node, or for all ranks if none is reached in place. */
static const char *where_of(const ExchangeWorkspace *workspace) {
    static const char *const where[] = {[COMM_WINDOW_PEER] = "each other's memory",
                                        [COMM_WINDOW_STAGED] = "page-locked host memory",
                                        [COMM_WINDOW_FORWARDED] = "host memory, from where it is sent on"};
    return workspace == NULL ? "messages that the caller moves" : where[comm_window_inside(workspace->window)];
}

static size_t device_engine_explain(const void *state, char *text, size_t room) {
    const DeviceEngine *engine = state;
    const DeviceExtent *extent = &engine->extents[0];
    const ExchangeWorkspace *workspace = engine->workspace;
    bool exact = engine->setup->exact;
    bool mixed = workspace != NULL && workspace->kind == COMM_WINDOW_MIXED &&
                 comm_window_inside(workspace->window) != COMM_WINDOW_FORWARDED;
    const char *between = mixed ? " and, between nodes, into host memory, from where it is sent on" : "";
    int rounds = exact ? (int)extent->exact.rounds : extent->tiles.rounds;
    const char *how = !exact             ? ""
                      : extent->one_shot ? ", uncompressed, each adding everything"
                                         : ", uncompressed, each adding a part";
    size_t used = (size_t)snprintf(text, room, "on the GPUs by kernels that write into %s%s, in %d round%s%s\n",
                                   where_of(workspace), between, rounds, rounds == 1 ? "" : "s", how);
    size_t full = used < room ? used : room;
    AllreduceBytes sent = device_engine_bytes_of(state, engine->setup->extents);
    return used + allreduce_describe(engine->setup, sent, text + full, room - full);
}

static void device_engine_stop(void *state, const char *message) {
    const DeviceEngine *engine = state;
    (void)message;
    if (engine->workspace != NULL) comm_window_abort(engine->workspace->window);
}

const AllreduceEngine allreduce_device = {.recordable = true,
                                          .counts = true,
                                          .create = device_engine_create,
                                          .destroy = device_engine_destroy,
                                          .put = device_engine_put,
                                          .wait = device_engine_wait,
                                          .set_call = set_call,
                                          .residual = residual_at,
                                          .read = copy_residual,
                                          .restore = restore,
                                          .bytes = device_engine_bytes_of,
                                          .explain = device_engine_explain,
                                          .abort = device_engine_stop,
                                          .external = &allreduce_device_external};

const AllreduceEngine allreduce_device_fallback = {.recordable = true,
                                                   .counts = true,
                                                   .create = create_fallback,
                                                   .destroy = device_engine_destroy,
                                                   .put = device_engine_put,
                                                   .wait = device_engine_wait,
                                                   .set_call = set_call,
                                                   .bytes = device_engine_bytes_of,
                                                   .explain = device_engine_explain,
                                                   .abort = device_engine_stop};
