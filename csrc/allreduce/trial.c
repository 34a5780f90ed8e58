/* Trials: buffers in host or device memory, summed by an Allreduce or by a rival (MPI, NCCL), and timed. */
#include "allreduce/trial.h"

#include <string.h>

#include "base/clock.h"
#include "base/memory.h"
#include "base/names.h"

#define GRAPH_RUNS 20 /* in one captured graph, at most */
#define MOST_RUNS 65536
#define IN_FLIGHT 64 /* launches before the host waits: a full queue would block without a deadline */

struct AllreduceTrial {
    Comm *comm; /* borrowed */
    AllreduceSite site;
    int64_t elems;
    size_t item_bytes;
    bool average;
    CommType type;        /* NCCL's */
    Allreduce *allreduce; /* owned; NULL for rivals */
    CommDevice *nccl;     /* owned */
    void *data;           /* owned, in device memory if there is a stream */
    DeviceStream *stream; /* owned, with the events */
    DeviceEvent *begin, *end;
    DeviceGraph *graph; /* owned, of graph_runs runs over graph_elems elements */
    int graph_runs;
    int64_t graph_elems;
};

static bool on_device(AllreduceSite site) { return site == TRIAL_DEVICE || site == TRIAL_NCCL; }

NAMES_DEFINE(allreduce_site_name, "host", "device", "mpi", "nccl")

static size_t buffer_bytes(const AllreduceTrial *trial) { return (size_t)trial->elems * trial->item_bytes; }

/* ---- making ---- */

static Status make_buffer(AllreduceTrial *trial) {
    size_t bytes = buffer_bytes(trial);
    if (!on_device(trial->site)) return memory_alloc(bytes, 1, &trial->data);
    TRY(device_stream_create(&trial->stream));
    TRY(device_event_create(&trial->begin));
    TRY(device_event_create(&trial->end));
    TRY(device_alloc(bytes, &trial->data));
    return device_fill(trial->data, 0, bytes, trial->stream);
}

static Status make_allreduce(AllreduceTrial *trial, const AllreduceOptions *options) {
    AllreduceLayer layer = {.elems = trial->elems, .bits = options->bits};
    AllreduceBuffer all = {.layers = &layer, .layer_count = 1};
    if (trial->stream != NULL) {
        all.on_device = true;
        all.data = trial->data;
        all.stream = trial->stream;
    }
    return allreduce_create(trial->comm, &all, options, &trial->allreduce);
}

/* A rival sums and averages floats only. */
static Status check_rival(AllreduceSite site, const AllreduceOptions *options) {
    bool type = options->type <= (site == TRIAL_MPI ? ALLREDUCE_F32 : ALLREDUCE_BF16);
    bool op = options->op == ALLREDUCE_SUM || (site == TRIAL_NCCL && options->op == ALLREDUCE_AVERAGE);
    if (!type || !op) {
        FAIL(STATUS_ARGUMENT, "%s cannot reduce %s with the operation %s here", allreduce_site_name((int)site),
             allreduce_type_name((int)options->type), allreduce_op_name((int)options->op));
    }
    return STATUS_OK;
}

static Status make_runner(AllreduceTrial *trial, const AllreduceOptions *options) {
    char why[COMM_WHY_BYTES];
    float nothing = 0;
    if (trial->site == TRIAL_HOST || trial->site == TRIAL_DEVICE) return make_allreduce(trial, options);
    TRY(check_rival(trial->site, options));
    if (trial->site == TRIAL_MPI) return comm_mpi_allreduce(trial->comm, &nothing, 1);
    TRY(comm_device_create(trial->comm, &trial->nccl, why));
    if (trial->nccl == NULL) FAIL(STATUS_NOT_BUILT, "NCCL cannot be used: %s", why);
    return STATUS_OK;
}

Status allreduce_trial_create(Comm *comm, AllreduceSite site, int64_t elems, const AllreduceOptions *options,
                              AllreduceTrial **out) {
    Status status = STATUS_OK;
    AllreduceTrial *trial = NULL;
    if (elems < 0) FAIL(STATUS_ARGUMENT, "elems must be at least 0, not %lld", (long long)elems);
    TRY(memory_calloc(1, sizeof *trial, &trial));
    trial->comm = comm;
    trial->site = site;
    trial->elems = elems;
    trial->item_bytes = allreduce_type_bytes(options->type);
    trial->average = options->op == ALLREDUCE_AVERAGE;
    trial->type = options->type == ALLREDUCE_BF16 ? COMM_BF16 : options->type == ALLREDUCE_F16 ? COMM_F16 : COMM_F32;
    TRY_GOTO(make_buffer(trial));
    TRY_GOTO(make_runner(trial, options));
    *out = trial;
    trial = NULL;
done:
    allreduce_trial_destroy(trial);
    return status;
}

void allreduce_trial_destroy(AllreduceTrial *trial) {
    if (trial == NULL) return;
    device_graph_destroy(trial->graph);
    allreduce_destroy(trial->allreduce);
    comm_device_destroy(trial->nccl);
    if (on_device(trial->site)) {
        device_free(trial->data);
    } else {
        memory_free(trial->data);
    }
    device_event_destroy(trial->end);
    device_event_destroy(trial->begin);
    device_stream_destroy(trial->stream);
    memory_free(trial);
}

/* ---- the buffer ---- */

static Status copy(const AllreduceTrial *trial, void *to, const void *from, size_t bytes) {
    if (trial->stream != NULL) return device_copy(to, from, bytes, trial->stream);
    memcpy(to, from, bytes);
    return STATUS_OK;
}

Status allreduce_trial_fill(AllreduceTrial *trial, const void *block, size_t bytes) {
    size_t all = buffer_bytes(trial);
    for (size_t at = 0; bytes > 0 && at < all; at += bytes) {
        size_t part = all - at < bytes ? all - at : bytes;
        TRY(copy(trial, (char *)trial->data + at, block, part));
    }
    return trial->stream == NULL ? STATUS_OK : device_stream_synchronize(trial->stream);
}

Status allreduce_trial_read(AllreduceTrial *trial, void *out, size_t bytes) {
    if (bytes > buffer_bytes(trial)) FAIL(STATUS_ARGUMENT, "the buffer does not hold %zu bytes", bytes);
    if (bytes > 0) TRY(copy(trial, out, trial->data, bytes));
    return trial->stream == NULL ? STATUS_OK : device_stream_synchronize(trial->stream);
}

const Allreduce *allreduce_trial_of(const AllreduceTrial *trial) { return trial->allreduce; }

/* ---- runs ---- */

static Status trial_put(AllreduceTrial *trial, int64_t elems) {
    const CommPiece piece = {trial->data, elems};
    if (trial->site == TRIAL_MPI) return comm_mpi_allreduce(trial->comm, trial->data, elems);
    if (trial->allreduce != NULL) return allreduce_put(trial->allreduce, trial->data, elems, trial->stream);
    return comm_device_allreduce(trial->nccl, &piece, 1, trial->type, trial->average, trial->stream);
}

static Status trial_wait(AllreduceTrial *trial) {
    if (trial->stream == NULL) return STATUS_OK;
    if (trial->nccl != NULL) return comm_device_wait(trial->nccl, trial->stream, NULL);
    return allreduce_wait(trial->allreduce, trial->stream, NULL);
}

static Status put_all(AllreduceTrial *trial, int64_t elems, int runs) {
    for (int i = 0; i < runs; i++) TRY(trial_put(trial, elems));
    return STATUS_OK;
}

/* Captures a graph of that many runs and launches it once, since the first launch takes longer. */
static Status record(AllreduceTrial *trial, int64_t elems, int runs) {
    if (trial->graph != NULL && trial->graph_runs == runs && trial->graph_elems == elems) return STATUS_OK;
    TRY(trial_wait(trial));
    device_graph_destroy(trial->graph);
    trial->graph = NULL;
    TRY(device_capture_begin(trial->stream));
    TRY(device_capture_end(trial->stream, put_all(trial, elems, runs), &trial->graph));
    trial->graph_runs = runs;
    trial->graph_elems = elems;
    TRY(device_graph_launch(trial->graph, trial->stream));
    return trial_wait(trial);
}

static Status time_on_device(AllreduceTrial *trial, int64_t elems, int launches, bool recorded, double *seconds) {
    float milliseconds = 0;
    TRY(device_event_record(trial->begin, trial->stream));
    for (int i = 0; i < launches; i++) {
        if (i > 0 && i % IN_FLIGHT == 0) TRY(trial_wait(trial));
        TRY(recorded ? device_graph_launch(trial->graph, trial->stream) : trial_put(trial, elems));
    }
    TRY(device_event_record(trial->end, trial->stream));
    TRY(trial_wait(trial));
    TRY(device_event_elapsed(trial->begin, trial->end, &milliseconds));
    *seconds = (double)milliseconds / 1e3;
    return STATUS_OK;
}

/* The greatest of all ranks' times. */
static Status slowest(Comm *comm, double mine, double *out) {
    Status status = STATUS_OK;
    double *all = NULL;
    TRY(memory_alloc((size_t)comm_size(comm), sizeof *all, &all));
    TRY_GOTO(comm_allgather(comm, &mine, sizeof mine, all));
    for (int r = 0; r < comm_size(comm); r++) {
        if (all[r] > mine) mine = all[r];
    }
    *out = mine;
done:
    memory_free(all);
    return status;
}

Status allreduce_trial_time(AllreduceTrial *trial, int64_t elems, int runs, bool record_runs, double *seconds) {
    bool recordable = trial->nccl != NULL || (trial->allreduce != NULL && allreduce_recordable(trial->allreduce));
    bool recorded = record_runs && trial->stream != NULL && recordable;
    int each = !recorded ? 1 : runs < GRAPH_RUNS ? runs : GRAPH_RUNS;
    double mine = 0;
    if (runs < 1 || runs > MOST_RUNS) FAIL(STATUS_ARGUMENT, "runs must be in 1..%d, not %d", MOST_RUNS, runs);
    if (elems < 0 || elems > trial->elems) {
        FAIL(STATUS_ARGUMENT, "elems must be in 0..%lld, not %lld", (long long)trial->elems, (long long)elems);
    }
    int launches = (runs + each - 1) / each;
    if (recorded) TRY(record(trial, elems, each));
    TRY(comm_barrier(trial->comm));
    if (trial->stream != NULL) {
        TRY(time_on_device(trial, elems, launches, recorded, &mine));
    } else {
        double start = clock_now_seconds();
        TRY(put_all(trial, elems, runs));
        mine = clock_now_seconds() - start;
    }
    return slowest(trial->comm, mine / (launches * each), seconds);
}
