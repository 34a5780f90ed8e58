/* Cost lines: their measurement, and what they predict. An algorithm is timed with 4 bits at all sizes and with 8 bits
 * at the largest, which separates the cost of an element from the cost of a byte on the wire. */
#include "allreduce/engine.h"
#include "allreduce/trial.h"
#include "base/memory.h"

#define BLOCK 1021       /* elements that are repeated in a buffer */
#define RECORDED_RUNS 10 /* on a GPU, one after the other */
#define META_BYTES 8.0   /* per bucket */

/* Bytes per element on the wire. */
static double wire_bytes_of(const AllreduceOptions *options, AllreduceAlgorithm algorithm, int bits) {
    if (algorithm == ALLREDUCE_EXACT) return (double)allreduce_type_bytes(options->type);
    return bits / 8.0 + META_BYTES / (double)options->bucket_size;
}

double allreduce_predict(const AllreduceSetup *setup, AllreduceAlgorithm algorithm, int64_t call_elems) {
    const AllreduceLine *line = &setup->costs.lines[algorithm];
    const AllreduceOptions *options = &setup->options;
    double elems = (double)call_elems, memory = (double)allreduce_type_bytes(options->type) / sizeof(float);
    return line->latency +
           elems * (memory * line->element + wire_bytes_of(options, algorithm, options->bits) * line->byte);
}

/* ---- measuring ---- */

/* What is measured. */
typedef struct CostMeasurement {
    Comm *comm;
    AllreduceSite site;
    const int64_t *elems;
    int count, repeats;
} CostMeasurement;

static Status measure_point(const CostMeasurement *measured, AllreduceAlgorithm algorithm, int bits, int64_t elems,
                            double *seconds) {
    Status status = STATUS_OK;
    AllreduceTrial *trial = NULL;
    AllreduceOptions options = allreduce_defaults();
    float block[BLOCK];
    int runs = measured->site == TRIAL_DEVICE ? RECORDED_RUNS : 1;
    for (int i = 0; i < BLOCK; i++) block[i] = (float)(i - BLOCK / 2);
    options.algorithm = algorithm;
    options.bits = bits;
    TRY(allreduce_trial_create(measured->comm, measured->site, elems, &options, &trial));
    TRY_GOTO(allreduce_trial_fill(trial, block, sizeof block));
    TRY_GOTO(allreduce_trial_time(trial, elems, 1, false, seconds)); /* to warm up */
    *seconds = 0;
    for (int i = 0; i < measured->repeats; i++) {
        double taken;
        TRY_GOTO(allreduce_trial_time(trial, elems, runs, true, &taken));
        if (i == 0 || taken < *seconds) *seconds = taken;
    }
done:
    allreduce_trial_destroy(trial);
    return status;
}

/* Fits the line that minimises the sum of squared relative deviations, with neither latency nor slope below 0. */
static void fit(const int64_t *elems, const double *seconds, int count, double *latency, double *slope) {
    double w = 0, x = 0, y = 0, xx = 0, xy = 0;
    for (int i = 0; i < count; i++) {
        double at = (double)elems[i], time = seconds[i] > 1e-9 ? seconds[i] : 1e-9, weight = 1 / (time * time);
        w += weight;
        x += weight * at;
        y += weight * time;
        xx += weight * at * at;
        xy += weight * at * time;
    }
    double determinant = w * xx - x * x;
    *slope = determinant > 0 ? (w * xy - x * y) / determinant : 0;
    if (*slope < 0) *slope = 0;
    *latency = (y - *slope * x) / w;
    if (*latency >= 0) return;
    *latency = 0;
    *slope = xy / xx;
}

static Status measure_line(const CostMeasurement *measured, AllreduceAlgorithm algorithm, AllreduceLine *out) {
    double seconds[TRIAL_MOST_SIZES], slope, wide = 0;
    const AllreduceOptions options = allreduce_defaults();
    const double narrow_bytes = wire_bytes_of(&options, algorithm, 4),
                 wide_bytes = wire_bytes_of(&options, algorithm, 8);
    int last = measured->count - 1;
    for (int i = 0; i <= last; i++) TRY(measure_point(measured, algorithm, 4, measured->elems[i], &seconds[i]));
    fit(measured->elems, seconds, measured->count, &out->latency, &slope);
    if (algorithm == ALLREDUCE_EXACT) {
        out->byte = slope / narrow_bytes;
        return STATUS_OK;
    }
    TRY(measure_point(measured, algorithm, 8, measured->elems[last], &wide));
    double byte = (wide - seconds[last]) / ((double)measured->elems[last] * (wide_bytes - narrow_bytes));
    out->byte = byte < 0 ? 0 : byte > slope / narrow_bytes ? slope / narrow_bytes : byte;
    out->element = slope - narrow_bytes * out->byte;
    return STATUS_OK;
}

static Status check_measurement(const CostMeasurement *measured) {
    bool rising = measured->count >= 1 && measured->count <= TRIAL_MOST_SIZES && measured->elems[0] > 0;
    for (int i = 1; rising && i < measured->count; i++) rising = measured->elems[i] > measured->elems[i - 1];
    if (!rising) FAIL(STATUS_ARGUMENT, "sizes must be 1 to %d ascending numbers of elements", TRIAL_MOST_SIZES);
    if (measured->repeats < 1) FAIL(STATUS_ARGUMENT, "repeats must be at least 1, not %d", measured->repeats);
    if (measured->site != TRIAL_HOST && measured->site != TRIAL_DEVICE)
        FAIL(STATUS_ARGUMENT, "costs are measured for buffers on the host or on a device, not for MPI or NCCL");
    return STATUS_OK;
}

Status allreduce_measure(Comm *comm, AllreduceSite site, const int64_t *elems, int count, int repeats,
                         AllreduceCosts *out) {
    static const AllreduceAlgorithm algorithms[] = {ALLREDUCE_ONE_SHOT, ALLREDUCE_SRA, ALLREDUCE_TWO_LEVEL,
                                                    ALLREDUCE_EXACT};
    const CostMeasurement measured = {comm, site, elems, count, repeats};
    const bool levels = comm_nodes(comm) > 1 && allreduce_nodes_are_equal(comm);
    AllreduceCosts costs = {0};
    TRY(check_measurement(&measured));
    for (size_t a = 0; comm_size(comm) > 1 && a < sizeof algorithms / sizeof *algorithms; a++) {
        if (algorithms[a] == ALLREDUCE_TWO_LEVEL && !levels) continue;
        TRY(measure_line(&measured, algorithms[a], &costs.lines[algorithms[a]]));
    }
    TRY(comm_broadcast(comm, 0, &costs, sizeof costs));
    *out = costs;
    return STATUS_OK;
}
