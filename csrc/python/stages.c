/* Runs of a plan in stages: the caller moves the messages. All sizes are checked here. */
#include "python/stages.h"

#include "base/memory.h"
#include "python/allreduce.h"
#include "python/arguments.h"
#include "python/comm.h"
#include "python/results.h"

#define BYTES (1u << ARRAY_U8)

static const char *const stage_names[] = {"inside", "across"};

static int stage_of(const char *name, AllreduceStage *out) {
    for (int i = 0; i < 2; i++) {
        if (strcmp(name, stage_names[i]) == 0) {
            *out = (AllreduceStage)i;
            return 0;
        }
    }
    return PY_REFUSE(PyExc_ValueError, "stage must be inside or across, not '%s'", name);
}

static PyObject *sizes_of(const Allreduce *allreduce, AllreduceStage stage, const AllreduceMessages *messages) {
    PyObject *sizes = PyTuple_New(messages->members);
    for (int m = 0; sizes != NULL && m < messages->members; m++) {
        sizes = py_results_put(sizes, m, PyLong_FromUnsignedLongLong(allreduce_stage_bytes(allreduce, stage, m)));
    }
    return sizes;
}

PyObject *py_stages_messages(PyObject *plan, PyObject *args) {
    const char *name;
    AllreduceStage stage;
    AllreduceMessages messages;
    unsigned types;
    if (!PyArg_ParseTuple(args, "s:stage_messages", &name) || stage_of(name, &stage) < 0) return NULL;
    Allreduce *allreduce = py_allreduce_acquire(plan, &types);
    if (allreduce == NULL) return NULL;
    Status status = allreduce_stage_messages(allreduce, stage, &messages);
    PyObject *sizes =
        status == STATUS_OK ? sizes_of(allreduce, stage, &messages) : py_errors_raise(py_module_state_of(plan), status);
    py_allreduce_release(plan);
    if (sizes == NULL) return NULL;
    return Py_BuildValue("(iNKK)", messages.me, sizes, (unsigned long long)messages.from_each,
                         (unsigned long long)messages.result);
}

/* ---- steps ---- */

/* A step's arguments: the buffer, and bytes that go in or come out. */
typedef struct Step {
    PyObject *plan;
    Allreduce *allreduce;
    ArrayView buffer, messages, result;
    bool has_buffer, has_messages, has_result;
} Step;

static PyObject *step_end(Step *step, Status status, bool failed) {
    if (step->has_buffer) py_array_release(&step->buffer);
    if (step->has_messages) py_array_release(&step->messages);
    if (step->has_result) py_array_release(&step->result);
    py_allreduce_release(step->plan);
    if (failed) return NULL;
    return py_errors_none(py_module_state_of(step->plan), status);
}

/* 0, or -1 with an exception set. */
static int take_bytes(PyObject *object, const char *argument, uint64_t bytes, bool writable, ArrayView *view,
                      bool *taken) {
    if (py_array_acquire(object, argument, BYTES, -1, writable, view) < 0) return -1;
    *taken = true;
    if ((uint64_t)view->elems == bytes) return 0;
    return PY_REFUSE(PyExc_ValueError, "%s must have %llu bytes, not %lld", argument, (unsigned long long)bytes,
                     (long long)view->elems);
}

/* Acquires plan and buffer. 0, or -1 with an exception set and nothing to end. */
static int step_begin(Step *step, PyObject *plan, PyObject *buffer, bool writable) {
    unsigned types;
    *step = (Step){.plan = plan, .allreduce = py_allreduce_acquire(plan, &types)};
    if (step->allreduce == NULL) return -1;
    if (py_array_acquire(buffer, "buffer", types, -1, writable, &step->buffer) < 0) {
        step_end(step, STATUS_OK, true);
        return -1;
    }
    step->has_buffer = true;
    if (step->buffer.elems == allreduce_elems(step->allreduce)) return 0;
    PyErr_Format(PyExc_ValueError, "buffer must have the plan's %lld elements, not %lld",
                 (long long)allreduce_elems(step->allreduce), (long long)step->buffer.elems);
    step_end(step, STATUS_OK, true);
    return -1;
}

PyObject *py_stages_encode(PyObject *plan, PyObject *args) {
    const char *name;
    PyObject *buffer, *messages;
    AllreduceStage stage;
    AllreduceMessages sizes;
    Step step;
    if (!PyArg_ParseTuple(args, "sOO:stage_encode", &name, &buffer, &messages) || stage_of(name, &stage) < 0 ||
        step_begin(&step, plan, buffer, false) < 0) {
        return NULL;
    }
    Status status = allreduce_stage_messages(step.allreduce, stage, &sizes);
    if (status != STATUS_OK) return step_end(&step, status, false);
    if (take_bytes(messages, "messages", sizes.total, true, &step.messages, &step.has_messages) < 0) {
        return step_end(&step, status, true);
    }
    Py_BEGIN_ALLOW_THREADS;
    status = allreduce_stage_encode(step.allreduce, stage, step.buffer.data, step.messages.data);
    Py_END_ALLOW_THREADS;
    return step_end(&step, status, false);
}

PyObject *py_stages_reduce(PyObject *plan, PyObject *args) {
    const char *name;
    PyObject *buffer, *messages, *result;
    AllreduceStage stage;
    AllreduceMessages sizes;
    Step step;
    if (!PyArg_ParseTuple(args, "sOOO:stage_reduce", &name, &buffer, &messages, &result) ||
        stage_of(name, &stage) < 0 || step_begin(&step, plan, buffer, true) < 0) {
        return NULL;
    }
    Status status = allreduce_stage_messages(step.allreduce, stage, &sizes);
    if (status != STATUS_OK) return step_end(&step, status, false);
    uint64_t from_others = sizes.members == 0 ? 0 : (uint64_t)(sizes.members - 1) * sizes.from_each;
    if (take_bytes(messages, "messages", from_others, false, &step.messages, &step.has_messages) < 0 ||
        take_bytes(result, "result", sizes.result, true, &step.result, &step.has_result) < 0) {
        return step_end(&step, status, true);
    }
    Py_BEGIN_ALLOW_THREADS;
    status = allreduce_stage_reduce(step.allreduce, stage, step.buffer.data, step.messages.data, step.result.data);
    Py_END_ALLOW_THREADS;
    return step_end(&step, status, false);
}

/* The size of one-shot messages, or else of the results of all chunks. */
static Status gathered_bytes(const Allreduce *allreduce, uint64_t *bytes) {
    AllreduceMessages inside, across;
    TRY(allreduce_stage_messages(allreduce, ALLREDUCE_INSIDE, &inside));
    TRY(allreduce_stage_messages(allreduce, ALLREDUCE_ACROSS, &across));
    uint64_t each = across.result > 0 ? across.result : across.from_each;
    *bytes = each * (uint64_t)across.members * (inside.members > 0 ? (uint64_t)inside.members : 1);
    return STATUS_OK;
}

PyObject *py_stages_finish(PyObject *plan, PyObject *args) {
    PyObject *buffer, *gathered;
    uint64_t bytes;
    Step step;
    if (!PyArg_ParseTuple(args, "OO:stage_finish", &buffer, &gathered) || step_begin(&step, plan, buffer, true) < 0) {
        return NULL;
    }
    Status status = gathered_bytes(step.allreduce, &bytes);
    if (status != STATUS_OK) return step_end(&step, status, false);
    if (take_bytes(gathered, "gathered", bytes, false, &step.messages, &step.has_messages) < 0) {
        return step_end(&step, status, true);
    }
    Py_BEGIN_ALLOW_THREADS;
    status = allreduce_stage_finish(step.allreduce, step.buffer.data, step.messages.data);
    Py_END_ALLOW_THREADS;
    return step_end(&step, status, false);
}

/* ---- the same on a GPU ---- */

PyObject *py_stages_space(PyObject *plan, PyObject *Py_UNUSED(unused)) {
    unsigned types;
    AllreduceSpace space;
    Allreduce *allreduce = py_allreduce_acquire(plan, &types);
    if (allreduce == NULL) return NULL;
    Status status = allreduce_external_space(allreduce, &space);
    py_allreduce_release(plan);
    if (status != STATUS_OK) return py_errors_raise(py_module_state_of(plan), status);
    return Py_BuildValue("(Kii)", (unsigned long long)space.region_bytes, space.rows, space.outgoing);
}

/* A Tensor of `elems` elements of the type on the plan's device; NULL with an exception set. */
static const PyTensor *tensor_on(PyObject *plan, PyObject *object, const char *argument, AllreduceType type,
                                 uint64_t elems) {
    const AllreduceObject *self = (const AllreduceObject *)plan;
    const PyTensor *tensor = py_tensor_of(py_module_state_of(plan), object, argument);
    if (tensor == NULL) return NULL;
    bool fits = tensor->device == self->device && tensor->contiguous && tensor->writable && tensor->type == type;
    if (fits && (uint64_t)tensor->elems == elems) return tensor;
    PyErr_Format(PyExc_ValueError, "%s must have %llu elements of %s on the plan's device, in C order", argument,
                 (unsigned long long)elems, allreduce_type_name((int)type));
    return NULL;
}

static Status bind_on_device(const AllreduceObject *self, Allreduce *allreduce, void *window, void *outgoing) {
    PyTensorDeviceGuard guard;
    TRY(py_tensor_device_enter(self->device, &guard));
    Status status = allreduce_external_bind(allreduce, window, outgoing);
    py_tensor_device_leave(&guard);
    return status;
}

static PyObject *bind_tensors(PyObject *plan, Allreduce *allreduce, PyObject *window, PyObject *outgoing) {
    AllreduceObject *self = (AllreduceObject *)plan;
    AllreduceSpace space;
    Status status = allreduce_external_space(allreduce, &space);
    if (status != STATUS_OK) return py_errors_none(py_module_state_of(plan), status);
    uint64_t bytes = space.region_bytes;
    const PyTensor *in = tensor_on(plan, window, "window", ALLREDUCE_U8, bytes * (uint64_t)space.rows);
    if (in == NULL) return NULL;
    const PyTensor *out = tensor_on(plan, outgoing, "outgoing", ALLREDUCE_U8, bytes * (uint64_t)space.outgoing);
    if (out == NULL) return NULL;
    PyObject *tensors = PyTuple_Pack(2, window, outgoing);
    if (tensors == NULL) return NULL;
    Py_BEGIN_ALLOW_THREADS;
    status = bind_on_device(self, allreduce, in->data, out->data);
    Py_END_ALLOW_THREADS;
    if (status == STATUS_OK) Py_XSETREF(self->message_tensors, Py_NewRef(tensors));
    Py_DECREF(tensors);
    return py_errors_none(py_module_state_of(plan), status);
}

PyObject *py_stages_bind(PyObject *plan, PyObject *args) {
    PyObject *window, *outgoing;
    unsigned types;
    if (!PyArg_ParseTuple(args, "OO:external_bind", &window, &outgoing)) return NULL;
    Allreduce *allreduce = py_allreduce_acquire(plan, &types);
    if (allreduce == NULL) return NULL;
    PyObject *result = bind_tensors(plan, allreduce, window, outgoing);
    py_allreduce_release(plan);
    return result;
}

static Status step_on_device(const AllreduceObject *self, Allreduce *allreduce, AllreduceStep step, void *data,
                             DeviceStream *stream) {
    PyTensorDeviceGuard guard;
    TRY(py_tensor_device_enter(self->device, &guard));
    Status status = allreduce_external_step(allreduce, step, data, stream);
    py_tensor_device_leave(&guard);
    return status;
}

static int parse_step(const char *name, AllreduceStep *out) {
    static const char *const names[] = {"push", "reduce", "gather"};
    for (int i = 0; i < 3; i++) {
        if (strcmp(name, names[i]) == 0) {
            *out = (AllreduceStep)i;
            return 0;
        }
    }
    return PY_REFUSE(PyExc_ValueError, "step must be push, reduce or gather, not '%s'", name);
}

PyObject *py_stages_step(PyObject *plan, PyObject *args) {
    const AllreduceObject *self = (const AllreduceObject *)plan;
    const char *name;
    PyObject *object, *number, *result = NULL;
    unsigned types;
    AllreduceStep step;
    DeviceStream *stream;
    if (!PyArg_ParseTuple(args, "sOO:external_step", &name, &object, &number) || parse_step(name, &step) < 0 ||
        py_tensor_parse_stream(number, &stream) < 0) {
        return NULL;
    }
    Allreduce *allreduce = py_allreduce_acquire(plan, &types);
    if (allreduce == NULL) return NULL;
    const PyTensor *tensor = tensor_on(plan, object, "tensor", self->type, (uint64_t)allreduce_elems(allreduce));
    if (tensor != NULL) {
        Status status;
        Py_BEGIN_ALLOW_THREADS;
        status = step_on_device(self, allreduce, step, tensor->data, stream);
        Py_END_ALLOW_THREADS;
        result = py_errors_none(py_module_state_of(plan), status);
    }
    py_allreduce_release(plan);
    return result;
}

/* ---- communicators without a connection to the others ---- */

static PyObject *comm_apart(PyObject *module, PyObject *args) {
    PyObject *list;
    int rank, *node_of = NULL;
    Comm *comm = NULL;
    if (!PyArg_ParseTuple(args, "iO:comm_apart", &rank, &list)) return NULL;
    PyObject *nodes = py_arguments_tuple(list, "nodes", 2, 1 << 20);
    if (nodes == NULL) return NULL;
    int size = (int)PyTuple_GET_SIZE(nodes);
    Status status = memory_calloc((size_t)size, sizeof *node_of, &node_of);
    for (int r = 0; status == STATUS_OK && r < size; r++) {
        uint64_t node;
        if (py_arguments_whole(PyTuple_GET_ITEM(nodes, r), "a node", 0, INT32_MAX, &node) < 0) {
            memory_free(node_of);
            Py_DECREF(nodes);
            return NULL;
        }
        node_of[r] = (int)node;
    }
    if (status == STATUS_OK) status = comm_create_disconnected(rank, size, node_of, &comm);
    memory_free(node_of);
    Py_DECREF(nodes);
    return status == STATUS_OK ? py_comm_object_wrap(py_module_state(module), comm)
                               : py_errors_raise(py_module_state(module), status);
}

static PyMethodDef functions[] = {
    {"comm_apart", comm_apart, METH_VARARGS, "comm_apart(rank, nodes)\n--\n\nSee cgxffcv.comm.apart."},
    {NULL, NULL, 0, NULL},
};

int py_stages_add(PyObject *module) { return PyModule_AddFunctions(module, functions); }
