/* The engine that runs on the CPU: every algorithm of docs/WIRE.md in host memory. A buffer in device memory is copied
 * to the host before a run and back after it, through page-locked memory. Nothing is allocated during a run. */
#include <stdio.h>
#include <string.h>

#include "allreduce/host/host.h"
#include "base/memory.h"

/* ---- making ---- */

/* The most that the maps of all extents need. */
typedef struct Need {
    size_t slice_elems, slice_values, slice_bytes;
    size_t kept[2], partial[2]; /* bytes, values */
    bool scales;
    AllreduceFeedback feedback;
} Need;

static void host_grow(size_t *most, uint64_t value) {
    if (value > *most) *most = value;
}

/* What ring and two-level store: the largest chunk twice, or this rank's shard. */
static void need_holdings(const AllreduceSetup *setup, const AllreduceExtent *extent, Need *need) {
    const WireMap *map = extent->map;
    bool ring = extent->algorithm == ALLREDUCE_RING, apart = !wire_sums_in_place(map);
    int nodes = comm_nodes(setup->comm), mine = comm_local_rank(setup->comm);
    if (!ring && extent->algorithm != ALLREDUCE_TWO_LEVEL) return;
    uint64_t shard_bytes = 0, shard_values = 0;
    for (int c = 0; c < map->chunks; c++) {
        const WireChunk *chunk = wire_chunk(map, c);
        for (int i = 0; ring && i < 2; i++) {
            host_grow(&need->kept[i], chunk->bytes);
            if (apart) host_grow(&need->partial[i], (uint64_t)chunk->values);
        }
        if (ring || c / nodes != mine) continue;
        shard_bytes += chunk->bytes;
        shard_values += (uint64_t)chunk->values;
    }
    host_grow(&need->kept[0], shard_bytes);
    if (apart) host_grow(&need->partial[0], shard_values);
}

static Need need_of(const AllreduceSetup *setup) {
    Need need = {0};
    for (int i = 0; i < setup->extent_count; i++) {
        const AllreduceExtent *extent = &setup->extents[i];
        host_grow(&need.slice_elems, (uint64_t)extent->map->max_slice_elems);
        host_grow(&need.slice_values, (uint64_t)extent->map->max_slice_values);
        host_grow(&need.slice_bytes, extent->map->max_slice_bytes);
        need.scales =
            need.scales || extent->feedback || extent->map->scale != 1.0 || extent->map->type != extent->map->wide_type;
        if (extent->feedback) need.feedback = extent->feedback;
        need_holdings(setup, extent, &need);
    }
    return need;
}

static Status make_scratch(HostEngine *host, const Need *need) {
    const WireMap *map = host->setup->extents[0].map;
    size_t values = need->slice_values, ranks = (size_t)comm_size(host->setup->comm);
    size_t wide_bytes = allreduce_type_bytes(map->wide_type);
    TRY(memory_alloc(values, wide_bytes, &host->sum));
    TRY(memory_alloc(need->scales ? values : 0, wide_bytes, &host->scaled));
    TRY(memory_alloc(need->feedback != ALLREDUCE_NO_FEEDBACK ? values : 0, sizeof(float), &host->lost));
    TRY(memory_alloc(need->feedback == ALLREDUCE_FEEDBACK_I8 ? need->slice_elems : 0, sizeof(float), &host->fed));
    size_t halves = host->setup->options.half_metadata ? need->slice_elems : 0;
    TRY(memory_alloc(halves, sizeof(uint16_t), &host->half));
    for (int i = 0; i < 2; i++) {
        TRY(memory_calloc(ranks, sizeof *host->members[i], &host->members[i]));
        if (need->kept[i] > 0) TRY(memory_alloc(need->kept[i], 1, &host->kept[i]));
        if (need->partial[i] > 0) TRY(memory_alloc(need->partial[i], sizeof(float), &host->partial[i]));
    }
    TRY(memory_calloc(ranks, sizeof *host->ranks, &host->ranks));
    TRY(memory_calloc(ranks, sizeof *host->shards, &host->shards));
    TRY(memory_calloc(ranks, sizeof *host->headers, &host->headers));
    if (comm_slots(host->setup->comm) >= (int)ranks) return STATUS_OK;
    TRY(memory_calloc(ranks, sizeof *host->stashed, &host->stashed));
    return memory_alloc(ranks, need->slice_bytes, &host->stash);
}

static void host_engine_destroy(void *state) {
    HostEngine *host = state;
    if (host == NULL) return;
    pool_destroy(host->pool);
    for (int i = 0; i < 2; i++) {
        memory_free(host->partial[i]);
        memory_free(host->kept[i]);
        memory_free(host->members[i]);
    }
    memory_free(host->stash);
    memory_free(host->stashed);
    memory_free(host->headers);
    memory_free(host->shards);
    memory_free(host->ranks);
    memory_free(host->half);
    memory_free(host->lost);
    memory_free(host->scaled);
    memory_free(host->sum);
    memory_free(host->codes.codes);
    memory_free(host->residual);
    memory_free(host->fed);
    if (host->copied != NULL) (void)device_event_synchronize(host->copied);
    device_event_destroy(host->copied);
    device_host_free(host->copy);
    memory_free(host);
}

static Status make_residual(HostEngine *host) {
    const AllreduceExtent *extent = allreduce_fed_extent(host->setup);
    void *block;
    if (extent == NULL) return STATUS_OK;
    if (extent->feedback == ALLREDUCE_FEEDBACK_F32) {
        return memory_calloc((size_t)extent->elems, sizeof *host->residual, &host->residual);
    }
    TRY(memory_calloc(allreduce_residual_bytes(extent->map), 1, &block));
    host->codes = allreduce_residual_codes(extent->map, block);
    return STATUS_OK;
}

static Status make_copy(HostEngine *host) {
    const AllreduceExtent *longest = &host->setup->extents[0];
    if (!host->setup->on_device || comm_size(host->setup->comm) == 1) return STATUS_OK;
    TRY(device_host_alloc((size_t)longest->elems * allreduce_type_bytes(longest->map->type), &host->copy));
    return device_event_create(&host->copied);
}

static Status host_engine_create(AllreduceSetup *setup, char *why, void **state) {
    Status status = STATUS_OK;
    HostEngine *host = NULL;
    Need need = need_of(setup);
    TRY(memory_calloc(1, sizeof *host, &host));
    host->setup = setup;
    snprintf(host->why, sizeof host->why, "%s", why);
    TRY_GOTO(make_scratch(host, &need));
    TRY_GOTO(make_residual(host));
    TRY_GOTO(make_copy(host));
    if (setup->options.threads > 1) TRY_GOTO(pool_create(setup->options.threads, &host->pool));
    *state = host;
    host = NULL;
done:
    host_engine_destroy(host);
    return status;
}

/* ---- runs ---- */

static Status scatter_gather(HostEngine *host, void *buffer) {
    const Comm *comm = host->setup->comm;
    Exchange exchange = {.group = {host->members[0], comm_size(comm), comm_rank(comm)},
                         .chunk = wire_chunk(host->map, 0),
                         .x = buffer,
                         .type = host->map->type,
                         .fresh = true,
                         .feedback = host->extent->feedback,
                         .gather = true,
                         .to = buffer};
    return allreduce_exchange(host, &exchange);
}

static Status host_engine_run(HostEngine *host, void *buffer) {
    for (int r = 0; r < comm_size(host->setup->comm); r++) host->members[0][r] = r;
    TRY(allreduce_agree(host->setup, host->extent, host->headers));
    switch (host->extent->algorithm) {
    case ALLREDUCE_ONE_SHOT:
        return allreduce_one_shot(host, buffer);
    case ALLREDUCE_RING:
        return allreduce_ring(host, buffer);
    case ALLREDUCE_TWO_LEVEL:
        return allreduce_two_level(host, buffer);
    default:
        return scatter_gather(host, buffer);
    }
}

static Status run_in_host_memory(HostEngine *host, void *buffer) {
    Comm *comm = host->setup->comm;
    TRY(comm_begin(comm, "allreduce", host->setup->options.timeout_s));
    return comm_end(comm, host_engine_run(host, buffer));
}

/* The previous run may still be copying its result to the device, on another stream. */
static Status run_in_device_memory(HostEngine *host, void *data, DeviceStream *stream) {
    size_t bytes = (size_t)host->extent->elems * allreduce_type_bytes(host->map->type);
    TRY(device_stream_wait(stream, host->copied));
    TRY(device_copy(host->copy, data, bytes, stream));
    TRY(device_stream_synchronize(stream));
    TRY(run_in_host_memory(host, host->copy));
    TRY(device_copy(data, host->copy, bytes, stream));
    return device_event_record(host->copied, stream);
}

static Status host_engine_put(void *state, const AllreduceExtent *extent, void *buffer, DeviceStream *stream) {
    HostEngine *host = state;
    if (comm_size(host->setup->comm) == 1) return STATUS_OK;
    host->extent = extent;
    host->map = extent->map;
    return host->setup->on_device ? run_in_device_memory(host, buffer, stream) : run_in_host_memory(host, buffer);
}

static Status host_engine_wait(void *state, DeviceStream *stream, DeviceEvent *event) {
    (void)state;
    return event == NULL ? device_stream_synchronize(stream) : device_event_synchronize(event);
}

/* ---- queries ---- */

static float *residual(const void *state) { return ((const HostEngine *)state)->residual; }

static Status copy_residual(const void *state, float *to, int64_t elems) {
    const HostEngine *host = state;
    if (host->residual == NULL) {
        allreduce_residual_unpack(allreduce_fed_extent(host->setup)->map, host->codes, elems, to);
    } else {
        memcpy(to, host->residual, (size_t)elems * sizeof *to);
    }
    return STATUS_OK;
}

static Status restore(void *state, const float *from, int64_t elems) {
    HostEngine *host = state;
    if (host->residual == NULL) {
        allreduce_residual_pack(allreduce_fed_extent(host->setup)->map, from, elems, host->codes);
    } else {
        memcpy(host->residual, from, (size_t)elems * sizeof *from);
    }
    return STATUS_OK;
}

static size_t host_engine_explain(const void *state, char *text, size_t room) {
    const HostEngine *host = state;
    size_t used = 0;
    if (host->setup->on_device) {
        used = (size_t)snprintf(text, room, "from the GPU through host memory (%s)\n", host->why);
    }
    const AllreduceExtent *extent = host->setup->extents;
    size_t full = used < room ? used : room;
    used += allreduce_describe(host->setup, extent->bytes, text + full, room - full);
    full = used < room ? used : room;
    return used +
           (size_t)snprintf(text + full, room - full, "slices: at most %u bytes\n", extent->map->max_slice_bytes);
}

const AllreduceEngine allreduce_host = {.agrees = true,
                                        .create = host_engine_create,
                                        .destroy = host_engine_destroy,
                                        .put = host_engine_put,
                                        .wait = host_engine_wait,
                                        .residual = residual,
                                        .read = copy_residual,
                                        .restore = restore,
                                        .explain = host_engine_explain,
                                        .stages = &allreduce_host_stages};
