/* The handle: what engines work on, the choice of one, and calls passed on to it. Owns both. */
#include "allreduce/allreduce.h"

#include <string.h>

#include "allreduce/engine.h"
#include "base/memory.h"

/* The first that serves does the work. */
static const AllreduceEngine *const engines[] = {&allreduce_device, &allreduce_nccl, &allreduce_device_fallback,
                                                 &allreduce_host};

struct Allreduce {
    AllreduceSetup setup;
    const AllreduceEngine *engine;
    void *state;                 /* owned, of the engine */
    const AllreduceExtent *last; /* that ran last */
};

/* ---- making ---- */

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
    TRY_GOTO(allreduce_setup_fill(&allreduce->setup, comm, buffer, options));
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
    allreduce_setup_free(&allreduce->setup);
    memory_free(allreduce);
}

/* ---- runs ---- */

/* A failure of communication has ended the run on all ranks; of a device's failure the others must be notified. */
static Status notify_others(Allreduce *allreduce, Status status) {
    if (status != STATUS_CUDA) return status;
    ErrorRecord cause = *error_record();
    comm_abort(allreduce->setup.comm, cause.message);
    if (allreduce->engine->abort != NULL) allreduce->engine->abort(allreduce->state, cause.message);
    return error_adopt(&cause);
}

Status allreduce_put(Allreduce *allreduce, void *buffer, int64_t elems, DeviceStream *stream) {
    const AllreduceSetup *setup = &allreduce->setup;
    const AllreduceExtent *extent = allreduce_find_extent(setup, elems);
    if (extent == NULL) FAIL(STATUS_ARGUMENT, "this plan was not made for runs over %lld elements", (long long)elems);
    allreduce->last = extent;
    if (setup->compares && !allreduce->engine->agrees) TRY(allreduce_compare(setup, extent, 1));
    TRY(notify_others(allreduce, allreduce->engine->put(allreduce->state, extent, buffer, stream)));
    allreduce->setup.next++;
    if (!allreduce->engine->counts) setup->run->call++;
    return STATUS_OK;
}

Status allreduce_told(Allreduce *allreduce, int64_t begin, int64_t end) {
    if (allreduce->engine->told == NULL || allreduce->setup.data == NULL) return STATUS_OK;
    return notify_others(allreduce, allreduce->engine->told(allreduce->state, begin, end));
}

Status allreduce_wait(Allreduce *allreduce, DeviceStream *stream, DeviceEvent *event) {
    return allreduce->engine->wait(allreduce->state, stream, event);
}

void allreduce_set_blocks(Allreduce *allreduce, int blocks) { allreduce->setup.blocks = blocks; }

bool allreduce_recordable(const Allreduce *allreduce) { return allreduce->engine->recordable; }

/* ---- runs in stages ---- */

static Status check_stage(const Allreduce *allreduce, AllreduceStage stage) {
    const AllreduceExtent *extent = &allreduce->setup.extents[0];
    if (allreduce->engine->stages == NULL || extent->algorithm == ALLREDUCE_RING) {
        FAIL(STATUS_ARGUMENT, "the messages of this allreduce (%s) cannot be moved by its caller: use sra or one_shot",
             allreduce_algorithm_name((int)extent->algorithm));
    }
    if (stage == ALLREDUCE_INSIDE && extent->algorithm != ALLREDUCE_TWO_LEVEL) {
        FAIL(STATUS_ARGUMENT, "only two_level has a stage inside nodes, and this is %s",
             allreduce_algorithm_name((int)extent->algorithm));
    }
    return STATUS_OK;
}

Status allreduce_stage_messages(const Allreduce *allreduce, AllreduceStage stage, AllreduceMessages *out) {
    *out = (AllreduceMessages){0};
    if (stage == ALLREDUCE_INSIDE && allreduce->setup.extents[0].algorithm != ALLREDUCE_TWO_LEVEL) return STATUS_OK;
    TRY(check_stage(allreduce, stage));
    *out = allreduce_stage_measure(&allreduce->setup, &allreduce->setup.extents[0], stage);
    return STATUS_OK;
}

uint64_t allreduce_stage_bytes(const Allreduce *allreduce, AllreduceStage stage, int member) {
    return allreduce_stage_message(&allreduce->setup, &allreduce->setup.extents[0], stage, member);
}

Status allreduce_stage_encode(Allreduce *allreduce, AllreduceStage stage, const void *buffer, void *messages) {
    TRY(check_stage(allreduce, stage));
    return allreduce->engine->stages->encode(allreduce->state, &allreduce->setup.extents[0], stage, buffer, messages);
}

Status allreduce_stage_reduce(Allreduce *allreduce, AllreduceStage stage, void *buffer, const void *messages,
                              void *result) {
    const AllreduceExtent *extent = &allreduce->setup.extents[0];
    TRY(check_stage(allreduce, stage));
    if (extent->algorithm == ALLREDUCE_ONE_SHOT) FAIL(STATUS_ARGUMENT, "one_shot has nothing to reduce: finish it");
    return allreduce->engine->stages->reduce(allreduce->state, extent, stage, buffer, messages, result);
}

Status allreduce_stage_finish(Allreduce *allreduce, void *buffer, const void *gathered) {
    TRY(check_stage(allreduce, ALLREDUCE_ACROSS));
    TRY(allreduce->engine->stages->finish(allreduce->state, &allreduce->setup.extents[0], buffer, gathered));
    allreduce->setup.run->call++;
    return STATUS_OK;
}

static Status check_external(const Allreduce *allreduce) {
    bool external = comm_is_disconnected(allreduce->setup.comm) && allreduce->engine->external != NULL;
    if (!external) FAIL(STATUS_ARGUMENT, "the messages of this allreduce are not moved by its caller, or not on a GPU");
    return STATUS_OK;
}

Status allreduce_external_space(const Allreduce *allreduce, AllreduceSpace *out) {
    TRY(check_external(allreduce));
    *out = allreduce->engine->external->space(allreduce->state);
    return STATUS_OK;
}

Status allreduce_external_bind(Allreduce *allreduce, void *window, void *outgoing) {
    TRY(check_external(allreduce));
    return allreduce->engine->external->bind(allreduce->state, window, outgoing);
}

Status allreduce_external_step(Allreduce *allreduce, AllreduceStep step, void *buffer, DeviceStream *stream) {
    TRY(check_external(allreduce));
    return allreduce->engine->external->step(allreduce->state, step, buffer, stream);
}

/* ---- queries ---- */

const AllreduceSetup *allreduce_setup_of(const Allreduce *allreduce) { return &allreduce->setup; }

AllreduceAlgorithm allreduce_algorithm(const Allreduce *allreduce) { return allreduce->setup.extents[0].algorithm; }

int64_t allreduce_elems(const Allreduce *allreduce) { return allreduce->setup.extents[0].elems; }

AllreduceBytes allreduce_bytes(const Allreduce *allreduce, int64_t elems) {
    const AllreduceExtent *extent = allreduce_find_extent(&allreduce->setup, elems);
    if (extent == NULL) return (AllreduceBytes){0};
    return allreduce->engine->bytes == NULL ? extent->bytes : allreduce->engine->bytes(allreduce->state, extent);
}

size_t allreduce_explain(const Allreduce *allreduce, char *text, size_t bytes) {
    return allreduce->engine->explain(allreduce->state, text, bytes);
}

uint32_t allreduce_call(const Allreduce *allreduce) { return allreduce->setup.run->call; }

Status allreduce_set_call(Allreduce *allreduce, uint32_t call) {
    bool stands = allreduce->setup.next == call && allreduce->setup.run->call == call;
    allreduce->setup.next = call;
    if (stands) return STATUS_OK;
    if (allreduce->engine->counts) return allreduce->engine->set_call(allreduce->state, call);
    allreduce->setup.run->call = call;
    return STATUS_OK;
}

static bool keeps_residual(const Allreduce *allreduce, const AllreduceExtent *extent) {
    return extent != NULL && extent->feedback && allreduce->engine->residual != NULL;
}

bool allreduce_feeds_back(const Allreduce *allreduce) { return keeps_residual(allreduce, allreduce->last); }

int64_t allreduce_residual_elems(const Allreduce *allreduce) {
    return allreduce_feeds_back(allreduce) ? allreduce->last->elems : 0;
}

float *allreduce_residual_at(const Allreduce *allreduce) {
    return allreduce_feeds_back(allreduce) ? allreduce->engine->residual(allreduce->state) : NULL;
}

Status allreduce_residual_copy(const Allreduce *allreduce, float *to) {
    if (!allreduce_feeds_back(allreduce)) return STATUS_OK;
    return allreduce->engine->read(allreduce->state, to, allreduce->last->elems);
}

/* A run never leaves a residual that is not finite. */
static Status check_finite(const float *residual, int64_t elems) {
    for (int64_t i = 0; i < elems; i++) {
        if (__builtin_isfinite(residual[i])) continue;
        FAIL(STATUS_ARGUMENT, "element %lld of the residual is %g: it must be finite", (long long)i,
             (double)residual[i]);
    }
    return STATUS_OK;
}

Status allreduce_restore(Allreduce *allreduce, const float *residual, int64_t elems) {
    const AllreduceExtent *extent = allreduce_find_extent(&allreduce->setup, elems);
    if (!keeps_residual(allreduce, extent)) {
        FAIL(STATUS_ARGUMENT, "this plan keeps no residual of %lld elements", (long long)elems);
    }
    TRY(check_finite(residual, elems));
    TRY(allreduce->engine->restore(allreduce->state, residual, elems));
    allreduce->last = extent;
    return STATUS_OK;
}
