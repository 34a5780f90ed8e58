/* The type Comm over comm/comm.h: arguments in, the GIL released around everything, signals and warnings let through
 * while it waits. */
#include "python/comm.h"

#include <string.h>
#include <structmember.h>

#include "base/memory.h"
#include "python/arguments.h"

typedef struct CommObject {
    PyObject ob_base;
    Comm *comm;                        /* owned; NULL when closed */
    int in_use;                        /* calls in progress */
    CommDependent *dependents;         /* borrowed: the first */
    PyObject *kept;                    /* owned: a dict of what is made once for it and kept until it is closed */
    struct CommObject *before, *after; /* borrowed, in the list of open ones */
    PyObject *weak;                    /* weak references: what others remember about it, such as measured costs */
} CommObject;

/* All that are open, for the end of the process; guarded by the GIL. */
static CommObject *open_objects;

/* ---- called by waits ---- */

static Status warn(void *Py_UNUSED(context), int rank, const char *message) {
    PyGILState_STATE gil = PyGILState_Ensure();
    int failed = PyErr_WarnEx(PyExc_RuntimeWarning, message, 1);
    PyGILState_Release(gil);
    return failed < 0 ? error_at_rank(error_fail(STATUS_INTERRUPTED, "%s", message), rank) : STATUS_OK;
}

/* ---- arguments ---- */

int py_comm_parse_timeout(PyObject *object, const char *argument, double *seconds) {
    *seconds = 0;
    if (object == NULL || object == Py_None) return 0;
    double value = PyBool_Check(object) ? 0 : PyFloat_AsDouble(object);
    if (value == -1.0 && PyErr_ExceptionMatches(PyExc_TypeError)) {
        PyErr_Clear();
        PyErr_Format(PyExc_TypeError, "%s must be a number of seconds above 0, or None, not %R", argument, object);
    }
    if (value == -1.0 && PyErr_ExceptionMatches(PyExc_OverflowError)) {
        PyErr_Clear();
        PyErr_Format(PyExc_ValueError, "%s must be a number of seconds above 0 that a float can hold, or None",
                     argument);
    }
    if (PyErr_Occurred()) return -1;
    if (!(value > 0)) {
        return PY_REFUSE(PyExc_ValueError, "%s=%R: a number of seconds above 0 is expected, or None", argument, object);
    }
    *seconds = value;
    return 0;
}

static int parse_count(PyObject *object, const char *name, long least, long most, long *out) {
    *out = 0;
    if (object == NULL || object == Py_None) return 0;
    uint64_t value;
    if (py_arguments_whole(object, name, least, (uint64_t)most, &value) < 0) return -1;
    *out = (long)value;
    return 0;
}

static int parse_options(PyObject *timeout, PyObject *nodes, PyObject *slot_bytes, PyObject *stall, CommOptions *out) {
    long node_count, slot;
    *out = (CommOptions){.hooks = {.check = py_errors_check_signals, .warn = warn}};
    if (py_comm_parse_timeout(timeout, "timeout", &out->timeout_s) < 0 ||
        py_comm_parse_timeout(stall, "stall", &out->stall_s) < 0) {
        return -1;
    }
    if (parse_count(nodes, "nodes", 1, 1 << 20, &node_count) < 0) return -1;
    if (parse_count(slot_bytes, "slot_bytes", 4096, 4 << 20, &slot) < 0) return -1;
    out->nodes = (int)node_count;
    out->slot_bytes = (size_t)slot;
    return 0;
}

/* For the short calls that keep the GIL. */
static Comm *open_comm(PyObject *self) {
    Comm *comm = ((CommObject *)self)->comm;
    if (comm == NULL) PyErr_SetString(PyExc_ValueError, "the communicator is closed");
    return comm;
}

static Comm *acquire_comm(PyObject *self) {
    Comm *comm = open_comm(self);
    if (comm != NULL) ((CommObject *)self)->in_use++;
    return comm;
}

Comm *py_comm_object_acquire(ModuleState *state, PyObject *object, const char *argument) {
    if (!PyObject_TypeCheck(object, (PyTypeObject *)state->comm_type)) {
        PyErr_Format(PyExc_TypeError, "%s must be a cgxffcv.comm.Comm, not %s", argument, Py_TYPE(object)->tp_name);
        return NULL;
    }
    return acquire_comm(object);
}

void py_comm_object_release(PyObject *object) { ((CommObject *)object)->in_use--; }

void py_comm_object_add(PyObject *object, CommDependent *dependent) {
    CommObject *self = (CommObject *)object;
    dependent->before = NULL;
    dependent->after = self->dependents;
    if (self->dependents != NULL) self->dependents->before = dependent;
    self->dependents = dependent;
}

void py_comm_object_remove(PyObject *object, CommDependent *dependent) {
    CommObject *self = (CommObject *)object;
    *(dependent->before != NULL ? &dependent->before->after : &self->dependents) = dependent->after;
    if (dependent->after != NULL) dependent->after->before = dependent->before;
}

/* ---- making ---- */

PyObject *py_comm_object_wrap(ModuleState *state, Comm *comm) {
    PyTypeObject *type = (PyTypeObject *)state->comm_type;
    PyObject *kept = PyDict_New();
    CommObject *self = kept == NULL ? NULL : (CommObject *)type->tp_alloc(type, 0);
    if (self == NULL) {
        Py_XDECREF(kept);
        comm_destroy(comm);
        return NULL;
    }
    self->kept = kept;
    self->comm = comm;
    self->after = open_objects;
    if (self->after != NULL) self->after->before = self;
    open_objects = self;
    return (PyObject *)self;
}

static PyObject *comm_world(PyObject *module, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"timeout", "nodes", "slot_bytes", "stall", "ranks", NULL};
    PyObject *timeout = NULL, *nodes = NULL, *slot_bytes = NULL, *stall = NULL;
    int ranks = 0;
    CommOptions options;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|OO$OOi:comm_world", names, &timeout, &nodes, &slot_bytes, &stall,
                                     &ranks) ||
        parse_options(timeout, nodes, slot_bytes, stall, &options) < 0) {
        return NULL;
    }
    options.ranks = ranks;
    Comm *comm = NULL;
    Status status;
    Py_BEGIN_ALLOW_THREADS;
    status = comm_create_world(&options, &comm);
    Py_END_ALLOW_THREADS;
    return status == STATUS_OK ? py_comm_object_wrap(py_module_state(module), comm)
                               : py_errors_raise(py_module_state(module), status);
}

static PyObject *comm_segment_fd(PyObject *module, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"size", "slot_bytes", NULL};
    PyObject *slot_bytes = NULL;
    int size, fd = -1;
    long slot;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "i|O:comm_segment", names, &size, &slot_bytes) ||
        parse_count(slot_bytes, "slot_bytes", 4096, 4 << 20, &slot) < 0) {
        return NULL;
    }
    Status status = comm_segment_create(size, (size_t)slot, &fd);
    return status == STATUS_OK ? PyLong_FromLong(fd) : py_errors_raise(py_module_state(module), status);
}

static PyObject *comm_attach_fd(PyObject *module, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"fd", "rank", "size", "timeout", "nodes", "stall", NULL};
    PyObject *timeout = NULL, *nodes = NULL, *stall = NULL;
    int fd, rank, size;
    CommOptions options;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "iii|OO$O:comm_attach", names, &fd, &rank, &size, &timeout, &nodes,
                                     &stall) ||
        parse_options(timeout, nodes, NULL, stall, &options) < 0) {
        return NULL;
    }
    Comm *comm = NULL;
    Status status;
    Py_BEGIN_ALLOW_THREADS;
    status = comm_attach(fd, rank, size, &options, &comm);
    Py_END_ALLOW_THREADS;
    return status == STATUS_OK ? py_comm_object_wrap(py_module_state(module), comm)
                               : py_errors_raise(py_module_state(module), status);
}

static PyObject *split(PyObject *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"color", "key", NULL};
    PyObject *color_given, *key_given = NULL;
    uint64_t color, key = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|O:split", names, &color_given, &key_given)) return NULL;
    if (py_arguments_whole(color_given, "color", INT32_MIN, INT32_MAX, &color) < 0) return NULL;
    if (key_given != NULL && py_arguments_whole(key_given, "key", INT32_MIN, INT32_MAX, &key) < 0) return NULL;
    Comm *comm = acquire_comm(self), *part = NULL;
    if (comm == NULL) return NULL;
    Status status;
    Py_BEGIN_ALLOW_THREADS;
    status = comm_split(comm, (int)color, (int)key, &part);
    Py_END_ALLOW_THREADS;
    py_comm_object_release(self);
    if (status != STATUS_OK) return py_errors_raise(py_module_state_of(self), status);
    return part == NULL ? Py_NewRef(Py_None) : py_comm_object_wrap(py_module_state_of(self), part);
}

/* ---- closing ---- */

/* Clearing what is kept may run Python code, which may get here, too. */
static void comm_object_destroy(CommObject *self) {
    if (self->comm != NULL && self->kept != NULL) PyDict_Clear(self->kept);
    Comm *comm = self->comm;
    if (comm == NULL || self->in_use > 0) return;
    while (self->dependents != NULL) {
        CommDependent *first = self->dependents;
        py_comm_object_remove((PyObject *)self, first);
        first->end(first);
    }
    *(self->before != NULL ? &self->before->after : &open_objects) = self->after;
    if (self->after != NULL) self->after->before = self->before;
    self->comm = NULL;
    Py_BEGIN_ALLOW_THREADS;
    comm_destroy(comm);
    Py_END_ALLOW_THREADS;
}

static PyObject *close_comm(PyObject *self, PyObject *Py_UNUSED(unused)) {
    if (((CommObject *)self)->in_use > 0) {
        return PyErr_Format(py_module_state_of(self)->comm_error,
                            "close: another thread is using this communicator (abort() ends what it waits for)");
    }
    comm_object_destroy((CommObject *)self);
    Py_RETURN_NONE;
}

static int comm_traverse(PyObject *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(((CommObject *)self)->kept);
    return 0;
}

static int comm_clear(PyObject *self) {
    Py_CLEAR(((CommObject *)self)->kept);
    return 0;
}

static void dealloc(PyObject *self) {
    PyObject_GC_UnTrack(self);
    if (((CommObject *)self)->weak != NULL) PyObject_ClearWeakRefs(self);
    comm_object_destroy((CommObject *)self);
    comm_clear(self);
    py_module_free_object(self);
}

static PyObject *comm_object_enter(PyObject *self, PyObject *Py_UNUSED(unused)) {
    return open_comm(self) == NULL ? NULL : Py_NewRef(self);
}

/* A SystemExit with code 0 or None is a normal departure, anything else a failure. */
static bool is_failure(PyObject *type, PyObject *value) {
    if (type == Py_None) return false;
    if (!PyObject_IsSubclass(type, PyExc_SystemExit)) return true;
    PyObject *code = value == Py_None ? NULL : PyObject_GetAttrString(value, "code");
    bool fine = code == NULL || code == Py_None || (PyLong_Check(code) && PyLong_AsLong(code) == 0);
    Py_XDECREF(code);
    PyErr_Clear();
    return !fine;
}

/* Also aborts the communicator that it keeps for runs in the background, if there is one. */
static void abort_both(PyObject *self, const char *message) {
    const CommObject *object = (CommObject *)self;
    PyObject *aside = object->kept == NULL ? NULL : PyDict_GetItemString(object->kept, "aside");
    comm_abort(object->comm, message);
    if (aside == NULL || !PyObject_TypeCheck(aside, Py_TYPE(self))) return;
    if (((CommObject *)aside)->comm != NULL) comm_abort(((CommObject *)aside)->comm, message);
}

static void abort_with(PyObject *self, const char *type_name, PyObject *value) {
    PyObject *text = PyUnicode_FromFormat("%s: %S", type_name, value);
    const char *message = text == NULL ? NULL : PyUnicode_AsUTF8(text);
    abort_both(self, message == NULL ? type_name : message);
    PyErr_Clear();
    Py_XDECREF(text);
}

static PyObject *comm_object_exit(PyObject *self, PyObject *args) {
    PyObject *type, *value, *traceback;
    if (!PyArg_ParseTuple(args, "OOO:__exit__", &type, &value, &traceback)) return NULL;
    if (type != Py_None && !PyExceptionClass_Check(type)) {
        return PyErr_Format(PyExc_TypeError, "__exit__: an exception's type or None is expected, not %R", type);
    }
    if (((CommObject *)self)->comm != NULL) {
        (void)acquire_comm(self); /* so that the value's own methods cannot close it meanwhile */
        if (is_failure(type, value)) abort_with(self, ((PyTypeObject *)type)->tp_name, value);
        py_comm_object_release(self);
    }
    if (((CommObject *)self)->in_use == 0) comm_object_destroy((CommObject *)self);
    Py_RETURN_FALSE;
}

static PyObject *abort_comm(PyObject *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"message", NULL};
    const char *message = "without a message";
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|s:abort", names, &message)) return NULL;
    Comm *comm = open_comm(self);
    if (comm == NULL) return NULL;
    abort_both(self, message);
    Py_RETURN_NONE;
}

static PyObject *abort_all(PyObject *Py_UNUSED(module), PyObject *args) {
    const char *message;
    if (!PyArg_ParseTuple(args, "s:comm_abort_all", &message)) return NULL;
    Py_BEGIN_ALLOW_THREADS;
    comm_abort_all(message);
    Py_END_ALLOW_THREADS;
    Py_RETURN_NONE;
}

/* At exit: closes what is open and idle, aborts what another thread still uses. */
static PyObject *finalize(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(unused)) {
    for (CommObject *object = open_objects; object != NULL;) {
        if (object->in_use > 0) {
            comm_abort(object->comm, "the process ends");
            object = object->after;
        } else {
            comm_object_destroy(object);
            object = open_objects;
        }
    }
    Py_BEGIN_ALLOW_THREADS;
    comm_finalize();
    Py_END_ALLOW_THREADS;
    Py_RETURN_NONE;
}

/* ---- properties ---- */

#define DEFINE_INT_GETTER(name, call)                                                                                  \
    static PyObject *get_##name(PyObject *self, void *Py_UNUSED(unused)) {                                             \
        Comm *comm = open_comm(self);                                                                                  \
        return comm == NULL ? NULL : PyLong_FromSsize_t((Py_ssize_t)call(comm));                                       \
    }

DEFINE_INT_GETTER(rank, comm_rank)
DEFINE_INT_GETTER(size, comm_size)
DEFINE_INT_GETTER(node, comm_node)
DEFINE_INT_GETTER(nodes, comm_nodes)
DEFINE_INT_GETTER(local_rank, comm_local_rank)
DEFINE_INT_GETTER(local_size, comm_local_size)
DEFINE_INT_GETTER(slot_bytes, comm_slot_bytes)
DEFINE_INT_GETTER(slots, comm_slots)

static PyObject *get_timeout(PyObject *self, void *Py_UNUSED(unused)) {
    Comm *comm = open_comm(self);
    return comm == NULL ? NULL : PyFloat_FromDouble(comm_timeout(comm));
}

static PyObject *comm_get_closed(PyObject *self, void *Py_UNUSED(unused)) {
    return PyBool_FromLong(((CommObject *)self)->comm == NULL);
}

static PyObject *get_broken(PyObject *self, void *Py_UNUSED(unused)) {
    Comm *comm = open_comm(self);
    const ErrorRecord *cause;
    if (comm == NULL) return NULL;
    return comm_broken(comm, &cause) ? PyUnicode_DecodeFSDefault(cause->message) : Py_NewRef(Py_None);
}

static PyObject *node_of(PyObject *self, PyObject *argument) {
    uint64_t number;
    if (py_arguments_whole(argument, "rank", INT64_MIN, INT64_MAX, &number) < 0) return NULL;
    Comm *comm = open_comm(self);
    if (comm == NULL) return NULL;
    int64_t rank = (int64_t)number;
    if (rank < 0 || rank >= comm_size(comm)) {
        return PyErr_Format(PyExc_IndexError, "no rank %lld among %d", (long long)rank, comm_size(comm));
    }
    return PyLong_FromLong(comm_node_of(comm, (int)rank));
}

static PyObject *represent(PyObject *self) {
    Comm *comm = ((CommObject *)self)->comm;
    if (comm == NULL) return PyUnicode_FromString("<cgxffcv.comm.Comm closed>");
    return PyUnicode_FromFormat("<cgxffcv.comm.Comm rank %d of %d, node %d of %d%s>", comm_rank(comm), comm_size(comm),
                                comm_node(comm), comm_nodes(comm), comm_broken(comm, NULL) ? ", broken" : "");
}

static PyGetSetDef getters[] = {
    {"rank", get_rank, NULL, "This process's number in the communicator, in [0, size).", NULL},
    {"size", get_size, NULL, "The number of ranks.", NULL},
    {"node", get_node, NULL, "The number of this rank's node, real or pretended, in [0, nodes).", NULL},
    {"nodes", get_nodes, NULL, "The number of nodes.", NULL},
    {"local_rank", get_local_rank, NULL, "This rank's number within its node.", NULL},
    {"local_size", get_local_size, NULL, "The number of ranks on this node.", NULL},
    {"slot_bytes", get_slot_bytes, NULL, "Bytes per slot: the largest slice of a stream.", NULL},
    {"slots", get_slots, NULL, "The number of slots that each rank owns.", NULL},
    {"timeout", get_timeout, NULL, "Seconds that an operation may take unless it has its own timeout.", NULL},
    {"closed", comm_get_closed, NULL, "Whether close() was called.", NULL},
    {"broken", get_broken, NULL, "Why the communicator is broken; None if it is not.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMethodDef methods[] = {
    {"allreduce", PY_KEYWORDS(py_comm_allreduce),
     "allreduce($self, /, arrays, op='average', bits=32, **options)\n--\n\n"
     "Reduces an array of any framework, or a list or dict of arrays in one call, over all ranks, in place; "
     "returns\n"
     "what holds the result. Exact, or with 1 to 8 bits. Collective. See cgxffcv.arrays.reduce."},
    {"allreduce_async", PY_KEYWORDS(py_comm_allreduce_async),
     "allreduce_async($self, /, arrays, op='average', bits=32, **options)\n--\n\n"
     "The same in the background: a handle with wait() and done(). See cgxffcv.arrays.reduce_async."},
    {"allreduce_plans", PY_KEYWORDS(py_comm_allreduce_plans),
     "allreduce_plans($self, /, arrays, op='average', bits=32, **options)\n--\n\n"
     "The plans that allreduce() uses for that, with what they explain() and keep. See cgxffcv.arrays.plans."},
    {"split", PY_KEYWORDS(split),
     "split($self, /, color, key=0)\n--\n\nRanks of equal color (>= 0) form a new Comm, ordered by (key, rank); a rank "
     "with a\nnegative color gets None. Collective: every rank of this communicator calls it."},
    {"barrier", PY_KEYWORDS(py_comm_barrier),
     "barrier($self, /, timeout=None)\n--\n\nReturns when every rank has called it."},
    {"broadcast", PY_KEYWORDS(py_comm_broadcast),
     "broadcast($self, /, data, root=0, timeout=None)\n--\n\n"
     "Rank root's data on every rank. bytes (others may pass None) come back as bytes of any size. A\n"
     "writable C-contiguous buffer (a NumPy array, the same number of bytes on every rank) is filled in\n"
     "place and returned."},
    {"allgather", PY_KEYWORDS(py_comm_allgather),
     "allgather($self, /, data, timeout=None)\n--\n\n"
     "Every rank's bytes (sizes may differ), as a list in rank order, on every rank."},
    {"abort", PY_KEYWORDS(abort_comm),
     "abort($self, /, message='without a message')\n--\n\nBreaks the communicator on all its ranks at once: their "
     "waiting and later calls raise\nCommError('rank R aborted: message'). Waits for nothing; from any thread."},
    {"close", close_comm, METH_NOARGS,
     "close($self, /)\n--\n\nLeaves and frees the communicator; not collective. Ranks that still wait for this one "
     "get a CommError.\nClosing twice does nothing."},
    {"node_of", node_of, METH_O, "node_of($self, rank, /)\n--\n\nThe node of a rank."},
    {"__enter__", comm_object_enter, METH_NOARGS, "__enter__($self, /)\n--\n\n"},
    {"__exit__", comm_object_exit, METH_VARARGS,
     "__exit__($self, type, value, traceback, /)\n--\n\n"
     "Closes; after an exception, first aborts the other ranks' calls as abort() does."},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef members[] = {
    {"_kept", T_OBJECT_EX, offsetof(CommObject, kept), READONLY, NULL},
    {"__weaklistoffset__", T_PYSSIZET, offsetof(CommObject, weak), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot type_slots[] = {
    {Py_tp_dealloc, dealloc},
    {Py_tp_traverse, comm_traverse},
    {Py_tp_clear, comm_clear},
    {Py_tp_members, members},
    {Py_tp_repr, represent},
    {Py_tp_methods, methods},
    {Py_tp_getset, getters},

    {Py_tp_doc, "Ranks that communicate with each other. Made by cgxffcv.comm.world(), attach() and Comm.split()."},
    {0, NULL},
};

static PyMethodDef functions[] = {
    {"comm_world", PY_KEYWORDS(comm_world),
     "comm_world(timeout=None, nodes=None, *, slot_bytes=None, stall=None, ranks=0)\n--\n\n"
     "See cgxffcv.comm.world. ranks: how many the launcher started; 0: ask MPI."},
    {"comm_segment", PY_KEYWORDS(comm_segment_fd),
     "comm_segment(size, slot_bytes=None)\n--\n\nSee cgxffcv.comm.segment."},
    {"comm_attach", PY_KEYWORDS(comm_attach_fd),
     "comm_attach(fd, rank, size, timeout=None, nodes=None, *, stall=None)\n--\n\nSee cgxffcv.comm.attach."},
    {"comm_abort_all", abort_all, METH_VARARGS, "comm_abort_all(message)\n--\n\nSee cgxffcv.comm.abort_all."},
    {"comm_finalize", finalize, METH_NOARGS,
     "comm_finalize()\n--\n\nCloses every communicator, and finalises MPI if cgxffcv initialised it."},
    {NULL, NULL, 0, NULL},
};

int py_comm_add(PyObject *module) {
    if (py_module_add_type(module, "cgxffcv.comm.Comm", sizeof(CommObject),
                           Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION, type_slots,
                           &py_module_state(module)->comm_type) < 0)
        return -1;
    return PyModule_AddFunctions(module, functions);
}
