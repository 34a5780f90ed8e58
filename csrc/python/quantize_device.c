/* The quantiser in device memory, for tests and measurements: an array is copied to the GPU, encoded and decoded with
 * one launch each for all its layers, and both results are copied back. */
#include "base/memory.h"
#include "python/arguments.h"
#include "python/quantize.h"
#include "python/spec.h"
#include "quant/device.h"

#define MOST_LAYERS 65536

typedef struct DeviceJob {
    QuantSpec spec;
    QuantRandom random;
    int64_t *layers; /* owned: the elements of each */
    int count, skip; /* elements before the first in device memory */
    int repeats;     /* 0: not timed */
    ArrayView x, wire, out;
    uint8_t *memory, *coded; /* owned, in device memory */
    DeviceEvent *begin, *end;
    float milliseconds[2]; /* of all repeats: encoding, decoding */
} DeviceJob;

static int layer_parse(PyObject *item, void *out) {
    uint64_t elems;
    if (py_arguments_whole(item, "a layer", 0, INT32_MAX, &elems) < 0) return -1;
    *(int64_t *)out = (int64_t)elems;
    return 0;
}

static void *device_job_elements(const DeviceJob *job) {
    return job->memory + (size_t)job->skip * quantize_item_bytes(job->spec.type);
}

static Status make_batch(const DeviceJob *job, QuantDeviceBatch **batch) {
    Status status = STATUS_OK;
    QuantDeviceRun *runs = NULL;
    uint8_t *x = device_job_elements(job), *wire = job->coded;
    TRY(memory_calloc((size_t)job->count, sizeof *runs, &runs));
    for (int i = 0; i < job->count; i++) {
        runs[i] = (QuantDeviceRun){job->spec, x, job->layers[i], job->random, wire};
        x += (size_t)job->layers[i] * quantize_item_bytes(job->spec.type);
        wire += quantize_wire_bytes(&job->spec, job->layers[i]);
    }
    status = quantize_batch_create(runs, job->count, batch);
    memory_free(runs);
    return status;
}

/* Once, and then another `repeats` times with the clock running. */
static Status run_timed(DeviceJob *job, const QuantDeviceBatch *batch, int which) {
    Status (*work)(const QuantDeviceBatch *, DeviceStream *) =
        which == 0 ? quantize_batch_encode : quantize_batch_decode;
    TRY(work(batch, NULL));
    if (job->repeats == 0) return STATUS_OK;
    TRY(device_event_record(job->begin, NULL));
    for (int i = 0; i < job->repeats; i++) TRY(work(batch, NULL));
    TRY(device_event_record(job->end, NULL));
    TRY(device_event_synchronize(job->end));
    return device_event_elapsed(job->begin, job->end, &job->milliseconds[which]);
}

static Status run_batch(DeviceJob *job, const QuantDeviceBatch *batch) {
    size_t bytes = (size_t)job->x.elems * quantize_item_bytes(job->spec.type);
    TRY(device_fill(job->coded, 0, (size_t)job->wire.elems, NULL));
    TRY(device_copy(device_job_elements(job), job->x.data, bytes, NULL));
    TRY(run_timed(job, batch, 0));
    TRY(device_copy(job->wire.data, job->coded, (size_t)job->wire.elems, NULL));
    TRY(run_timed(job, batch, 1));
    TRY(device_copy(job->out.data, device_job_elements(job), bytes, NULL));
    return quantize_batch_finish(batch, NULL);
}

static Status run_on_device(DeviceJob *job) {
    Status status = STATUS_OK;
    QuantDeviceBatch *batch = NULL;
    size_t bytes = ((size_t)job->x.elems + (size_t)job->skip) * quantize_item_bytes(job->spec.type);
    TRY(device_select(0));
    TRY_GOTO(device_alloc(bytes + 1, &job->memory));
    TRY_GOTO(device_alloc((size_t)job->wire.elems + 1, &job->coded));
    TRY_GOTO(device_event_create(&job->begin));
    TRY_GOTO(device_event_create(&job->end));
    TRY_GOTO(make_batch(job, &batch));
    TRY_GOTO(run_batch(job, batch));
done:
    quantize_batch_destroy(batch);
    device_event_destroy(job->end);
    device_event_destroy(job->begin);
    device_free(job->coded);
    device_free(job->memory);
    return status;
}

static int check_sizes(const DeviceJob *job) {
    int64_t elems = 0;
    uint64_t bytes = 0;
    for (int i = 0; i < job->count; i++) {
        elems += job->layers[i];
        bytes += quantize_wire_bytes(&job->spec, job->layers[i]);
    }
    if (job->x.elems == elems && job->out.elems == elems && (uint64_t)job->wire.elems == bytes) return 0;
    return PY_REFUSE(PyExc_ValueError,
                     "the layers have %lld elements and %llu bytes, but array, out and wire have %lld, %lld and %lld",
                     (long long)elems, (unsigned long long)bytes, (long long)job->x.elems, (long long)job->out.elems,
                     (long long)job->wire.elems);
}

static PyObject *device_job_run(PyObject *module, DeviceJob *job) {
    Status status;
    if (check_sizes(job) < 0) return NULL;
    Py_BEGIN_ALLOW_THREADS;
    status = run_on_device(job);
    Py_END_ALLOW_THREADS;
    if (status != STATUS_OK) return py_errors_raise(py_module_state(module), status);
    double times = job->repeats > 0 ? 1e3 * job->repeats : 1;
    return Py_BuildValue("dd", job->milliseconds[0] / times, job->milliseconds[1] / times);
}

static PyObject *run_with_arrays(PyObject *module, DeviceJob *job, PyObject *x, PyObject *wire, PyObject *out) {
    PyObject *result = NULL;
    unsigned types = py_quant_type_mask(job->spec.type);
    if (py_array_acquire(x, "array", types, 1, false, &job->x) < 0) return NULL;
    if (py_array_acquire(wire, "wire", 1u << ARRAY_U8, 1, true, &job->wire) < 0) goto release_x;
    if (py_array_acquire(out, "out", types, 1, true, &job->out) < 0) goto release_wire;
    result = device_job_run(module, job);
    py_array_release(&job->out);
release_wire:
    py_array_release(&job->wire);
release_x:
    py_array_release(&job->x);
    return result;
}

static PyObject *quantize_on_device(PyObject *module, PyObject *args) {
    PyObject *x, *spec, *random, *layers, *wire, *out, *result = NULL;
    DeviceJob job = {0};
    if (!PyArg_ParseTuple(args, "OOOOOOii:quantize_on_device", &x, &spec, &random, &layers, &wire, &out, &job.skip,
                          &job.repeats)) {
        return NULL;
    }
    if (job.skip < 0 || job.skip > 64 || job.repeats < 0 || job.repeats > 1000000) {
        return PyErr_Format(PyExc_ValueError, "skip must be 0..64 and repeats 0..1000000, not %d and %d", job.skip,
                            job.repeats);
    }
    if (py_quant_spec_parse(module, spec, &job.spec) < 0 || py_quant_random_parse(random, &job.random) < 0) return NULL;
    PyObject *tuple = py_arguments_tuple(layers, "layers", 1, MOST_LAYERS);
    if (tuple == NULL) return NULL;
    job.count = (int)PyTuple_GET_SIZE(tuple);
    if (memory_calloc((size_t)job.count, sizeof *job.layers, &job.layers) != STATUS_OK) {
        PyErr_NoMemory();
    } else if (py_arguments_fill(tuple, "layers", 1, MOST_LAYERS, layer_parse, job.layers, sizeof *job.layers) >= 0) {
        result = run_with_arrays(module, &job, x, wire, out);
    }
    memory_free(job.layers);
    Py_DECREF(tuple);
    return result;
}

static PyMethodDef functions[] = {
    {"quantize_on_device", quantize_on_device, METH_VARARGS,
     "quantize_on_device(array, spec, random, layers, wire, out, skip, repeats)\n--\n\n"
     "Quantises an array on the first GPU, all layers (with these numbers of elements, all with the same random\n"
     "numbers) at once, and dequantises it: the bytes go to `wire`, layer after layer, and the decoded values to\n"
     "`out`. In device memory the array begins `skip` elements after an aligned address. Returns the seconds that "
     "a\n"
     "launch of each takes, measured over `repeats` launches."},
    {NULL, NULL, 0, NULL},
};

int py_quantize_device_add(PyObject *module) { return PyModule_AddFunctions(module, functions); }
