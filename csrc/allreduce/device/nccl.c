/* The engine that sums on GPUs with NCCL, on a stream of its own, after whatever produces the elements. Owns that
 * stream and its events.
 *
 * On a slow link, a sum is sent in pieces of a few megabytes, each as soon as it is complete. On a fast one it is sent
 * as a whole at the end: otherwise NCCL's blocks would occupy multiprocessors that the grid of a concurrent convolution
 * counts on, which costs more than the sum. The first few elements go last, with what is complete only at the end: a
 * caller may mark a run there. */
#include <stdio.h>

#include "allreduce/device/state.h"
#include "allreduce/engine.h"
#include "base/memory.h"

#define PIECE_VARIABLE "CGXFFCV_COMM_PIECE_KIB"
#define PIECE_KIB 2048 /* long enough for the bandwidth, short enough to hide */
#define MEASURED_SUMS 8
#define WHOLE_BYTES ((size_t)64 << 20)
#define WHOLE_BYTES_PER_S 60e9 /* between direct links of GPUs (200e9 and more) and host memory (25e9) */
#define LATE_ELEMS INT64_C(64)

typedef struct NcclEngine {
    const AllreduceSetup *setup; /* borrowed */
    CommDevice *nccl;            /* owned */
    DeviceStream *stream;        /* owned */
    DeviceEvent *ready, *summed; /* owned */
    double bytes_per_s;          /* of a whole sum; 0 if not measured */
    int64_t *ends;               /* owned: where pieces may end */
    int64_t piece_elems;         /* the least in a piece */
    int end_count, next;         /* of `ends`; next: the first that has not been sent */
    int64_t sent;                /* [LATE_ELEMS, sent) has been sent */
} NcclEngine;

/* All ranks must divide a sum in the same way. */
static Status choose_piece(NcclEngine *engine) {
    int64_t kib = 0;
    TRY(allreduce_limit_kib(engine->setup->comm, PIECE_VARIABLE, 1, 1 << 20, &kib));
    size_t whole = (size_t)engine->setup->extents[0].elems * sizeof(float);
    bool fast = engine->bytes_per_s >= WHOLE_BYTES_PER_S && whole <= WHOLE_BYTES;
    engine->piece_elems = kib == 0 && fast ? INT64_MAX : ((kib == 0 ? PIECE_KIB : kib) << 10) / (int64_t)sizeof(float);
    return comm_agree(engine->setup->comm, &engine->piece_elems, sizeof engine->piece_elems);
}

static Status nccl_cut(NcclEngine *engine) {
    const WireMap *map = engine->setup->extents[0].map;
    int64_t begin = 0;
    TRY(memory_calloc((size_t)map->layers + 1, sizeof *engine->ends, &engine->ends));
    for (int i = 0; i < map->layers; i++) {
        int64_t end = wire_layer(map, i)->first + wire_layer(map, i)->elems;
        if (end - begin < engine->piece_elems) continue;
        engine->ends[engine->end_count++] = end;
        begin = end;
    }
    return STATUS_OK;
}

/* ---- runs ---- */

static void begin_run(NcclEngine *engine) {
    engine->next = 0;
    engine->sent = LATE_ELEMS;
}

/* Sums on the engine's stream, after the work that the caller's stream holds now. */
static Status send(NcclEngine *engine, const CommPiece *pieces, int count, DeviceStream *after) {
    TRY(device_event_record(engine->ready, after));
    TRY(device_stream_wait(engine->stream, engine->ready));
    bool average = engine->setup->options.op == ALLREDUCE_AVERAGE;
    return comm_device_allreduce(engine->nccl, pieces, count, COMM_F32, average, engine->stream);
}

static Status told(void *state, int64_t begin, int64_t end) {
    NcclEngine *engine = state;
    if (begin == 0) begin_run(engine);
    int64_t to = engine->sent;
    while (engine->next < engine->end_count && engine->ends[engine->next] <= end) to = engine->ends[engine->next++];
    if (to <= engine->sent) return STATUS_OK;
    CommPiece piece = {(float *)engine->setup->data + engine->sent, to - engine->sent};
    TRY(send(engine, &piece, 1, engine->setup->stream));
    engine->sent = to;
    return STATUS_OK;
}

/* Sums what has not been sent yet, and makes the caller's stream wait for all of it. */
static Status nccl_put(void *state, const AllreduceExtent *extent, void *buffer, DeviceStream *stream) {
    NcclEngine *engine = state;
    float *data = buffer;
    int64_t elems = extent->elems, late = elems < LATE_ELEMS ? elems : LATE_ELEMS;
    CommPiece pieces[2] = {{data, late}, {data + engine->sent, elems - engine->sent}};
    int count = engine->sent < elems ? 2 : 1;
    if (engine->sent == LATE_ELEMS) { /* nothing has been sent yet: one piece */
        pieces[0].elems = elems;
        count = 1;
    }
    begin_run(engine);
    TRY(send(engine, pieces, count, stream));
    TRY(device_event_record(engine->summed, engine->stream));
    return device_stream_wait(stream, engine->summed);
}

static Status nccl_wait(void *state, DeviceStream *stream, DeviceEvent *event) {
    const NcclEngine *engine = state;
    return comm_device_wait(engine->nccl, stream, event);
}

/* ---- making ---- */

static void nccl_destroy(void *state) {
    NcclEngine *engine = state;
    if (engine == NULL) return;
    comm_device_destroy(engine->nccl);
    device_event_destroy(engine->summed);
    device_event_destroy(engine->ready);
    device_stream_destroy(engine->stream);
    memory_free(engine->ends);
    memory_free(engine);
}

/* Does every sum that will be needed once, so that a run finds all connections made. */
static Status warm_up(NcclEngine *engine) {
    for (int i = 0; i < engine->setup->extent_count; i++) {
        const AllreduceExtent *extent = &engine->setup->extents[i];
        int64_t begin = 0;
        for (int k = 0; k < engine->end_count && engine->ends[k] <= extent->elems; k++) {
            TRY(told(engine, begin, engine->ends[k]));
            begin = engine->ends[k];
        }
        TRY(nccl_put(engine, extent, engine->setup->data, engine->setup->stream));
    }
    return nccl_wait(engine, engine->setup->stream, NULL);
}

/* Measures the best rate of the longest sum as a whole: the first one makes the connections, and others may wait for a
 * rank. All ranks get rank 0's. */
static Status nccl_measure(NcclEngine *engine) {
    const AllreduceExtent *extent = &engine->setup->extents[0];
    for (int i = 0; i < MEASURED_SUMS; i++) {
        float milliseconds = 0;
        TRY(nccl_put(engine, extent, engine->setup->data, engine->setup->stream));
        TRY(nccl_wait(engine, engine->setup->stream, NULL));
        TRY(device_event_elapsed(engine->ready, engine->summed, &milliseconds));
        double rate = milliseconds > 0 ? (double)extent->elems * sizeof(float) / (milliseconds * 1e-3) : 0;
        if (rate > engine->bytes_per_s) engine->bytes_per_s = rate;
    }
    return comm_broadcast(engine->setup->comm, 0, &engine->bytes_per_s, sizeof engine->bytes_per_s);
}

static Status nccl_prepare(NcclEngine *engine) {
    bool fixed = engine->setup->data != NULL;
    begin_run(engine);
    TRY(device_stream_create(&engine->stream));
    TRY(device_event_create(&engine->ready));
    TRY(device_event_create(&engine->summed));
    if (fixed) TRY(nccl_measure(engine));
    TRY(choose_piece(engine));
    TRY(nccl_cut(engine));
    return fixed ? warm_up(engine) : STATUS_OK;
}

static bool serves(const AllreduceSetup *setup, char *why) {
    if (!setup->on_device) return false;
    if (comm_size(setup->comm) == 1 && setup->data == NULL) {
        snprintf(why, ALLREDUCE_WHY_BYTES, "with one rank there is nothing to sum");
        return false;
    }
    bool sums = setup->options.type == ALLREDUCE_F32 && setup->options.op <= ALLREDUCE_AVERAGE;
    if ((!setup->exact || !sums) && why[0] == '\0') {
        snprintf(why, ALLREDUCE_WHY_BYTES, "%s are summed on the CPU",
                 !setup->exact                           ? "compressed gradients"
                 : setup->options.op > ALLREDUCE_AVERAGE ? "operations other than sums"
                                                         : "numbers other than float32, float16 and bfloat16");
    }
    return setup->exact && sums;
}

static Status nccl_create(AllreduceSetup *setup, char *why, void **state) {
    Status status = STATUS_OK;
    CommDevice *nccl = NULL;
    NcclEngine *engine = NULL;
    if (!serves(setup, why)) return STATUS_OK;
    TRY(allreduce_compare(setup, setup->extents, setup->extent_count));
    TRY(comm_device_create(setup->comm, &nccl, why));
    if (nccl == NULL) return STATUS_OK;
    TRY_GOTO(memory_calloc(1, sizeof *engine, &engine));
    engine->setup = setup;
    engine->nccl = nccl;
    nccl = NULL;
    TRY_GOTO(nccl_prepare(engine));
    *state = engine;
    engine = NULL;
done:
    comm_device_destroy(nccl);
    nccl_destroy(engine);
    return status;
}

/* ---- queries ---- */

static size_t nccl_explain(const void *state, char *text, size_t room) {
    const NcclEngine *engine = state;
    char how[80] = "as a whole";
    if (engine->end_count > 0 && engine->setup->data != NULL) {
        snprintf(how, sizeof how, "in pieces of at least %zu KiB during the backward pass",
                 (size_t)engine->piece_elems * sizeof(float) >> 10);
    }
    size_t used =
        (size_t)snprintf(text, room, "on the GPUs by %s, uncompressed, %s\n", comm_device_name(engine->nccl), how);
    size_t full = used < room ? used : room;
    if (engine->setup->options.costs == NULL) return used; /* as requested */
    return used + allreduce_describe_choice(engine->setup, text + full, room - full);
}

const AllreduceEngine allreduce_nccl = {.recordable = true,
                                        .create = nccl_create,
                                        .destroy = nccl_destroy,
                                        .told = told,
                                        .put = nccl_put,
                                        .wait = nccl_wait,
                                        .explain = nccl_explain};
