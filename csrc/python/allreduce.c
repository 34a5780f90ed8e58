/* Plans of the compressed allreduce. cgxffcv/allreduce.py is the typed surface. */
#include "python/allreduce.h"

#include "base/memory.h"
#include "python/arguments.h"
#include "python/array.h"
#include "python/comm.h"
#include "python/spec.h"

#define MAX_LAYERS (1 << 24)

/* Its communicator is the object's: each use takes it, and fails if it was closed. */
typedef struct AllreduceObject {
    PyObject_HEAD Allreduce *allreduce; /* owned */
    PyObject *comm;                     /* owned */
    AllreduceType type;
} AllreduceObject;

/* A communicator taken for a call that runs without the interpreter lock. */
static Comm *take_comm(PyObject *module_or_type, PyObject *object) {
    ModuleState *state = PyType_Check(module_or_type) ? py_module_state_of_type((PyTypeObject *)module_or_type)
                                                      : py_module_state(module_or_type);
    return state == NULL ? NULL : py_comm_object_take(state, object, "comm");
}

/* ---- making ---- */

static const SpecTable layer_table = {"layer",
                                      {SPEC_MEMBER(AllreduceLayer, name), SPEC_MEMBER(AllreduceLayer, shape),
                                       SPEC_MEMBER(AllreduceLayer, elems), SPEC_MEMBER(AllreduceLayer, dims),
                                       SPEC_MEMBER(AllreduceLayer, bits), SPEC_MEMBER(AllreduceLayer, bucket_size)}};

static int parse_costs(PyObject *object, void *out) {
    AllreduceSettings *settings = out;
    Py_buffer view;
    if (object == Py_None) return 0;
    if (PyObject_GetBuffer(object, &view, PyBUF_SIMPLE) < 0) return -1;
    int result = view.len == (Py_ssize_t)sizeof settings->costs ? 0 : -1;
    if (result == 0) {
        memcpy(&settings->costs, view.buf, sizeof settings->costs);
        settings->options.costs = &settings->costs;
    } else {
        PyErr_SetString(PyExc_ValueError, "costs must come from cgxffcv.allreduce.measure");
    }
    PyBuffer_Release(&view);
    return result;
}

#define OPTION(member) SPEC_KEY(AllreduceSettings, options.member, #member)
#define CHOICE(member, names) SPEC_ENUM_KEY(AllreduceSettings, options.member, #member, names)

static const SpecTable settings_table = {
    "AllreducePlan",
    {SPEC_ENUM_KEY(AllreduceSettings, options.type, "dtype", allreduce_type_name), CHOICE(op, allreduce_op_name),
     OPTION(bits), OPTION(bucket_size), OPTION(layer_min_size), CHOICE(codec, quantize_codec_name),
     CHOICE(rounding, quantize_rounding_name), OPTION(half_metadata), OPTION(spikes),
     CHOICE(algorithm, allreduce_algorithm_name), OPTION(error_feedback), OPTION(seed), OPTION(threads),
     SPEC_KEY(AllreduceSettings, options.timeout_s, "timeout"), SPEC_WHOLE("costs", parse_costs)}};

int py_allreduce_parse(PyObject *kwargs, AllreduceSettings *out) {
    return py_spec_fill(&settings_table, kwargs, NULL, out);
}

static Status create(Comm *comm, const AllreduceLayer *layers, int count, const AllreduceOptions *options,
                     Allreduce **out) {
    Status status;
    AllreduceBuffer buffer = {.layers = layers, .layer_count = count};
    Py_BEGIN_ALLOW_THREADS;
    status = allreduce_create(comm, &buffer, options, out);
    Py_END_ALLOW_THREADS;
    return status;
}

/* The plan of a tuple of layers; NULL with an exception set. */
static Allreduce *make_plan(PyTypeObject *type, PyObject *comm_object, PyObject *tuple,
                            const AllreduceOptions *options) {
    Allreduce *allreduce = NULL;
    AllreduceLayer *layers = NULL;
    Py_ssize_t count = PyTuple_GET_SIZE(tuple);
    ModuleState *state = py_module_state_of_type(type);
    PyObject *keep = PyList_New(0); /* the layers' names */
    Comm *comm = keep == NULL ? NULL : take_comm((PyObject *)type, comm_object);
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
        status = create(comm, layers, (int)count, options, &allreduce);
        if (status != STATUS_OK) py_errors_raise(state, status);
    }
    memory_free(layers);
    Py_DECREF(keep);
    py_comm_object_give(comm_object);
    return allreduce;
}

static PyObject *plan_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    PyObject *comm, *layers;
    AllreduceSettings settings = {.options = allreduce_defaults()};
    if (!PyArg_ParseTuple(args, "OO:AllreducePlan", &comm, &layers)) return NULL;
    if (py_allreduce_parse(kwargs, &settings) < 0) return NULL;
    PyObject *copy = py_arguments_tuple(layers, "layers", 0, MAX_LAYERS);
    if (copy == NULL) return NULL;
    Allreduce *allreduce = make_plan(type, comm, copy, &settings.options);
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
    return (PyObject *)self;
}

static int plan_traverse(PyObject *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(((AllreduceObject *)self)->comm);
    return 0;
}

static int plan_clear(PyObject *self) {
    Py_CLEAR(((AllreduceObject *)self)->comm);
    return 0;
}

static void plan_dealloc(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    allreduce_destroy(((AllreduceObject *)self)->allreduce);
    plan_clear(self);
    type->tp_free(self);
    Py_DECREF(type);
}

/* ---- using ---- */

/* The array types that may hold elements of a plan's type. */
static unsigned type_mask(AllreduceType type) {
    static const ArrayType of[ALLREDUCE_TYPES] = {
        [ALLREDUCE_F32] = ARRAY_F32, [ALLREDUCE_F16] = ARRAY_F16, [ALLREDUCE_BF16] = ARRAY_U16,
        [ALLREDUCE_F64] = ARRAY_F64, [ALLREDUCE_I8] = ARRAY_I8,   [ALLREDUCE_U8] = ARRAY_U8,
        [ALLREDUCE_I16] = ARRAY_I16, [ALLREDUCE_U16] = ARRAY_U16, [ALLREDUCE_I32] = ARRAY_I32,
        [ALLREDUCE_U32] = ARRAY_U32, [ALLREDUCE_I64] = ARRAY_I64, [ALLREDUCE_U64] = ARRAY_U64,
    };
    return 1u << of[type] | ARRAY_UNALIGNED;
}

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
    if (py_array_acquire(buffer, "buffer", type_mask(self->type), -1, true, &view) < 0) return NULL;
    if (view.elems != allreduce_elems(self->allreduce)) {
        PyErr_Format(PyExc_ValueError, "buffer must have the plan's %lld elements, not %lld",
                     (long long)allreduce_elems(self->allreduce), (long long)view.elems);
        goto release;
    }
    if (take_comm((PyObject *)Py_TYPE(object), self->comm) == NULL) goto release;
    Status status = run_plan(self->allreduce, view.data);
    py_comm_object_give(self->comm);
    result =
        status == STATUS_OK ? Py_NewRef(Py_None) : py_errors_raise(py_module_state_of_type(Py_TYPE(object)), status);
release:
    py_array_release(&view);
    return result;
}

static PyObject *plan_explain(PyObject *object, PyObject *unused) {
    (void)unused;
    AllreduceObject *self = (AllreduceObject *)object;
    char text[4096];
    if (take_comm((PyObject *)Py_TYPE(object), self->comm) == NULL) return NULL;
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
    py_comm_object_give(self->comm);
    return result;
}

static Allreduce *allreduce_of(PyObject *self) { return ((AllreduceObject *)self)->allreduce; }

static PyObject *get_elems(PyObject *self, void *unused) {
    (void)unused;
    return PyLong_FromLongLong(allreduce_elems(allreduce_of(self)));
}

static PyObject *get_wire_bytes(PyObject *self, void *unused) {
    (void)unused;
    return PyLong_FromUnsignedLongLong(allreduce_bytes(allreduce_of(self), allreduce_elems(allreduce_of(self))).wire);
}

static PyObject *get_plain_bytes(PyObject *self, void *unused) {
    (void)unused;
    return PyLong_FromUnsignedLongLong(allreduce_bytes(allreduce_of(self), allreduce_elems(allreduce_of(self))).plain);
}

static PyObject *get_algorithm(PyObject *self, void *unused) {
    (void)unused;
    return PyUnicode_FromString(allreduce_algorithm_name((int)allreduce_algorithm(allreduce_of(self))));
}

static PyObject *get_call(PyObject *self, void *unused) {
    (void)unused;
    return PyLong_FromUnsignedLong(allreduce_call(allreduce_of(self)));
}

static int set_call(PyObject *self, PyObject *value, void *unused) {
    (void)unused;
    uint64_t call;
    if (py_arguments_whole(value == NULL ? Py_None : value, "call", 0, UINT32_MAX, &call) < 0) return -1;
    allreduce_set_call(allreduce_of(self), (uint32_t)call);
    return 0;
}

static PyObject *get_residual(PyObject *self, void *unused) {
    (void)unused;
    int64_t elems;
    float *residual = allreduce_residual(allreduce_of(self), &elems);
    if (residual == NULL) Py_RETURN_NONE;
    return py_array_wrap(ARRAY_F32, 1, &elems, NULL, residual, self, true);
}

static PyGetSetDef plan_getset[] = {
    {"elems", get_elems, NULL, "Elements of the flat buffer.", NULL},
    {"wire_bytes", get_wire_bytes, NULL, "Bytes that this rank sends in a run, each receiver counted.", NULL},
    {"plain_bytes", get_plain_bytes, NULL, "The same if nothing were quantised.", NULL},
    {"algorithm", get_algorithm, NULL, "The algorithm that runs.", NULL},
    {"call", get_call, set_call, "The number of the next run, which keys stochastic rounding.", NULL},
    {"residual", get_residual, NULL, "The residual of error feedback, float32, a view; None without.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMethodDef plan_methods[] = {
    {"run", plan_run, METH_O, "run(buffer)\n--\n\nReduces the flat buffer in place. Collective."},
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

static PyType_Spec plan_spec = {
    .name = "_cgxffcv.AllreducePlan",
    .basicsize = sizeof(AllreduceObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = plan_slots,
};

/* ---- functions ---- */

static PyObject *costs_dict(const AllreduceCosts *costs) {
    PyObject *dict = PyDict_New();
    for (int a = 0; dict != NULL && a < ALLREDUCE_ALGORITHMS; a++) {
        if (costs->seconds[a][0] <= 0) continue;
        PyObject *list = PyList_New(ALLREDUCE_COST_SIZES);
        for (int s = 0; list != NULL && s < ALLREDUCE_COST_SIZES; s++) {
            PyObject *pair = Py_BuildValue("(Ld)", (long long)costs->elems[s], costs->seconds[a][s]);
            if (pair == NULL) Py_CLEAR(list);
            if (list != NULL) PyList_SET_ITEM(list, s, pair);
        }
        if (list == NULL || PyDict_SetItemString(dict, allreduce_algorithm_name((int)a), list) < 0) {
            Py_CLEAR(dict);
        }
        Py_XDECREF(list);
    }
    return dict;
}

static PyObject *measure(PyObject *module, PyObject *comm_object) {
    AllreduceCosts costs;
    Comm *comm = take_comm(module, comm_object);
    if (comm == NULL) return NULL;
    Status status;
    Py_BEGIN_ALLOW_THREADS;
    status = allreduce_measure(comm, &costs);
    Py_END_ALLOW_THREADS;
    py_comm_object_give(comm_object);
    if (status != STATUS_OK) return py_errors_raise(py_module_state(module), status);
    PyObject *dict = costs_dict(&costs);
    return dict == NULL ? NULL : Py_BuildValue("y#N", (const char *)&costs, (Py_ssize_t)sizeof costs, dict);
}

static PyObject *check_replicas(PyObject *module, PyObject *args) {
    PyObject *comm_object, *array;
    ArrayView view;
    if (!PyArg_ParseTuple(args, "OO:allreduce_check_replicas", &comm_object, &array)) return NULL;
    if (py_array_acquire(array, "array", ARRAY_UNALIGNED, -1, false, &view) < 0) return NULL;
    Comm *comm = take_comm(module, comm_object);
    Status status = STATUS_OK;
    if (comm != NULL) {
        Py_BEGIN_ALLOW_THREADS;
        status = allreduce_check_replicas(comm, view.data, (size_t)(view.elems * view.item_bytes));
        Py_END_ALLOW_THREADS;
        py_comm_object_give(comm_object);
    }
    py_array_release(&view);
    if (comm == NULL) return NULL;
    if (status != STATUS_OK) return py_errors_raise(py_module_state(module), status);
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"allreduce_measure", measure, METH_O,
     "allreduce_measure(comm)\n--\n\n(the cost table as bytes, the same as a dict). Collective."},
    {"allreduce_check_replicas", check_replicas, METH_VARARGS,
     "allreduce_check_replicas(comm, array)\n--\n\nSee cgxffcv.allreduce.check_replicas."},
    {NULL, NULL, 0, NULL},
};

int py_allreduce_add(PyObject *module) {
    if (PyModule_AddFunctions(module, functions) < 0) return -1;
    return py_module_add_type(module, &plan_spec);
}
