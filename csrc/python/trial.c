/* Trials: each sums a buffer of its own, timed, for benchmarks. */
#include "allreduce/trial.h"

#include "base/memory.h"
#include "python/allreduce.h"
#include "python/array.h"
#include "python/comm.h"
#include "python/spec.h"

typedef struct TrialObject {
    PyObject_HEAD AllreduceTrial *trial; /* owned */
    PyObject *comm;                      /* owned; its communicator cannot be closed while the trial exists */
} TrialObject;

/* ---- making ---- */

static int make_trial(ModuleState *state, TrialObject *self, PyObject *comm_object, int site, long long elems,
                      const AllreduceOptions *options) {
    Comm *comm = py_comm_object_acquire(state, comm_object, "comm");
    if (comm == NULL) return -1;
    self->comm = Py_NewRef(comm_object);
    Status status;
    Py_BEGIN_ALLOW_THREADS;
    status = allreduce_trial_create(comm, (AllreduceSite)site, elems, options, &self->trial);
    Py_END_ALLOW_THREADS;
    return py_errors_check(state, status);
}

static PyObject *trial_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    PyObject *comm, *site_name;
    long long elems;
    AllreduceSettings settings = {.options = allreduce_defaults()};
    if (!PyArg_ParseTuple(args, "OOL:AllreduceTrial", &comm, &site_name, &elems)) return NULL;
    int site = py_spec_name(site_name, "site", allreduce_site_name);
    if (site < 0 || py_allreduce_parse(kwargs, &settings) < 0) return NULL;
    TrialObject *self = (TrialObject *)type->tp_alloc(type, 0);
    if (self == NULL) return NULL;
    if (make_trial(py_module_state_of_type(type), self, comm, site, elems, &settings.options) < 0) Py_CLEAR(self);
    return (PyObject *)self;
}

static int trial_traverse(PyObject *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(((TrialObject *)self)->comm);
    return 0;
}

static void trial_dealloc(PyObject *self) {
    PyObject_GC_UnTrack(self);
    TrialObject *trial = (TrialObject *)self;
    Py_BEGIN_ALLOW_THREADS;
    allreduce_trial_destroy(trial->trial);
    Py_END_ALLOW_THREADS;
    if (trial->comm != NULL) py_comm_object_release(trial->comm);
    Py_XDECREF(trial->comm);
    py_module_free_object(self);
}

/* ---- using ---- */

/* Fills the buffer from the array, or reads it into the array. */
static PyObject *move_array(PyObject *self, PyObject *array, bool reads) {
    AllreduceTrial *trial = ((TrialObject *)self)->trial;
    ArrayView view;
    Status status;
    if (py_array_acquire(array, "array", ARRAY_UNALIGNED, -1, reads, &view) < 0) return NULL;
    size_t bytes = (size_t)(view.elems * view.item_bytes);
    Py_BEGIN_ALLOW_THREADS;
    status = reads ? allreduce_trial_read(trial, view.data, bytes) : allreduce_trial_fill(trial, view.data, bytes);
    Py_END_ALLOW_THREADS;
    py_array_release(&view);
    return py_errors_none(py_module_state_of(self), status);
}

static PyObject *trial_fill(PyObject *self, PyObject *block) { return move_array(self, block, false); }

static PyObject *trial_read(PyObject *self, PyObject *out) { return move_array(self, out, true); }

static PyObject *trial_time(PyObject *self, PyObject *args) {
    AllreduceTrial *trial = ((TrialObject *)self)->trial;
    long long elems;
    int runs, record;
    double seconds = 0;
    Status status;
    if (!PyArg_ParseTuple(args, "Lip:time", &elems, &runs, &record)) return NULL;
    Py_BEGIN_ALLOW_THREADS;
    status = allreduce_trial_time(trial, elems, runs, record != 0, &seconds);
    Py_END_ALLOW_THREADS;
    return status == STATUS_OK ? PyFloat_FromDouble(seconds) : py_errors_raise(py_module_state_of(self), status);
}

static PyObject *trial_plan(PyObject *self, PyObject *Py_UNUSED(unused)) {
    const Allreduce *allreduce = allreduce_trial_of(((TrialObject *)self)->trial);
    char text[4096];
    if (allreduce == NULL) Py_RETURN_NONE;
    AllreduceBytes bytes = allreduce_bytes(allreduce, allreduce_elems(allreduce));
    size_t length = allreduce_explain(allreduce, text, sizeof text);
    return Py_BuildValue("{ss sK sK ss#}", "algorithm", allreduce_algorithm_name((int)allreduce_algorithm(allreduce)),
                         "wire_bytes", (unsigned long long)bytes.wire, "plain_bytes", (unsigned long long)bytes.plain,
                         "explain", text, (Py_ssize_t)(length < sizeof text ? length : sizeof text - 1));
}

static PyMethodDef trial_methods[] = {
    {"fill", trial_fill, METH_O, "fill(block)\n--\n\nFills the buffer with the block, repeated."},
    {"read", trial_read, METH_O, "read(out)\n--\n\nCopies the buffer's first bytes into an array."},
    {"time", trial_time, METH_VARARGS,
     "time(elems, runs, record)\n--\n\nReturns the seconds of one of `runs` sums, on the slowest rank. Collective."},
    {"plan", trial_plan, METH_NOARGS,
     "plan()\n--\n\nReturns algorithm, wire_bytes, plain_bytes and explain of our allreduce; None for a rival."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot trial_slots[] = {
    {Py_tp_doc, "AllreduceTrial(comm, site, elems, **options)\n--\n\nA buffer, what sums it, and how long that takes."},
    {Py_tp_new, trial_new},
    {Py_tp_dealloc, trial_dealloc},
    {Py_tp_traverse, trial_traverse},
    {Py_tp_methods, trial_methods},
    {0, NULL},
};

int py_trial_add(PyObject *module) {
    return py_module_add_type(module, "_cgxffcv.AllreduceTrial", sizeof(TrialObject), Py_TPFLAGS_HAVE_GC, trial_slots,
                              NULL);
}
