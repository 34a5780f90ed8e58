/* _cgxffcv.Loader, on which cgxffcv.Loader is built. */
#include "python/loader.h"

#include <sys/types.h>
#include <unistd.h>

#include "base/memory.h"
#include "loader/loader.h"
#include "python/arguments.h"
#include "python/array.h"
#include "python/beton_values.h"
#include "python/loader_batch.h"
#include "python/loader_files.h"
#include "python/loader_spec.h"
#include "python/loader_values.h"
#include "python/results.h"

typedef struct LoaderObject {
    PyObject_HEAD PyObject *file; /* owned: the capsule of `reader`, which several loaders share; NULL after close() */
    BetonReader *reader;          /* borrowed from `file`; NULL after close() */
    Loader *loader;               /* owned; NULL before prepare() and after close() */
    PyObject *kept;               /* owned: the views of arrays from which its operations borrow */
    int device;                   /* of the outputs that move */
    bool busy;                    /* a call is running without the GIL */
    pid_t process;                /* that made it: its threads do not exist in a forked child */
} LoaderObject;

/* For calls that keep the GIL. */
static Loader *opened(LoaderObject *self) {
    if (self->process != getpid()) {
        PyErr_SetString(
            PyExc_RuntimeError,
            "this Loader was made before fork(), and its threads stayed in the parent: make one in this process");
        return NULL;
    }
    if (self->loader == NULL) {
        PyErr_SetString(PyExc_ValueError,
                        self->reader == NULL
                            ? "this Loader has been closed"
                            : "this Loader is still being made, or given a setting, by an order's class or another "
                              "thread: until then it has only its settings, indices, num_samples and reader");
    }
    return self->loader;
}

static int refuse_busy(const LoaderObject *self) {
    if (self->busy) PyErr_SetString(PyExc_RuntimeError, "this Loader is in use by another thread");
    return self->busy ? -1 : 0;
}

/* Acquires the loader for one call that releases the GIL; the caller resets `busy`. */
static Loader *acquire(LoaderObject *self) {
    if (opened(self) == NULL || refuse_busy(self) < 0) return NULL;
    self->busy = true;
    return self->loader;
}

Loader *py_loader_object_acquire(ModuleState *state, PyObject *object) {
    if (PyObject_TypeCheck(object, (PyTypeObject *)state->loader_type)) return acquire((LoaderObject *)object);
    PyErr_Format(PyExc_TypeError, "expected a Loader, not %.100s", Py_TYPE(object)->tp_name);
    return NULL;
}

void py_loader_object_release(PyObject *object) { ((LoaderObject *)object)->busy = false; }

/* Its file, whether prepared or not; NULL with an exception set after close(). */
static const BetonReader *reader_of(const LoaderObject *self) {
    if (self->reader == NULL) PyErr_SetString(PyExc_ValueError, "this Loader has been closed");
    return self->reader;
}

/* Runs a statement without the GIL while the loader is acquired. */
#define WITHOUT_GIL(self, statement)                                                                                   \
    do {                                                                                                               \
        Py_BEGIN_ALLOW_THREADS statement;                                                                              \
        Py_END_ALLOW_THREADS(self)->busy = false;                                                                      \
    } while (0)

/* ---- construction ---- */

static void close_file(PyObject *file) {
    BetonReader *reader = PyCapsule_GetPointer(file, NULL);
    Py_BEGIN_ALLOW_THREADS beton_reader_close(reader);
    Py_END_ALLOW_THREADS
}

/* A loader of an open file, not yet prepared; takes over the caller's reference, even on failure. */
static PyObject *new_of_file(PyTypeObject *type, PyObject *file) {
    LoaderObject *self = (LoaderObject *)type->tp_alloc(type, 0);
    if (self == NULL) {
        Py_DECREF(file);
        return NULL;
    }
    self->file = file;
    self->reader = PyCapsule_GetPointer(file, NULL);
    self->process = getpid();
    return (PyObject *)self;
}

static PyObject *loader_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"path", "custom", NULL};
    PyObject *path = NULL, *specs = NULL;
    BetonReader *reader = NULL;
    BetonCustom *customs = NULL;
    size_t count = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|O", names, &path, &specs)) return NULL;
    PyObject *paths = py_loader_paths(path);
    if (paths == NULL) return NULL;
    if (specs != NULL && py_beton_customs_of(specs, &customs, &count) < 0) {
        Py_DECREF(paths);
        return NULL;
    }
    Status status = py_loader_open(paths, customs, count, &reader);
    Py_DECREF(paths);
    memory_free(customs);
    if (status != STATUS_OK) {
        return py_errors_raise(py_module_state_of_type(type), status);
    }
    PyObject *file = PyCapsule_New(reader, NULL, close_file);
    if (file == NULL) {
        beton_reader_close(reader);
        return NULL;
    }
    return new_of_file(type, file);
}

static PyObject *loader_again(LoaderObject *self, PyObject *Py_UNUSED(unused)) {
    if (opened(self) == NULL) return NULL;
    return new_of_file(Py_TYPE(self), Py_NewRef(self->file));
}

static PyObject *prepare_loader(LoaderObject *self, const LoaderConfig *config) {
    Status status;
    Loader *loader = NULL;
    self->busy = true;
    WITHOUT_GIL(self, status = loader_create(config, &loader));
    if (status != STATUS_OK) return py_errors_raise(py_module_state_of(self), status);
    self->loader = loader;
    self->device = config->device;
    Py_RETURN_NONE;
}

static PyObject *loader_prepare(LoaderObject *self, PyObject *args, PyObject *kwargs) {
    PyObject *outputs, *indices, *result = NULL;
    LoaderSpec spec;
    ArrayView view = {0};
    if (!PyArg_ParseTuple(args, "OO:prepare", &outputs, &indices)) return NULL;
    if (py_loader_spec_parse(outputs, kwargs, &spec) < 0) goto no_indices;
    if (indices != Py_None) {
        if (py_array_acquire(indices, "indices", 1u << ARRAY_I64 | 1u << ARRAY_U64, 1, false, &view) < 0)
            goto no_indices;
        spec.config.indices = view.data;
        spec.config.index_count = (size_t)view.elems;
    }
    if (self->loader != NULL || self->reader == NULL || self->busy) {
        PyErr_SetString(PyExc_TypeError, "prepare() can be called only once, on an open Loader");
    } else {
        spec.config.reader = self->reader;
        result = prepare_loader(self, &spec.config);
        if (result != NULL) self->kept = Py_NewRef(spec.keep);
    }
    if (indices != Py_None) py_array_release(&view);
no_indices:
    py_loader_spec_clear(&spec);
    return result;
}

/* In a forked child there are no threads to join and no locks to trust: what it inherited is left as it is. */
static void loader_object_destroy(LoaderObject *self) {
    Loader *loader = self->loader;
    PyObject *file = self->file;
    self->loader = NULL;
    self->reader = NULL;
    self->file = NULL;
    if (file == NULL || self->process != getpid()) return;
    Py_BEGIN_ALLOW_THREADS loader_destroy(loader);
    Py_END_ALLOW_THREADS Py_DECREF(file);
    Py_CLEAR(self->kept);
}

static void loader_dealloc(PyObject *object) {
    loader_object_destroy((LoaderObject *)object);
    py_module_free_object(object);
}

static PyObject *loader_close(LoaderObject *self, PyObject *Py_UNUSED(unused)) {
    if (refuse_busy(self) < 0) return NULL;
    loader_object_destroy(self);
    Py_RETURN_NONE;
}

/* (arrays, ids); takes over the caller's reference. */
static PyObject *wrap_batch(const LoaderObject *self, LoaderBatch *batch) {
    return py_loader_batch_wrap(py_module_state_of(self), self->loader, self->device, batch);
}

/* ---- passes ---- */

#define EPOCH                                                                                                          \
    { "epoch", UINT32_MAX, 0 }

static PyObject *loader_begin_(LoaderObject *self, PyObject *args) {
    PyObject *order;
    ArrayView view = {0};
    ArgumentsNumber epoch = EPOCH, first = {"first_batch", UINT64_MAX, 0};
    int evaluate, sequential;
    Status status;
    if (!PyArg_ParseTuple(args, "O&O&ppO:begin", py_arguments_number, &epoch, py_arguments_number, &first, &evaluate,
                          &sequential, &order)) {
        return NULL;
    }
    LoaderPass pass = {.epoch = (uint32_t)epoch.value,
                       .first_batch = first.value,
                       .evaluate = evaluate != 0,
                       .sequential = sequential != 0};
    if (order != Py_None) {
        if (py_array_acquire(order, "order", 1u << ARRAY_I64 | 1u << ARRAY_U64, 1, false, &view) < 0) return NULL;
        pass.order = view.data;
        pass.order_count = (uint64_t)view.elems;
    }
    Loader *loader = acquire(self);
    if (loader != NULL) WITHOUT_GIL(self, status = loader_begin(loader, &pass));
    if (order != Py_None) py_array_release(&view);
    if (loader == NULL) return NULL;
    return py_errors_none(py_module_state_of(self), status);
}

static Status loader_check_signals(void *context) {
    PyThreadState **state = context;
    PyEval_RestoreThread(*state);
    int raised = PyErr_CheckSignals();
    *state = PyEval_SaveThread();
    return raised < 0 ? STATUS_INTERRUPTED : STATUS_OK;
}

static PyObject *loader_next_(LoaderObject *self, PyObject *Py_UNUSED(unused)) {
    LoaderBatch *batch = NULL;
    Loader *loader = acquire(self);
    if (loader == NULL) return NULL;
    PyThreadState *state = PyEval_SaveThread();
    Status status = loader_next(loader, loader_check_signals, &state, &batch);
    PyEval_RestoreThread(state);
    PyObject *result = status != STATUS_OK ? py_errors_raise(py_module_state_of(self), status)
                       : batch == NULL     ? Py_NewRef(Py_None)
                                           : wrap_batch(self, batch);
    self->busy = false;
    return result;
}

static PyObject *loader_stop_(LoaderObject *self, PyObject *Py_UNUSED(unused)) {
    Loader *loader = acquire(self);
    if (loader == NULL) return NULL;
    WITHOUT_GIL(self, loader_stop(loader));
    Py_RETURN_NONE;
}

static PyObject *loader_reseed_(LoaderObject *self, PyObject *args) {
    ArgumentsNumber seed = {"seed", UINT64_MAX, 0};
    if (!PyArg_ParseTuple(args, "O&:reseed", py_arguments_number, &seed)) return NULL;
    Loader *loader = acquire(self);
    if (loader == NULL) return NULL;
    WITHOUT_GIL(self, loader_reseed(loader, seed.value));
    Py_RETURN_NONE;
}

static PyObject *loader_gather_(LoaderObject *self, PyObject *args) {
    PyObject *ids;
    ArrayView view;
    ArgumentsNumber epoch = EPOCH;
    int evaluate;
    Status status = STATUS_OK;
    LoaderBatch *batch = NULL;
    if (!PyArg_ParseTuple(args, "OO&p:gather", &ids, py_arguments_number, &epoch, &evaluate)) return NULL;
    if (py_array_acquire(ids, "ids", 1u << ARRAY_I64 | 1u << ARRAY_U64, 1, false, &view) < 0) return NULL;
    PyObject *result = NULL;
    Loader *loader = acquire(self);
    if (loader != NULL) {
        Py_BEGIN_ALLOW_THREADS;
        status = loader_gather(loader, view.data, (size_t)view.elems, (uint32_t)epoch.value, evaluate != 0, &batch);
        Py_END_ALLOW_THREADS;
        result = status == STATUS_OK ? wrap_batch(self, batch) : py_errors_raise(py_module_state_of(self), status);
        self->busy = false;
    }
    py_array_release(&view);
    return result;
}

static PyObject *loader_values(LoaderObject *self, PyObject *args) {
    const char *field;
    PyObject *ids;
    if (!PyArg_ParseTuple(args, "sO:values", &field, &ids)) return NULL;
    Loader *loader = acquire(self);
    if (loader == NULL) return NULL;
    PyObject *result = py_loader_read(py_module_state_of(self), loader, field, ids);
    self->busy = false;
    return result;
}

/* ---- properties ---- */

static PyObject *loader_order_(LoaderObject *self, PyObject *args) {
    ArgumentsNumber epoch = EPOCH;
    Status status;
    if (!PyArg_ParseTuple(args, "O&:order", py_arguments_number, &epoch)) return NULL;
    Loader *loader = acquire(self);
    if (loader == NULL) return NULL;
    int64_t count = (int64_t)loader_samples(loader);
    PyObject *array = py_array_new(ARRAY_I64, 1, &count);
    if (array == NULL) {
        self->busy = false;
        return NULL;
    }
    uint64_t *out = py_array_data(array);
    WITHOUT_GIL(self, status = loader_order(loader, (uint32_t)epoch.value, out));
    return py_errors_result(py_module_state_of(self), status, array);
}

static PyObject *loader_position_(LoaderObject *self, PyObject *Py_UNUSED(unused)) {
    Loader *loader = opened(self);
    if (loader == NULL) return NULL;
    LoaderPosition position = loader_position(loader);
    if (position.batch == LOADER_NO_BATCH) Py_RETURN_NONE;
    return Py_BuildValue("IK", position.epoch, (unsigned long long)position.batch);
}

static PyObject *loader_active_(LoaderObject *self, PyObject *Py_UNUSED(unused)) {
    Loader *loader = opened(self);
    return loader == NULL ? NULL : PyBool_FromLong(loader_active(loader));
}

static PyObject *loader_batches_(LoaderObject *self, PyObject *args) {
    ArgumentsNumber samples = {"samples", UINT64_MAX, 0};
    if (!PyArg_ParseTuple(args, "O&:batches", py_arguments_number, &samples)) return NULL;
    Loader *loader = opened(self);
    if (loader == NULL) return NULL;
    return PyLong_FromUnsignedLongLong(loader_batches_of(loader, samples.value));
}

/* A dict of what `of` returns for each field, without those for which it returns NULL. */
static PyObject *fields_dict(LoaderObject *self, const char *(*of)(const BetonField *)) {
    const BetonReader *reader = reader_of(self);
    if (reader == NULL || refuse_busy(self) < 0) return NULL;
    self->busy = true; /* what follows may run Python code, which must not close the file meanwhile */
    PyObject *fields = PyDict_New();
    for (size_t i = 0; fields != NULL && i < beton_reader_num_fields(reader); i++) {
        const BetonField *field = beton_reader_field(reader, i);
        if (of(field) == NULL) continue;
        PyObject *text = PyUnicode_FromString(of(field));
        if (text == NULL || PyDict_SetItemString(fields, field->name, text) < 0) Py_CLEAR(fields);
        Py_XDECREF(text);
    }
    self->busy = false;
    return fields;
}

static const char *kind_of(const BetonField *field) { return beton_kind_name(field->kind); }

static const char *dtype_of(const BetonField *field) {
    return field->kind == BETON_ARRAY || field->kind == BETON_TENSOR ? beton_dtype_name((int)field->dtype) : NULL;
}

static PyObject *loader_fields(LoaderObject *self, PyObject *Py_UNUSED(unused)) { return fields_dict(self, kind_of); }

static PyObject *loader_dtypes(LoaderObject *self, PyObject *Py_UNUSED(unused)) { return fields_dict(self, dtype_of); }

static PyObject *loader_stats_(LoaderObject *self, PyObject *Py_UNUSED(unused)) {
    LoaderStats s;
    Loader *loader = opened(self);
    if (loader == NULL) return NULL;
    loader_stats(loader, &s);
    return Py_BuildValue("{sK sK sK sK sd sd sd sd sd sd si sn sn sn sn sn sn sn sn sn}", "batches",
                         (unsigned long long)s.batches, "samples", (unsigned long long)s.samples, "blanked",
                         (unsigned long long)s.blanked, "skipped", (unsigned long long)s.skipped, "wait_seconds",
                         (double)s.wait_ns * 1e-9, "work_seconds", (double)s.work_ns * 1e-9, "jpeg_seconds",
                         (double)s.decode_ns * 1e-9, "resample_seconds", (double)s.resample_ns * 1e-9,
                         "augment_seconds", (double)s.augment_ns * 1e-9, "idle_seconds", (double)s.idle_ns * 1e-9,
                         "workers", s.workers, "batches_ahead", (Py_ssize_t)s.batches_ahead, "slots",
                         (Py_ssize_t)s.slots, "slots_held", (Py_ssize_t)s.slots_held, "slot_bytes",
                         (Py_ssize_t)s.slot_bytes, "memory_bytes", (Py_ssize_t)s.memory_bytes, "memory_peak_bytes",
                         (Py_ssize_t)s.memory_peak_bytes, "device_slots", (Py_ssize_t)s.uploads, "device_slots_held",
                         (Py_ssize_t)s.uploads_held, "device_bytes", (Py_ssize_t)s.device_bytes);
}

static PyObject *loader_moves(LoaderObject *self, PyObject *Py_UNUSED(unused)) {
    Loader *loader = opened(self);
    PyObject *list = loader == NULL ? NULL : PyList_New(0);
    for (size_t i = 0; list != NULL && i < loader_outputs(loader); i++) {
        const char *why;
        LoaderMoved moved = loader_moved(loader, i, &why);
        list = py_results_append(list, Py_BuildValue("iz", (int)moved, why));
    }
    return list;
}

static PyMethodDef loader_methods[] = {
    {"prepare", PY_KEYWORDS(loader_prepare),
     "prepare(outputs, indices, **settings)\n--\n\nSets what to load; once, before everything else."},
    {"again", PY_METHOD(loader_again), METH_NOARGS,
     "again()\n--\n\nReturns another loader of the same open file, not yet prepared."},
    {"begin", PY_METHOD(loader_begin_), METH_VARARGS,
     "begin(epoch, first_batch, evaluate, sequential, order)\n--\n\nStarts a pass, after stopping the current one."},
    {"next", PY_METHOD(loader_next_), METH_NOARGS,
     "next()\n--\n\nThe next batch as (arrays, ids), or None at the end of the pass."},
    {"stop", PY_METHOD(loader_stop_), METH_NOARGS, "stop()\n--\n\nEnds the pass."},
    {"gather", PY_METHOD(loader_gather_), METH_VARARGS,
     "gather(ids, epoch, evaluate)\n--\n\nOne batch of these samples."},
    {"values", PY_METHOD(loader_values), METH_VARARGS,
     "values(field, ids)\n--\n\nReturns (bytes, offsets): values of any length, one after another."},
    {"reseed", PY_METHOD(loader_reseed_), METH_VARARGS, "reseed(seed)\n--\n\nSets the seed; ends the pass."},
    {"order", PY_METHOD(loader_order_), METH_VARARGS,
     "order(epoch)\n--\n\nThe samples of an epoch, all ranks, in order."},
    {"active", PY_METHOD(loader_active_), METH_NOARGS,
     "active()\n--\n\nWhether a pass is under way: begun, and neither stopped nor failed."},
    {"position", PY_METHOD(loader_position_), METH_NOARGS,
     "position()\n--\n\nReturns the next (epoch, batch), or None before the first pass."},
    {"batches", PY_METHOD(loader_batches_), METH_VARARGS,
     "batches(samples)\n--\n\nThe number of batches in a pass over this many samples."},
    {"fields", PY_METHOD(loader_fields), METH_NOARGS, "fields()\n--\n\nThe file's fields, in order: {name: kind}."},
    {"dtypes", PY_METHOD(loader_dtypes), METH_NOARGS,
     "dtypes()\n--\n\nThe dtypes of the array and tensor fields: {name: dtype}."},
    {"moves", PY_METHOD(loader_moves), METH_NOARGS,
     "moves()\n--\n\n"
     "For each output (0: it stays in host memory, 1: it goes to the GPU, 2: the GPU also processes it; why not, "
     "or None)."},
    {"stats", PY_METHOD(loader_stats_), METH_NOARGS, "stats()\n--\n\nCounts, seconds and bytes as a dict."},
    {"close", PY_METHOD(loader_close), METH_NOARGS, "close()\n--\n\nStops the threads and closes the file."},
    {NULL, NULL, 0, NULL},
};

static PyObject *loader_get_closed(LoaderObject *self, void *Py_UNUSED(unused)) {
    return PyBool_FromLong(self->reader == NULL);
}

static PyObject *get_samples(LoaderObject *self, void *Py_UNUSED(unused)) {
    Loader *loader = opened(self);
    if (loader == NULL) return NULL;
    return PyLong_FromUnsignedLongLong(loader_samples(loader));
}

static PyObject *get_in_file(LoaderObject *self, void *Py_UNUSED(unused)) {
    const BetonReader *reader = reader_of(self);
    return reader == NULL ? NULL : PyLong_FromUnsignedLongLong(beton_reader_num_samples(reader));
}

static PyObject *get_firsts(LoaderObject *self, void *Py_UNUSED(unused)) {
    const BetonReader *reader = reader_of(self);
    if (reader == NULL) return NULL;
    const size_t count = beton_reader_num_files(reader);
    PyObject *firsts = PyTuple_New((Py_ssize_t)count);
    for (size_t i = 0; firsts != NULL && i < count; i++) {
        const uint64_t first = beton_reader_first_sample(reader, i);
        firsts = py_results_put(firsts, (Py_ssize_t)i, PyLong_FromUnsignedLongLong(first));
    }
    return firsts;
}

static PyGetSetDef loader_getset[] = {
    {"firsts", (getter)get_firsts, NULL, "The number of the first sample of each file.", NULL},
    {"closed", (getter)loader_get_closed, NULL, "Whether close() has been called.", NULL},
    {"in_file", (getter)get_in_file, NULL, "The number of samples in the file, or in all files.", NULL},
    {"samples", (getter)get_samples, NULL, "The number of samples in use.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot loader_slots[] = {
    {Py_tp_new, loader_new},
    {Py_tp_dealloc, loader_dealloc},
    {Py_tp_methods, loader_methods},
    {Py_tp_getset, loader_getset},
    {Py_tp_doc, "The core of cgxffcv.Loader: one file, its outputs, worker threads. Use cgxffcv.Loader."},
    {0, NULL},
};

int py_loader_add(PyObject *module) {
    if (py_loader_batch_add(module) < 0) return -1;
    return py_module_add_type(module, "_cgxffcv.Loader", sizeof(LoaderObject), 0, loader_slots,
                              &py_module_state(module)->loader_type);
}
