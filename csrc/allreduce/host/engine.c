/* The engine of the processors: every algorithm of docs/WIRE.md in host memory. A buffer in device memory is copied
 * down before a run and up after it, through page-locked memory of this engine's. */
#include <stdio.h>
#include <string.h>

#include "allreduce/engine.h"
#include "base/memory.h"

typedef struct HostEngine {
    const AllreduceSetup *setup; /* borrowed */
    float *copy;                 /* owned, page-locked; with a stream */
    char why[ALLREDUCE_WHY_BYTES];
    const AllreduceExtent *last;
} HostEngine;

static void destroy(void *state) {
    HostEngine *engine = state;
    if (engine == NULL) return;
    device_host_free(engine->copy);
    memory_free(engine);
}

static Status create(const AllreduceSetup *setup, char *why, void **state) {
    Status status = STATUS_OK;
    HostEngine *engine = NULL;
    TRY(memory_calloc(1, sizeof *engine, &engine));
    engine->setup = setup;
    engine->last = setup->extents;
    memcpy(engine->why, why, sizeof engine->why);
    size_t elems = (size_t)setup->extents[0].elems;
    if (setup->stream != NULL) TRY_GOTO(device_host_alloc((elems + 1) * sizeof *engine->copy, &engine->copy));
    *state = engine;
    engine = NULL;
done:
    destroy(engine);
    return status;
}

static void move_residual(const AllreduceExtent *from, const AllreduceExtent *to) {
    float *old = allreduce_plan_residual(from->plan), *new = allreduce_plan_residual(to->plan);
    if (old == NULL || new == NULL || from == to) return;
    memcpy(new, old, (size_t)(from->elems < to->elems ? from->elems : to->elems) * sizeof *new);
}

static Status put_device(HostEngine *engine, const AllreduceExtent *extent, float *data) {
    size_t bytes = (size_t)extent->elems * sizeof *data;
    TRY(device_copy(engine->copy, data, bytes, engine->setup->stream));
    TRY(device_stream_synchronize(engine->setup->stream));
    TRY(allreduce_plan_run(extent->plan, engine->copy));
    return device_copy(data, engine->copy, bytes, engine->setup->stream);
}

static Status put(void *state, const AllreduceExtent *extent, void *buffer) {
    HostEngine *engine = state;
    move_residual(engine->last, extent);
    engine->last = extent;
    extent->plan->call = engine->setup->run->call;
    return engine->setup->stream == NULL ? allreduce_plan_run(extent->plan, buffer)
                                         : put_device(engine, extent, buffer);
}

static Status wait(void *state, DeviceStream *stream, DeviceEvent *event) {
    (void)state;
    return event == NULL ? device_stream_synchronize(stream) : device_event_synchronize(event);
}

static float *residual(void *state) { return allreduce_plan_residual(((HostEngine *)state)->last->plan); }

static AllreduceBytes bytes(const void *state, const AllreduceExtent *extent) {
    (void)state;
    return (AllreduceBytes){extent->plan->wire_bytes, extent->plan->plain_bytes};
}

static size_t explain(const void *state, char *text, size_t bytes) {
    const HostEngine *engine = state;
    int length = engine->setup->stream == NULL
                     ? 0
                     : snprintf(text, bytes, "from the GPU through host memory (%s)\n", engine->why);
    size_t done = length < 0 ? 0 : (size_t)length, used = done < bytes ? done : bytes;
    return done + allreduce_plan_explain(engine->setup->extents[0].plan, text + used, bytes - used);
}

static void abort_all(void *state, const char *message) {
    const HostEngine *engine = state;
    comm_abort(engine->setup->comm, message);
}

const AllreduceEngine allreduce_host = {.create = create,
                                        .destroy = destroy,
                                        .put = put,
                                        .wait = wait,
                                        .residual = residual,
                                        .bytes = bytes,
                                        .explain = explain,
                                        .abort = abort_all};
