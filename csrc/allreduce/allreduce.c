/* The handle: what engines work on, the choice of one, and calls handed on to it. Owns both. */
#include "allreduce/allreduce.h"

#include <string.h>

#include "allreduce/engine.h"
#include "base/memory.h"

/* The first that serves does the work. */
static const AllreduceEngine *const engines[] = {&allreduce_nccl, &allreduce_host};

struct Allreduce {
    AllreduceSetup setup;
    const AllreduceEngine *engine;
    void *state;                 /* owned, of the engine */
    const AllreduceExtent *last; /* that ran last */
};

/* ---- making ---- */

/* How many layers an extent has. */
static Status count_layers(const AllreduceBuffer *buffer, int64_t elems, int *out) {
    int count = 0;
    int64_t end = 0;
    while (count < buffer->layer_count && end < elems) end += buffer->layers[count++].elems;
    if (end != elems) FAIL(STATUS_ARGUMENT, "%lld elements do not end with a layer", (long long)elems);
    *out = count;
    return STATUS_OK;
}

static const AllreduceExtent *find_extent(const AllreduceSetup *setup, int64_t elems) {
    for (int i = 0; i < setup->extent_count; i++) {
        if (setup->extents[i].elems == elems) return &setup->extents[i];
    }
    return NULL;
}

static Status add_extent(AllreduceSetup *setup, const AllreduceBuffer *buffer, int layer_count) {
    AllreduceExtent *extent = &setup->extents[setup->extent_count];
    TRY(allreduce_plan_create(setup->comm, buffer->layers, layer_count, &setup->options, &extent->plan));
    extent->elems = allreduce_plan_elems(extent->plan);
    setup->extent_count++;
    return STATUS_OK;
}

static Status add_extents(AllreduceSetup *setup, const AllreduceBuffer *buffer) {
    if (buffer->extents == NULL) return add_extent(setup, buffer, buffer->layer_count);
    if (buffer->extent_count < 1 || buffer->extent_count > ALLREDUCE_MAX_EXTENTS) {
        FAIL(STATUS_ARGUMENT, "a buffer is reduced over 1 to %d different lengths, not %d", ALLREDUCE_MAX_EXTENTS,
             buffer->extent_count);
    }
    for (int i = 0; i < buffer->extent_count; i++) {
        int layer_count = 0;
        if (find_extent(setup, buffer->extents[i]) != NULL) continue;
        TRY(count_layers(buffer, buffer->extents[i], &layer_count));
        TRY(add_extent(setup, buffer, layer_count));
    }
    return STATUS_OK;
}

static bool is_exact(const AllreduceBuffer *buffer, const AllreduceOptions *options) {
    bool exact = options->bits == ALLREDUCE_UNCOMPRESSED;
    for (int i = 0; i < buffer->layer_count; i++) {
        exact = exact && (buffer->layers[i].bits == 0 || buffer->layers[i].bits == ALLREDUCE_UNCOMPRESSED);
    }
    return exact || options->algorithm == ALLREDUCE_EXACT;
}

static Status fill_setup(AllreduceSetup *setup, Comm *comm, const AllreduceBuffer *buffer,
                         const AllreduceOptions *options) {
    setup->comm = comm;
    setup->options = *options;
    setup->exact = is_exact(buffer, options);
    setup->data = buffer->data;
    setup->stream = buffer->stream;
    if (setup->stream == NULL) {
        TRY(memory_calloc(1, sizeof *setup->run, &setup->run));
    } else {
        TRY(device_host_alloc(sizeof *setup->run, &setup->run));
        *setup->run = (AllreduceRun){0};
    }
    return add_extents(setup, buffer);
}

static void free_setup(AllreduceSetup *setup) {
    for (int i = 0; i < setup->extent_count; i++) allreduce_plan_destroy(setup->extents[i].plan);
    if (setup->stream == NULL) {
        memory_free(setup->run);
    } else {
        device_host_free(setup->run);
    }
}

static Status choose_engine(Allreduce *allreduce) {
    char why[ALLREDUCE_WHY_BYTES] = "";
    for (size_t i = 0; allreduce->state == NULL && i < sizeof engines / sizeof *engines; i++) {
        allreduce->engine = engines[i];
        TRY(engines[i]->create(&allreduce->setup, why, &allreduce->state));
    }
    return STATUS_OK;
}

Status allreduce_create(Comm *comm, const AllreduceBuffer *buffer, const AllreduceOptions *options, Allreduce **out) {
    Status status = STATUS_OK;
    Allreduce *allreduce = NULL;
    TRY(memory_calloc(1, sizeof *allreduce, &allreduce));
    TRY_GOTO(fill_setup(&allreduce->setup, comm, buffer, options));
    TRY_GOTO(choose_engine(allreduce));
    allreduce->last = allreduce->setup.extents;
    *out = allreduce;
    allreduce = NULL;
done:
    allreduce_destroy(allreduce);
    return status;
}

void allreduce_destroy(Allreduce *allreduce) {
    if (allreduce == NULL) return;
    if (allreduce->engine != NULL) allreduce->engine->destroy(allreduce->state);
    free_setup(&allreduce->setup);
    memory_free(allreduce);
}

/* ---- runs ---- */

/* Failures of communication have ended the run on all ranks; of one of a device they must hear. */
static Status tell_others(Allreduce *allreduce, Status status) {
    if (status != STATUS_CUDA) return status;
    ErrorRecord cause = *error_record();
    allreduce->engine->abort(allreduce->state, cause.message);
    return error_adopt(&cause);
}

Status allreduce_put(Allreduce *allreduce, void *buffer, int64_t elems) {
    const AllreduceExtent *extent = find_extent(&allreduce->setup, elems);
    if (extent == NULL) FAIL(STATUS_ARGUMENT, "nothing was made for runs over %lld elements", (long long)elems);
    allreduce->last = extent;
    TRY(tell_others(allreduce, allreduce->engine->put(allreduce->state, extent, buffer)));
    allreduce->setup.run->call++;
    return STATUS_OK;
}

Status allreduce_told(Allreduce *allreduce, int64_t begin, int64_t end) {
    if (allreduce->engine->told == NULL) return STATUS_OK;
    return tell_others(allreduce, allreduce->engine->told(allreduce->state, begin, end));
}

Status allreduce_wait(Allreduce *allreduce, DeviceStream *stream, DeviceEvent *event) {
    return allreduce->engine->wait(allreduce->state, stream, event);
}

bool allreduce_recordable(const Allreduce *allreduce) { return allreduce->engine->recordable; }

/* ---- questions ---- */

AllreduceAlgorithm allreduce_algorithm(const Allreduce *allreduce) {
    return allreduce_plan_algorithm(allreduce->setup.extents[0].plan);
}

int64_t allreduce_elems(const Allreduce *allreduce) { return allreduce->setup.extents[0].elems; }

AllreduceBytes allreduce_bytes(const Allreduce *allreduce, int64_t elems) {
    const AllreduceExtent *extent = find_extent(&allreduce->setup, elems);
    return extent == NULL ? (AllreduceBytes){0} : allreduce->engine->bytes(allreduce->state, extent);
}

size_t allreduce_explain(const Allreduce *allreduce, char *text, size_t bytes) {
    return allreduce->engine->explain(allreduce->state, text, bytes);
}

uint32_t allreduce_call(const Allreduce *allreduce) { return allreduce->setup.run->call; }

void allreduce_set_call(Allreduce *allreduce, uint32_t call) { allreduce->setup.run->call = call; }

float *allreduce_residual(Allreduce *allreduce, int64_t *elems) {
    *elems = allreduce->last->elems;
    return allreduce->engine->residual(allreduce->state);
}

Status allreduce_restore(Allreduce *allreduce, const float *residual, int64_t elems) {
    const AllreduceExtent *extent = find_extent(&allreduce->setup, elems);
    float *to = extent == NULL ? NULL : allreduce->engine->residual(allreduce->state);
    if (to == NULL) FAIL(STATUS_ARGUMENT, "this training keeps no residual of %lld elements", (long long)elems);
    memcpy(to, residual, (size_t)elems * sizeof *to);
    allreduce->last = extent;
    return STATUS_OK;
}
