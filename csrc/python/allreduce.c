/* Plans of the compressed allreduce. cgxffcv/allreduce.py is the typed surface. */
#include "python/allreduce.h"

#include <math.h>

#include "allreduce/trial.h"
#include "base/memory.h"
#include "python/adapt.h"
#include "python/arguments.h"
#include "python/spec.h"
#include "python/stages.h"

#define MAX_LAYERS (1 << 24)

/* ---- making ---- */

static const SpecTable layer_table = {"layer",
                                      {SPEC_MEMBER(AllreduceLayer, name), SPEC_MEMBER(AllreduceLayer, shape),
                                       SPEC_MEMBER(AllreduceLayer, elems), SPEC_MEMBER(AllreduceLayer, dims),
                                       SPEC_MEMBER(AllreduceLayer, bits), SPEC_MEMBER(AllreduceLayer, bucket_size)}};

int py_allreduce_parse_costs(PyObject *object, AllreduceCosts *out) {
    PyObject *name, *line;
    Py_ssize_t at = 0;
    if (object == Py_None) return 0;
    if (!PyDict_Check(object)) return PY_REFUSE(PyExc_TypeError, "costs must come from cgxffcv.costs");
    PyObject *copy = PyDict_Copy(object);
    while (copy != NULL && PyDict_Next(copy, &at, &name, &line)) {
        AllreduceLine parsed;
        int algorithm = py_spec_name(name, "costs", allreduce_algorithm_name);
        bool good = algorithm >= 0 &&
                    py_arguments_unpack(line, "ddd;a cost line is (latency, seconds per element, seconds per byte)",
                                        &parsed.latency, &parsed.element, &parsed.byte) == 0;
        if (good && !(parsed.latency >= 0 && parsed.element >= 0 && parsed.byte >= 0 &&
                      isfinite(parsed.latency + parsed.element + parsed.byte))) {
            PyErr_SetString(PyExc_ValueError, "costs: the numbers of a line must be finite and at least 0");
            good = false;
        }
        if (!good) Py_CLEAR(copy);
        if (good) out->lines[algorithm] = parsed;
    }
    if (copy == NULL) return -1;
    Py_DECREF(copy);
    return 1;
}

static int parse_costs(PyObject *object, void *out) {
    AllreduceSettings *settings = out;
    int given = py_allreduce_parse_costs(object, &settings->costs);
    if (given > 0) settings->options.costs = &settings->costs;
    return given < 0 ? -1 : 0;
}

int py_allreduce_parse_feedback(PyObject *value, void *out) {
    AllreduceFeedback *feedback = out;
    int number = PyBool_Check(value) ? (value == Py_True ? ALLREDUCE_FEEDBACK_F32 : ALLREDUCE_NO_FEEDBACK)
                                     : py_spec_name(value, "error_feedback", allreduce_feedback_name);
    if (number < 0) return -1;
    *feedback = (AllreduceFeedback)number;
    return 0;
}

#define OPTION(member) SPEC_KEY(AllreduceSettings, options.member, #member)
#define CHOICE(member, names) SPEC_ENUM_KEY(AllreduceSettings, options.member, #member, names)

static const SpecTable settings_table = {
    "AllreducePlan",
    {SPEC_ENUM_KEY(AllreduceSettings, options.type, "dtype", allreduce_type_name), CHOICE(op, allreduce_op_name),
     OPTION(bits), OPTION(bucket_size), OPTION(layer_min_size), CHOICE(codec, quantize_codec_name),
     CHOICE(rounding, quantize_rounding_name), OPTION(half_metadata), OPTION(spikes),
     CHOICE(scale, quantize_scale_name), CHOICE(algorithm, allreduce_algorithm_name),
     SPEC_PARSE_KEY(AllreduceSettings, options.error_feedback, "error_feedback", py_allreduce_parse_feedback),
     OPTION(seed), OPTION(threads), SPEC_KEY(AllreduceSettings, options.timeout_s, "timeout"),
     SPEC_WHOLE("costs", parse_costs)}};

int py_allreduce_parse(PyObject *kwargs, AllreduceSettings *out) {
    return py_spec_fill(&settings_table, kwargs, NULL, out);
}

/* Where the buffers of a plan are. */
typedef struct PlanSite {
    int device; /* -1: in host memory */
    bool compares;
} PlanSite;

static Status plan_create(Comm *comm, const AllreduceLayer *layers, int count, const AllreduceOptions *options,
                          PlanSite site, Allreduce **out) {
    Status status;
    PyTensorDeviceGuard guard;
    AllreduceBuffer buffer = {
        .layers = layers, .layer_count = count, .on_device = site.device >= 0, .compares = site.compares};
    Py_BEGIN_ALLOW_THREADS;
    status = py_tensor_device_enter(site.device, &guard);
    if (status == STATUS_OK) status = allreduce_create(comm, &buffer, options, out);
    py_tensor_device_leave(&guard);
    Py_END_ALLOW_THREADS;
    return status;
}

/* The plan of a tuple of layers; NULL with an exception set. */
static Allreduce *make_plan(PyTypeObject *type, PyObject *comm_object, PyObject *tuple, const AllreduceOptions *options,
                            PlanSite site) {
    Allreduce *allreduce = NULL;
    AllreduceLayer *layers = NULL;
    Py_ssize_t count = PyTuple_GET_SIZE(tuple);
    ModuleState *state = py_module_state_of_type(type);
    PyObject *keep = PyList_New(0); /* the layers' names */
    Comm *comm = keep == NULL ? NULL : py_comm_object_acquire(state, comm_object, "comm");
    if (comm == NULL) {
        Py_XDECREF(keep);
        return NULL;
    }
    Status status = memory_calloc((size_t)count, sizeof *layers, &layers);
    if (status != STATUS_OK) py_errors_raise(state, status);
    for (Py_ssize_t i = 0; status == STATUS_OK && i < count; i++) {
        if (py_spec_fill(&layer_table, PyTuple_GET_ITEM(tuple, i), keep, &layers[i]) < 0) status = STATUS_ARGUMENT;
    }
    if (status == STATUS_OK) {
        status = plan_create(comm, layers, (int)count, options, site, &allreduce);
        if (status != STATUS_OK) py_errors_raise(state, status);
    }
    memory_free(layers);
    Py_DECREF(keep);
    py_comm_object_release(comm_object);
    return allreduce;
}

/* Engines on GPUs end together, on all ranks: others may have to take the GIL before they get here. */
static void destroy_plan(AllreduceObject *self) {
    Allreduce *allreduce = self->allreduce;
    self->allreduce = NULL;
    if (allreduce == NULL) return;
    Py_BEGIN_ALLOW_THREADS;
    PyTensorDeviceGuard guard;
    Status status = py_tensor_device_enter(self->device, &guard);
    allreduce_destroy(allreduce);
    if (status == STATUS_OK) py_tensor_device_leave(&guard);
    Py_END_ALLOW_THREADS;
}

/* Called when the communicator is about to be closed. */
static void end_plan(CommDependent *dependent) {
    AllreduceObject *self = (AllreduceObject *)((char *)dependent - offsetof(AllreduceObject, dependent));
    destroy_plan(self);
}

static int parse_site(PyObject *args, PyObject **comm, PyObject **layers, PlanSite *site) {
    PyObject *device = NULL;
    uint64_t index = UINT64_MAX;
    int compares = 1;
    if (!PyArg_ParseTuple(args, "OO|Op:AllreducePlan", comm, layers, &device, &compares)) return -1;
    if (device != NULL && py_arguments_whole(device, "device", -1, INT32_MAX, &index) < 0) return -1;
    *site = (PlanSite){.device = (int)(int64_t)index, .compares = compares};
    return 0;
}

static PyObject *plan_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    PyObject *comm, *layers;
    AllreduceSettings settings = {.options = allreduce_defaults()};
    PlanSite site;
    if (parse_site(args, &comm, &layers, &site) < 0) return NULL;
    if (py_allreduce_parse(kwargs, &settings) < 0) return NULL;
    PyObject *copy = py_arguments_tuple(layers, "layers", 0, MAX_LAYERS);
    if (copy == NULL) return NULL;
    Allreduce *allreduce = make_plan(type, comm, copy, &settings.options, site);
    Py_DECREF(copy);
    if (allreduce == NULL) return NULL;
    AllreduceObject *self = (AllreduceObject *)type->tp_alloc(type, 0);
    if (self == NULL) {
        allreduce_destroy(allreduce);
        return NULL;
    }
    self->allreduce = allreduce;
    self->comm = Py_NewRef(comm);
    self->type = settings.options.type;
    self->device = site.device;
    self->dependent.end = end_plan;
    if (self->device >= 0) py_comm_object_add(comm, &self->dependent);
    return (PyObject *)self;
}

static int plan_traverse(PyObject *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(((AllreduceObject *)self)->comm);
    Py_VISIT(((AllreduceObject *)self)->message_tensors);
    return 0;
}

static int plan_clear(PyObject *self) {
    AllreduceObject *plan = (AllreduceObject *)self;
    if (plan->device >= 0 && plan->allreduce != NULL) {
        py_comm_object_remove(plan->comm, &plan->dependent);
        destroy_plan(plan);
    }
    Py_CLEAR(plan->message_tensors);
    Py_CLEAR(plan->comm);
    return 0;
}

static void plan_dealloc(PyObject *self) {
    AllreduceObject *plan = (AllreduceObject *)self;
    PyObject_GC_UnTrack(self);
    plan_clear(self);
    destroy_plan(plan);
    py_allreduce_scratch_free(&plan->scratch, plan->device);
    py_module_free_object(self);
}

/* ---- using ---- */

/* The array types that may hold elements of a plan's type. */
static unsigned type_mask(AllreduceType type) { return 1u << py_tensor_array_type(type) | ARRAY_UNALIGNED; }

/* NULL with an exception set if the communicator was closed before. */
static Allreduce *allreduce_of(PyObject *self) {
    Allreduce *allreduce = ((AllreduceObject *)self)->allreduce;
    if (allreduce == NULL) PyErr_SetString(PyExc_ValueError, "the communicator is closed");
    return allreduce;
}

Allreduce *py_allreduce_acquire(PyObject *plan, unsigned *types) {
    AllreduceObject *self = (AllreduceObject *)plan;
    if (allreduce_of(plan) == NULL || py_comm_object_acquire(py_module_state_of(plan), self->comm, "comm") == NULL)
        return NULL;
    *types = type_mask(self->type);
    return self->allreduce;
}

void py_allreduce_release(PyObject *plan) { py_comm_object_release(((AllreduceObject *)plan)->comm); }

static Status run_plan(Allreduce *allreduce, void *data) {
    Status status;
    Py_BEGIN_ALLOW_THREADS;
    status = allreduce_put(allreduce, data, allreduce_elems(allreduce), NULL);
    Py_END_ALLOW_THREADS;
    return status;
}

static PyObject *plan_run(PyObject *object, PyObject *buffer) {
    AllreduceObject *self = (AllreduceObject *)object;
    ArrayView view;
    PyObject *result = NULL;
    if (allreduce_of(object) == NULL) return NULL;
    if (self->device >= 0) {
        return PyErr_Format(PyExc_ValueError, "the plan is made for arrays on a GPU: put() takes them");
    }
    if (py_array_acquire(buffer, "buffer", type_mask(self->type), -1, true, &view) < 0) return NULL;
    if (view.elems != allreduce_elems(self->allreduce)) {
        PyErr_Format(PyExc_ValueError, "buffer must have the plan's %lld elements, not %lld",
                     (long long)allreduce_elems(self->allreduce), (long long)view.elems);
        goto release;
    }
    if (py_comm_object_acquire(py_module_state_of(object), self->comm, "comm") == NULL) goto release;
    Status status = run_plan(self->allreduce, view.data);
    py_comm_object_release(self->comm);
    result = py_errors_none(py_module_state_of(object), status);
release:
    py_array_release(&view);
    return result;
}

static PyObject *plan_explain(PyObject *object, PyObject *Py_UNUSED(unused)) {
    AllreduceObject *self = (AllreduceObject *)object;
    char text[4096];
    if (py_comm_object_acquire(py_module_state_of(object), self->comm, "comm") == NULL) return NULL;
    size_t length = allreduce_explain(self->allreduce, text, sizeof text);
    PyObject *result = NULL;
    if (length < sizeof text) {
        result = PyUnicode_FromStringAndSize(text, (Py_ssize_t)length);
    } else {
        char *longer = PyMem_Malloc(length + 1);
        if (longer != NULL) allreduce_explain(self->allreduce, longer, length + 1);
        result = longer == NULL ? PyErr_NoMemory() : PyUnicode_FromStringAndSize(longer, (Py_ssize_t)length);
        PyMem_Free(longer);
    }
    py_comm_object_release(self->comm);
    return result;
}

#define DEFINE_GETTER(name, value)                                                                                     \
    static PyObject *get_##name(PyObject *self, void *Py_UNUSED(unused)) {                                             \
        const Allreduce *allreduce = allreduce_of(self);                                                               \
        return allreduce == NULL ? NULL : (value);                                                                     \
    }

DEFINE_GETTER(elems, PyLong_FromLongLong(allreduce_elems(allreduce)))
DEFINE_GETTER(recordable, PyBool_FromLong(allreduce_recordable(allreduce)))
DEFINE_GETTER(feeds_back, PyBool_FromLong(allreduce_feeds_back(allreduce)))
DEFINE_GETTER(wire_bytes, PyLong_FromUnsignedLongLong(allreduce_bytes(allreduce, allreduce_elems(allreduce)).wire))
DEFINE_GETTER(plain_bytes, PyLong_FromUnsignedLongLong(allreduce_bytes(allreduce, allreduce_elems(allreduce)).plain))
DEFINE_GETTER(algorithm, PyUnicode_FromString(allreduce_algorithm_name((int)allreduce_algorithm(allreduce))))
DEFINE_GETTER(call, PyLong_FromUnsignedLong(allreduce_call(allreduce)))

static int set_call(PyObject *self, PyObject *value, void *Py_UNUSED(unused)) {
    uint64_t call;
    if (py_arguments_whole(value == NULL ? Py_None : value, "call", 0, UINT32_MAX, &call) < 0) return -1;
    Allreduce *allreduce = allreduce_of(self);
    if (allreduce == NULL) return -1;
    Status status = allreduce_set_call(allreduce, (uint32_t)call);
    return py_errors_check(py_module_state_of(self), status);
}

/* Into a new array. */
static PyObject *copy_residual(AllreduceObject *self, int64_t elems) {
    PyObject *copy = py_array_new(ARRAY_F32, 1, &elems);
    PyTensorDeviceGuard guard;
    Status status;
    if (copy == NULL) return NULL;
    Py_BEGIN_ALLOW_THREADS;
    status = py_tensor_device_enter(self->device, &guard);
    if (status == STATUS_OK) status = allreduce_residual_copy(self->allreduce, py_array_data(copy));
    py_tensor_device_leave(&guard);
    Py_END_ALLOW_THREADS;
    return py_errors_result(py_module_state_of(self), status, copy);
}

static PyObject *get_residual(PyObject *self, void *Py_UNUSED(unused)) {
    const Allreduce *allreduce = allreduce_of(self);
    if (allreduce == NULL) return NULL;
    if (!allreduce_feeds_back(allreduce)) Py_RETURN_NONE;
    int64_t elems = allreduce_residual_elems(allreduce);
    float *residual = allreduce_residual_at(allreduce);
    if (residual == NULL) return copy_residual((AllreduceObject *)self, elems);
    return py_array_wrap(ARRAY_F32, 1, &elems, NULL, residual, self, true);
}

static PyObject *plan_restore(PyObject *object, PyObject *residual) {
    AllreduceObject *self = (AllreduceObject *)object;
    ArrayView view;
    if (py_array_acquire(residual, "residual", 1u << ARRAY_F32, 1, false, &view) < 0) return NULL;
    Allreduce *allreduce = allreduce_of(object);
    if (allreduce != NULL && view.elems != allreduce_elems(allreduce)) {
        PyErr_Format(PyExc_ValueError, "residual must have the plan's %lld elements, not %lld",
                     (long long)allreduce_elems(allreduce), (long long)view.elems);
        allreduce = NULL;
    }
    Status status = STATUS_OK;
    if (allreduce != NULL) {
        Py_BEGIN_ALLOW_THREADS;
        PyTensorDeviceGuard guard;
        status = py_tensor_device_enter(self->device, &guard);
        if (status == STATUS_OK) status = allreduce_restore(allreduce, view.data, view.elems);
        py_tensor_device_leave(&guard);
        Py_END_ALLOW_THREADS;
    }
    py_array_release(&view);
    if (allreduce == NULL) return NULL;
    return py_errors_none(py_module_state_of(object), status);
}

static PyGetSetDef plan_getset[] = {
    {"elems", get_elems, NULL, "Elements of the flat buffer.", NULL},
    {"recordable", get_recordable, NULL, "Whether runs are queued on a GPU's stream without waiting for it.", NULL},
    {"wire_bytes", get_wire_bytes, NULL, "Bytes that this rank sends per run, counted for each receiver.", NULL},
    {"plain_bytes", get_plain_bytes, NULL, "The same if nothing were quantised.", NULL},
    {"algorithm", get_algorithm, NULL, "The algorithm that runs.", NULL},
    {"call", get_call, set_call, "The number of the next run, which keys stochastic rounding.", NULL},
    {"feeds_back", get_feeds_back, NULL, "Whether there is a residual.", NULL},
    {"residual", get_residual, NULL,
     "The residual of error feedback, float32: a view, or a copy if it is on a GPU or kept in 8 bits. None without "
     "feedback.",
     NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMethodDef plan_methods[] = {
    {"run", plan_run, METH_O, "run(buffer)\n--\n\nReduces the flat buffer in place. Collective."},
    {"put", PY_KEYWORDS(py_allreduce_put),
     "put($self, /, tensors, stream=0)\n--\n\n"
     "Reduces the layers stored in several Tensors, one after another, in place, in the order\n"
     "of the stream. Collective."},
    {"enqueue_on_lane", py_allreduce_enqueue_on_lane, METH_VARARGS,
     "enqueue_on_lane(tensor, stream, lane, blocks)\n--\n\n"
     "The same for one Tensor on a GPU, on the stream `lane`, after what is queued on `stream` now;\n"
     "its kernels have at most `blocks` blocks (0: as many as there is room for)."},
    {"wait", PY_KEYWORDS(py_allreduce_wait),
     "wait($self, /, stream=0)\n--\n\n"
     "Waits until a stream has done what is queued on it, with the communicator's deadline."},
    {"stage_messages", py_stages_messages, METH_VARARGS,
     "stage_messages(stage)\n--\n\n"
     "Returns (this rank's number in the stage, bytes of its message to each member, of each member's to it, of a "
     "result)."},
    {"stage_encode", py_stages_encode, METH_VARARGS,
     "stage_encode(stage, buffer, messages)\n--\n\nWrites this rank's messages."},
    {"stage_reduce", py_stages_reduce, METH_VARARGS,
     "stage_reduce(stage, buffer, messages, result)\n--\n\nReads the others' messages and writes the result."},
    {"stage_finish", py_stages_finish, METH_VARARGS,
     "stage_finish(buffer, gathered)\n--\n\nWrites the sums or averages into the buffer."},
    {"losses", py_adapt_losses, METH_VARARGS,
     "losses(buffer, residual, widths)\n--\n\n"
     "Returns (||x - x'||^2 of each layer with each width and, last, ||x||^2; bytes of each layer with\n"
     "each width); 0 for layers that are not quantised."},
    {"external_space", py_stages_space, METH_NOARGS,
     "external_space()\n--\n\nReturns (bytes of a row, rows of the window, outgoing rows)."},
    {"external_bind", py_stages_bind, METH_VARARGS,
     "external_bind(window, outgoing)\n--\n\nTakes Tensors of bytes for its messages, on its GPU."},
    {"external_step", py_stages_step, METH_VARARGS,
     "external_step(step, tensor, stream)\n--\n\nQueues a step of a run on a stream."},
    {"restore", plan_restore, METH_O,
     "restore(residual)\n--\n\nRestores a residual of all elements. Not while runs are in progress."},
    {"explain", plan_explain, METH_NOARGS, "explain()\n--\n\nWhat was chosen and why, as text."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot plan_slots[] = {
    {Py_tp_doc, "A plan of the compressed allreduce; made by cgxffcv.allreduce.AllreducePlan."},
    {Py_tp_new, plan_new},
    {Py_tp_dealloc, plan_dealloc},
    {Py_tp_traverse, plan_traverse},
    {Py_tp_clear, plan_clear},
    {Py_tp_methods, plan_methods},
    {Py_tp_getset, plan_getset},
    {0, NULL},
};

/* ---- functions ---- */

static PyObject *costs_dict(const AllreduceCosts *costs) {
    PyObject *dict = PyDict_New();
    for (int a = 0; dict != NULL && a < ALLREDUCE_ALGORITHMS; a++) {
        const AllreduceLine *line = &costs->lines[a];
        if (line->latency + line->element + line->byte <= 0) continue;
        PyObject *numbers = Py_BuildValue("(ddd)", line->latency, line->element, line->byte);
        if (numbers == NULL || PyDict_SetItemString(dict, allreduce_algorithm_name(a), numbers) < 0) Py_CLEAR(dict);
        Py_XDECREF(numbers);
    }
    return dict;
}

static int fill_size(PyObject *item, void *out) {
    uint64_t elems;
    if (py_arguments_whole(item, "sizes", 1, INT64_MAX, &elems) < 0) return -1;
    *(int64_t *)out = (int64_t)elems;
    return 0;
}

static PyObject *plan_measure(PyObject *module, PyObject *args) {
    PyObject *comm_object, *site_name, *sizes;
    int64_t elems[TRIAL_MOST_SIZES];
    int repeats;
    AllreduceCosts costs;
    if (!PyArg_ParseTuple(args, "OOOi:allreduce_measure", &comm_object, &site_name, &sizes, &repeats)) return NULL;
    int site = py_spec_name(site_name, "site", allreduce_site_name);
    Py_ssize_t count =
        site < 0 ? -1 : py_arguments_fill(sizes, "sizes", 1, TRIAL_MOST_SIZES, fill_size, elems, sizeof *elems);
    Comm *comm = count < 0 ? NULL : py_comm_object_acquire(py_module_state(module), comm_object, "comm");
    if (comm == NULL) return NULL;
    Status status;
    Py_BEGIN_ALLOW_THREADS;
    status = allreduce_measure(comm, (AllreduceSite)site, elems, (int)count, repeats, &costs);
    Py_END_ALLOW_THREADS;
    py_comm_object_release(comm_object);
    return status == STATUS_OK ? costs_dict(&costs) : py_errors_raise(py_module_state(module), status);
}

static PyObject *check_replicas(PyObject *module, PyObject *args) {
    PyObject *comm_object, *array;
    ArrayView view;
    if (!PyArg_ParseTuple(args, "OO:allreduce_check_replicas", &comm_object, &array)) return NULL;
    if (py_array_acquire(array, "array", ARRAY_UNALIGNED, -1, false, &view) < 0) return NULL;
    Comm *comm = py_comm_object_acquire(py_module_state(module), comm_object, "comm");
    Status status = STATUS_OK;
    if (comm != NULL) {
        Py_BEGIN_ALLOW_THREADS;
        status = allreduce_check_replicas(comm, view.data, (size_t)(view.elems * view.item_bytes));
        Py_END_ALLOW_THREADS;
        py_comm_object_release(comm_object);
    }
    py_array_release(&view);
    if (comm == NULL) return NULL;
    return py_errors_none(py_module_state(module), status);
}

static PyObject *compare_calls(PyObject *module, PyObject *args) {
    PyObject *comm_object, *timeout;
    const char *text;
    double seconds;
    ArgumentsNumber number = {"number", INT64_MAX, 0}, made = {"made", INT64_MAX, 0};
    if (!PyArg_ParseTuple(args, "OsO&O&O:allreduce_compare_calls", &comm_object, &text, py_arguments_number, &number,
                          py_arguments_number, &made, &timeout) ||
        py_comm_parse_timeout(timeout, "timeout", &seconds) < 0) {
        return NULL;
    }
    Comm *comm = py_comm_object_acquire(py_module_state(module), comm_object, "comm");
    if (comm == NULL) return NULL;
    AllreduceCall call = {.number = number.value, .made = made.value};
    Status status;
    Py_BEGIN_ALLOW_THREADS;
    status = allreduce_compare_calls(comm, text, seconds, &call);
    Py_END_ALLOW_THREADS;
    py_comm_object_release(comm_object);
    if (status != STATUS_OK) return py_errors_raise(py_module_state(module), status);
    return Py_BuildValue("(NK)", PyBool_FromLong(call.same), (unsigned long long)call.made);
}

static PyMethodDef functions[] = {
    {"allreduce_measure", plan_measure, METH_VARARGS,
     "allreduce_measure(comm, site, sizes, repeats)\n--\n\n"
     "Returns {algorithm: (latency, seconds per element, seconds per byte)}, from calls with these\n"
     "numbers of float32. Collective."},
    {"allreduce_check_replicas", check_replicas, METH_VARARGS,
     "allreduce_check_replicas(comm, array)\n--\n\nSee cgxffcv.allreduce.check_replicas."},
    {"allreduce_compare_calls", compare_calls, METH_VARARGS,
     "allreduce_compare_calls(comm, text, number, made, timeout)\n--\n\n"
     "Returns (whether all ranks have that number, the greatest `made`). CommError on all ranks unless all have "
     "the same text.\n"
     "Collective."},
    {NULL, NULL, 0, NULL},
};

int py_allreduce_add(PyObject *module) {
    if (py_module_add_type(module, "_cgxffcv.AllreducePlan", sizeof(AllreduceObject), Py_TPFLAGS_HAVE_GC, plan_slots,
                           &py_module_state(module)->allreduce_type) < 0)
        return -1;
    return PyModule_AddFunctions(module, functions);
}
