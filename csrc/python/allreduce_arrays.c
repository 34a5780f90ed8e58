/* Runs of a plan over arrays of any framework: immediately, or begun on one thread and run on another. Arrays that are
 * adjacent in memory are reduced where they are; others go through a flat copy. */
#include <stdio.h>
#include <string.h>

#include "base/memory.h"
#include "python/allreduce.h"
#include "python/arguments.h"

#define MAX_ARRAYS (1 << 24)

/* A run in the background. */
typedef struct RunObject {
    PyObject_HEAD AllreduceObject *plan; /* owned; NULL until it runs */
    PyObject *tensors;                   /* owned: a tuple */
    DeviceEvent *ready, *done;           /* owned; NULL in host memory */
    bool put;
} RunObject;

/* ---- arguments ---- */

static void name_device(int device, char text[32]) {
    if (device < 0) {
        snprintf(text, 32, "in host memory");
    } else {
        snprintf(text, 32, "on GPU %d", device);
    }
}

static int refuse_device(const AllreduceObject *plan, const PyTensor *tensor, Py_ssize_t number) {
    char theirs[32], ours[32];
    name_device(tensor->device, theirs);
    name_device(plan->device, ours);
    return PY_REFUSE(PyExc_ValueError, "tensors: number %zd is %s, but the plan is made for arrays %s", number, theirs,
                     ours);
}

static int check_tensor(const AllreduceObject *plan, const PyTensor *tensor, Py_ssize_t number) {
    const char *why = !tensor->contiguous          ? "is not in C order"
                      : !tensor->writable          ? "is read-only"
                      : tensor->type != plan->type ? "has a different element type than the plan"
                                                   : NULL;
    if (why == NULL && tensor->device != plan->device) return refuse_device(plan, tensor, number);
    if (why == NULL) return 0;
    return PY_REFUSE(PyExc_ValueError, "tensors: number %zd %s", number, why);
}

/* Checks that they fit the plan; 0, or -1 with an exception set. */
static int check_tensors(const AllreduceObject *plan, PyObject *tuple) {
    uint64_t elems = 0;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(tuple); i++) {
        const PyTensor *tensor = py_tensor_of(py_module_state_of(plan), PyTuple_GET_ITEM(tuple, i), "each of tensors");
        if (tensor == NULL || check_tensor(plan, tensor, i) < 0) return -1;
        elems += (uint64_t)tensor->elems;
    }
    if (plan->allreduce == NULL) return PY_REFUSE(PyExc_ValueError, "the communicator is closed");
    if (elems == (uint64_t)allreduce_elems(plan->allreduce)) return 0;
    return PY_REFUSE(PyExc_ValueError, "tensors must have the plan's %lld elements, not %llu",
                     (long long)allreduce_elems(plan->allreduce), (unsigned long long)elems);
}

/* ---- a run; without the GIL, on the plan's device ---- */

/* An array of a tuple, which stays alive. */
static const PyTensor *tensor_at(PyObject *tuple, Py_ssize_t index) {
    return py_tensor_unchecked(PyTuple_GET_ITEM(tuple, index));
}

/* The address of all of them, if they are adjacent in memory; otherwise NULL. */
static char *find_flat(PyObject *tuple, size_t *bytes) {
    char *first = NULL;
    bool together = true;
    *bytes = 0;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(tuple); i++) {
        const PyTensor *tensor = tensor_at(tuple, i);
        if (tensor->elems == 0) continue;
        if (first == NULL) first = tensor->data;
        together = together && (char *)tensor->data == first + *bytes;
        *bytes += py_tensor_bytes(tensor);
    }
    return together ? first : NULL;
}

static Status make_flat(AllreduceObject *plan, size_t bytes) {
    AllreduceScratch *scratch = &plan->scratch;
    if (scratch->flat != NULL) return STATUS_OK;
    if (plan->device < 0) return memory_alloc(bytes, 1, &scratch->flat);
    TRY(device_event_create(&scratch->free));
    return device_alloc(bytes, &scratch->flat);
}

/* Copies the arrays into the flat copy (`in`), or back out of it. */
static Status move(const AllreduceObject *plan, PyObject *tuple, bool in, DeviceStream *stream) {
    char *at = plan->scratch.flat;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(tuple); i++) {
        const PyTensor *tensor = tensor_at(tuple, i);
        size_t bytes = py_tensor_bytes(tensor);
        if (bytes == 0) continue;
        void *to = in ? at : tensor->data, *from = in ? tensor->data : at;
        at += bytes;
        if (plan->device >= 0) {
            TRY(device_copy(to, from, bytes, stream));
        } else {
            memcpy(to, from, bytes);
        }
    }
    return STATUS_OK;
}

static Status run_through_flat(AllreduceObject *plan, PyObject *tuple, size_t bytes, DeviceStream *stream) {
    AllreduceScratch *scratch = &plan->scratch;
    TRY(make_flat(plan, bytes));
    if (plan->device >= 0) TRY(device_stream_wait(stream, scratch->free));
    TRY(move(plan, tuple, true, stream));
    TRY(allreduce_put(plan->allreduce, scratch->flat, allreduce_elems(plan->allreduce), stream));
    TRY(move(plan, tuple, false, stream));
    return plan->device >= 0 ? device_event_record(scratch->free, stream) : STATUS_OK;
}

static Status arrays_run(AllreduceObject *plan, PyObject *tuple, DeviceStream *stream) {
    size_t bytes;
    char *flat = find_flat(tuple, &bytes);
    if (flat == NULL && bytes > 0) return run_through_flat(plan, tuple, bytes, stream);
    return allreduce_put(plan->allreduce, flat, allreduce_elems(plan->allreduce), stream);
}

/* On another stream, after what was queued on the caller's when the run was begun. */
static Status run_in_background(AllreduceObject *plan, const RunObject *later) {
    AllreduceScratch *scratch = &plan->scratch;
    if (plan->device < 0) return arrays_run(plan, later->tensors, NULL);
    if (scratch->background == NULL) TRY(device_stream_create(&scratch->background));
    TRY(device_stream_wait(scratch->background, later->ready));
    TRY(arrays_run(plan, later->tensors, scratch->background));
    return device_event_record(later->done, scratch->background);
}

void py_allreduce_scratch_free(AllreduceScratch *scratch, int device) {
    device_stream_destroy(scratch->background);
    device_event_destroy(scratch->free);
    device_event_destroy(scratch->begin);
    if (device >= 0) {
        device_free(scratch->flat);
    } else {
        memory_free(scratch->flat);
    }
}

/* ---- methods of a plan ---- */

/* Enters the plan's device and its communicator; 0, or -1 with an exception set. */
static int enter(AllreduceObject *plan, PyTensorDeviceGuard *guard) {
    ModuleState *state = py_module_state_of(plan);
    if (py_comm_object_acquire(state, plan->comm, "comm") == NULL) return -1;
    Status status = py_tensor_device_enter(plan->device, guard);
    if (status == STATUS_OK) return 0;
    py_comm_object_release(plan->comm);
    py_errors_raise(state, status);
    return -1;
}

static PyObject *leave(AllreduceObject *plan, const PyTensorDeviceGuard *guard, Status status) {
    py_tensor_device_leave(guard);
    py_comm_object_release(plan->comm);
    return py_errors_none(py_module_state_of(plan), status);
}

PyObject *py_allreduce_put(PyObject *object, PyObject *args, PyObject *kwargs) {
    AllreduceObject *plan = (AllreduceObject *)object;
    static char *names[] = {"tensors", "stream", NULL};
    PyObject *sequence, *number = NULL, *result = NULL;
    DeviceStream *stream;
    PyTensorDeviceGuard guard;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|O:put", names, &sequence, &number)) return NULL;
    if (py_tensor_parse_stream(number, &stream) < 0) return NULL;
    PyObject *tensors = py_arguments_tuple(sequence, "tensors", 0, MAX_ARRAYS);
    if (tensors == NULL) return NULL;
    if (check_tensors(plan, tensors) == 0 && enter(plan, &guard) == 0) {
        Status status;
        Py_BEGIN_ALLOW_THREADS;
        status = arrays_run(plan, tensors, stream);
        Py_END_ALLOW_THREADS;
        result = leave(plan, &guard, status);
    }
    Py_DECREF(tensors);
    return result;
}

/* On the separate stream `lane`, after what `stream` holds now, with at most `blocks` blocks. */
static Status enqueue_on_lane(AllreduceObject *plan, const PyTensor *tensor, DeviceStream *stream, DeviceStream *lane,
                              int blocks) {
    AllreduceScratch *scratch = &plan->scratch;
    if (scratch->begin == NULL) TRY(device_event_create(&scratch->begin));
    TRY(device_event_record(scratch->begin, stream));
    TRY(device_stream_wait(lane, scratch->begin));
    allreduce_set_blocks(plan->allreduce, blocks);
    return allreduce_put(plan->allreduce, tensor->data, tensor->elems, lane);
}

PyObject *py_allreduce_enqueue_on_lane(PyObject *object, PyObject *args) {
    AllreduceObject *plan = (AllreduceObject *)object;
    PyObject *tensor, *stream_number, *lane_number, *tuple, *result = NULL;
    DeviceStream *stream, *lane;
    PyTensorDeviceGuard guard;
    ArgumentsNumber blocks = {"blocks", INT32_MAX, 0};
    if (!PyArg_ParseTuple(args, "OOOO&:enqueue_on_lane", &tensor, &stream_number, &lane_number, py_arguments_number,
                          &blocks) ||
        py_tensor_parse_stream(stream_number, &stream) < 0 || py_tensor_parse_stream(lane_number, &lane) < 0) {
        return NULL;
    }
    if (plan->device < 0) {
        return PyErr_Format(PyExc_ValueError, "the plan is made for arrays in host memory: put() takes them");
    }
    if ((tuple = PyTuple_Pack(1, tensor)) == NULL) return NULL;
    if (check_tensors(plan, tuple) == 0 && enter(plan, &guard) == 0) {
        Status status;
        Py_BEGIN_ALLOW_THREADS;
        status = enqueue_on_lane(plan, tensor_at(tuple, 0), stream, lane, (int)blocks.value);
        Py_END_ALLOW_THREADS;
        result = leave(plan, &guard, status);
    }
    Py_DECREF(tuple);
    return result;
}

PyObject *py_allreduce_wait(PyObject *object, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"stream", NULL};
    AllreduceObject *plan = (AllreduceObject *)object;
    PyObject *number = NULL;
    DeviceStream *stream;
    PyTensorDeviceGuard guard;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|O:wait", names, &number)) return NULL;
    if (py_tensor_parse_stream(number, &stream) < 0 || enter(plan, &guard) < 0) return NULL;
    Status status = STATUS_OK;
    Py_BEGIN_ALLOW_THREADS;
    if (plan->device >= 0) status = allreduce_wait(plan->allreduce, stream, NULL);
    Py_END_ALLOW_THREADS;
    return leave(plan, &guard, status);
}

/* ---- runs in the background ---- */

static Status mark(RunObject *run, DeviceStream *stream) {
    TRY(device_event_create(&run->ready));
    TRY(device_event_create(&run->done));
    return device_event_record(run->ready, stream);
}

/* The one device of all tensors. */
static int device_of(ModuleState *state, PyObject *tuple, int *device) {
    *device = -1;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(tuple); i++) {
        const PyTensor *tensor = py_tensor_of(state, PyTuple_GET_ITEM(tuple, i), "each of tensors");
        if (tensor == NULL) return -1;
        if (i > 0 && tensor->device != *device) return PY_REFUSE(PyExc_ValueError, "tensors must all be on one device");
        *device = tensor->device;
    }
    return 0;
}

static PyObject *arrays_begin(PyObject *module, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"tensors", "stream", NULL};
    ModuleState *state = py_module_state(module);
    PyTypeObject *type = (PyTypeObject *)state->allreduce_run_type;
    PyObject *sequence, *number = NULL;
    DeviceStream *stream;
    PyTensorDeviceGuard guard;
    int device;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|O:allreduce_begin", names, &sequence, &number)) return NULL;
    if (py_tensor_parse_stream(number, &stream) < 0) return NULL;
    PyObject *tensors = py_arguments_tuple(sequence, "tensors", 0, MAX_ARRAYS);
    if (tensors == NULL) return NULL;
    RunObject *self = device_of(state, tensors, &device) < 0 ? NULL : (RunObject *)type->tp_alloc(type, 0);
    if (self == NULL) {
        Py_DECREF(tensors);
        return NULL;
    }
    self->tensors = tensors;
    if (device < 0) return (PyObject *)self;
    Status status = py_tensor_device_enter(device, &guard);
    if (status == STATUS_OK) status = mark(self, stream);
    py_tensor_device_leave(&guard);
    return py_errors_result(state, status, (PyObject *)self);
}

static PyObject *run_run(PyObject *object, PyObject *plan) {
    RunObject *self = (RunObject *)object;
    ModuleState *state = py_module_state_of(object);
    PyTensorDeviceGuard guard;
    if (!PyObject_TypeCheck(plan, (PyTypeObject *)state->allreduce_type)) {
        return PyErr_Format(PyExc_TypeError, "plan must be an AllreducePlan, not %.100s", Py_TYPE(plan)->tp_name);
    }
    if (self->plan != NULL) return PyErr_Format(PyExc_RuntimeError, "a run can be run only once");
    if (check_tensors((AllreduceObject *)plan, self->tensors) < 0) return NULL;
    if (enter((AllreduceObject *)plan, &guard) < 0) return NULL;
    self->plan = (AllreduceObject *)Py_NewRef(plan);
    Status status;
    Py_BEGIN_ALLOW_THREADS;
    status = run_in_background(self->plan, self);
    Py_END_ALLOW_THREADS;
    self->put = status == STATUS_OK;
    return leave(self->plan, &guard, status);
}

static PyObject *run_order(PyObject *object, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"stream", NULL};
    RunObject *self = (RunObject *)object;
    PyObject *number = NULL;
    DeviceStream *stream;
    PyTensorDeviceGuard guard;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|O:order", names, &number)) return NULL;
    if (py_tensor_parse_stream(number, &stream) < 0) return NULL;
    if (!self->put || self->done == NULL) Py_RETURN_NONE;
    Status status = py_tensor_device_enter(self->plan->device, &guard);
    if (status == STATUS_OK) status = device_stream_wait(stream, self->done);
    py_tensor_device_leave(&guard);
    return py_errors_none(py_module_state_of(self->plan), status);
}

/* With the communicator's deadline. */
static Status wait_for_done(const RunObject *self) {
    if (!self->put || self->done == NULL || self->plan->allreduce == NULL) return STATUS_OK;
    return allreduce_wait(self->plan->allreduce, NULL, self->done);
}

static PyObject *run_wait(PyObject *object, PyObject *Py_UNUSED(unused)) {
    RunObject *self = (RunObject *)object;
    PyTensorDeviceGuard guard;
    if (self->plan == NULL || self->done == NULL) Py_RETURN_NONE;
    if (enter(self->plan, &guard) < 0) return NULL;
    Status status;
    Py_BEGIN_ALLOW_THREADS;
    status = wait_for_done(self);
    Py_END_ALLOW_THREADS;
    return leave(self->plan, &guard, status);
}

static Status ask_done(const RunObject *self, bool *done) {
    *done = self->put;
    return self->put && self->done != NULL ? device_query(NULL, self->done, done) : STATUS_OK;
}

static PyObject *get_done(PyObject *object, void *Py_UNUSED(unused)) {
    bool done;
    Status status = ask_done((RunObject *)object, &done);
    if (status != STATUS_OK) return py_errors_raise(py_module_state_of(object), status);
    return PyBool_FromLong(done);
}

/* What a GPU may still read or write is leaked if there is no way to know that it has finished. */
static void run_dealloc(PyObject *object) {
    RunObject *self = (RunObject *)object;
    bool done = self->put || self->plan == NULL || self->done == NULL;
    if (self->put && ask_done(self, &done) == STATUS_OK && !done) {
        Py_BEGIN_ALLOW_THREADS;
        done = wait_for_done(self) == STATUS_OK && ask_done(self, &done) == STATUS_OK && done;
        Py_END_ALLOW_THREADS;
    }
    device_event_destroy(self->ready);
    device_event_destroy(self->done);
    if (done) Py_XDECREF(self->tensors);
    Py_XDECREF((PyObject *)self->plan);
    py_module_free_object(object);
}

static PyMethodDef run_methods[] = {
    {"run", run_run, METH_O, "run($self, plan, /)\n--\n\nRuns it with the plan. Collective; from any thread, once."},
    {"order", PY_KEYWORDS(run_order),
     "order($self, /, stream=0)\n--\n\nMakes what follows on the stream wait for the sums, once run() has returned."},
    {"wait", run_wait, METH_NOARGS,
     "wait($self, /)\n--\n\nWaits until the sums are there, with the communicator's deadline."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef run_getset[] = {
    {"done", get_done, NULL, "Whether the sums are there.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot run_slots[] = {
    {Py_tp_doc, "A run of a plan over arrays, begun with allreduce_begin; keeps the arrays alive."},
    {Py_tp_dealloc, run_dealloc},
    {Py_tp_methods, run_methods},
    {Py_tp_getset, run_getset},
    {0, NULL},
};

static PyMethodDef functions[] = {
    {"allreduce_begin", PY_KEYWORDS(arrays_begin),
     "allreduce_begin(tensors, stream=0)\n--\n\n"
     "Returns an AllreduceRun of the arrays as they are after what is queued on the stream now."},
    {NULL, NULL, 0, NULL},
};

int py_allreduce_arrays_add(PyObject *module) {
    if (py_module_add_type(module, "_cgxffcv.AllreduceRun", sizeof(RunObject), Py_TPFLAGS_DISALLOW_INSTANTIATION,
                           run_slots, &py_module_state(module)->allreduce_run_type) < 0)
        return -1;
    return PyModule_AddFunctions(module, functions);
}
