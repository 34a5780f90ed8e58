/* _cgxffcv.Runner: trains and tests a Trainer's model, many steps per call, on a Loader's batches or on data sets in
 * GPU memory. */
#include <string.h>

#include "python/arguments.h"
#include "python/array.h"
#include "python/loader.h"
#include "python/operations.h"
#include "python/trainer.h"

#define RECORD_FIELDS 5 /* loss, correct, images, skipped, side */

typedef struct RunnerObject {
    PyObject_HEAD TrainRunner *runner; /* owned; NULL when closed */
    TrainerObject *trainer;            /* owned reference; its trainer stays open as long as `runner` */
    PyObject *kept;                    /* owned: the views of arrays from which its operations borrow */
} RunnerObject;

/* 0 if it can be used now; otherwise -1 with an exception. */
static int ready(const RunnerObject *self) {
    if (self->runner != NULL) return py_trainer_ready(self->trainer);
    return PY_REFUSE(PyExc_ValueError, "this runner is closed");
}

/* Around what runs without the GIL, after the arguments have been parsed; 0, or -1 with an exception. */
static int runner_object_enter(RunnerObject *self) { return ready(self) < 0 ? -1 : py_trainer_enter(self->trainer); }
static void runner_object_leave(RunnerObject *self) { py_trainer_leave(self->trainer); }

/* ---- construction ---- */

static int parse_config(ModuleState *state, PyObject *args, PyObject *keep, TrainerObject **trainer,
                        TrainRunnerConfig *config) {
    PyObject *trainer_in, *ops;
    ArgumentsNumber seed = {"seed", UINT64_MAX, 0};
    int graphs;
    if (!PyArg_ParseTuple(args, "OO!O&p", &trainer_in, &PyTuple_Type, &ops, py_arguments_number, &seed, &graphs))
        return -1;
    *trainer = py_trainer_of_object(state, trainer_in);
    if (*trainer == NULL ||
        py_operations_parse(ops, keep, "training on a GPU", GATHER_MAX_OPS, config->ops, &config->op_count) < 0)
        return -1;
    memcpy(config->mean, (*trainer)->mean, sizeof config->mean);
    memcpy(config->std, (*trainer)->std, sizeof config->std);
    config->seed = seed.value;
    config->graphs = graphs != 0;
    return 0;
}

static PyObject *runner_new(PyTypeObject *type, PyObject *args, PyObject *keywords) {
    TrainerObject *trainer;
    TrainRunnerConfig config = {0};
    Status status;
    if (keywords != NULL && PyDict_GET_SIZE(keywords) > 0) {
        return PyErr_Format(PyExc_TypeError, "Runner takes no keyword arguments");
    }
    PyObject *keep = PyList_New(0);
    RunnerObject *self = NULL;
    if (keep != NULL && parse_config(py_module_state_of_type(type), args, keep, &trainer, &config) == 0)
        self = (RunnerObject *)type->tp_alloc(type, 0);
    if (self == NULL) {
        Py_XDECREF(keep);
        return NULL;
    }
    self->kept = keep;
    self->trainer = (TrainerObject *)Py_NewRef(trainer);
    if (py_trainer_enter(trainer) < 0) {
        Py_DECREF(self);
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS;
    status = train_runner_create(trainer->trainer, &config, &self->runner);
    Py_END_ALLOW_THREADS;
    runner_object_leave(self);
    if (status == STATUS_OK) {
        trainer->runners++;
        return (PyObject *)self;
    }
    py_errors_raise(py_module_state_of_type(type), status);
    Py_DECREF(self);
    return NULL;
}

static void runner_free(RunnerObject *self) {
    TrainRunner *runner = self->runner;
    self->runner = NULL;
    train_runner_destroy(runner);
    if (runner != NULL) self->trainer->runners--;
}

static void runner_dealloc(RunnerObject *self) {
    runner_free(self);
    Py_CLEAR(self->kept);
    Py_CLEAR(self->trainer);
    py_module_free_object(self);
}

static PyObject *close_method(RunnerObject *self, PyObject *Py_UNUSED(unused)) {
    if (self->runner != NULL && ready(self) < 0) return NULL;
    runner_free(self);
    Py_RETURN_NONE;
}

/* ---- the sets ---- */

static int parse_set(int which, TrainSet *out) {
    if (which >= 0 && which < TRAIN_SETS) {
        *out = (TrainSet)which;
        return 0;
    }
    return PY_REFUSE(PyExc_ValueError, "set %d is neither 0 (training), 1 (test) nor 2 (sample)", which);
}

static PyObject *begin_method(RunnerObject *self, PyObject *args) {
    int which;
    long long count;
    TrainSet set;
    Status status;
    if (!PyArg_ParseTuple(args, "iL", &which, &count) || parse_set(which, &set) < 0 || runner_object_enter(self) < 0)
        return NULL;
    Py_BEGIN_ALLOW_THREADS;
    status = train_runner_begin_load(self->runner, set, count);
    Py_END_ALLOW_THREADS;
    runner_object_leave(self);
    return py_errors_none(py_module_state_of(self), status);
}

/* Images uint8 (N, side, side, 3), labels and numbers int64 (N,). */
static int check_part(const TrainerObject *self, const ArrayView *images, const ArrayView *labels,
                      const ArrayView *ids) {
    const int64_t *shape = images->shape;
    if (shape[1] != self->side || shape[2] != self->side || shape[3] != 3) {
        return PY_REFUSE(PyExc_ValueError, "images must have the shape (N, %d, %d, 3), not (%lld, %lld, %lld, %lld)",
                         self->side, self->side, (long long)shape[0], (long long)shape[1], (long long)shape[2],
                         (long long)shape[3]);
    }
    if (labels->elems == shape[0] && ids->elems == shape[0]) return 0;
    return PY_REFUSE(PyExc_ValueError, "there are %lld images, but %lld labels and %lld numbers", (long long)shape[0],
                     (long long)labels->elems, (long long)ids->elems);
}

static PyObject *put_arrays(RunnerObject *self, TrainSet set, const ArrayView *images, const ArrayView *labels,
                            const ArrayView *ids) {
    Status status;
    if (check_part(self->trainer, images, labels, ids) < 0 || runner_object_enter(self) < 0) return NULL;
    Py_BEGIN_ALLOW_THREADS;
    status = train_runner_put(self->runner, set, images->data, labels->data, ids->data, images->shape[0]);
    Py_END_ALLOW_THREADS;
    runner_object_leave(self);
    return py_errors_none(py_module_state_of(self), status);
}

static PyObject *put_method(RunnerObject *self, PyObject *args) {
    int which;
    PyObject *images_in, *labels_in, *ids_in, *result = NULL;
    ArrayView images, labels, ids;
    TrainSet set;
    if (!PyArg_ParseTuple(args, "iOOO", &which, &images_in, &labels_in, &ids_in)) return NULL;
    if (parse_set(which, &set) < 0) return NULL;
    if (py_array_acquire(images_in, "images", 1u << ARRAY_U8, 4, false, &images) < 0) return NULL;
    if (py_array_acquire(labels_in, "labels", 1u << ARRAY_I64, -1, false, &labels) < 0) goto no_labels;
    if (py_array_acquire(ids_in, "ids", 1u << ARRAY_I64, -1, false, &ids) < 0) goto no_ids;
    result = put_arrays(self, set, &images, &labels, &ids);
    py_array_release(&ids);
no_ids:
    py_array_release(&labels);
no_labels:
    py_array_release(&images);
    return result;
}

static PyObject *drop_method(RunnerObject *self, PyObject *args) {
    int which;
    TrainSet set;
    Status status;
    if (!PyArg_ParseTuple(args, "i", &which) || parse_set(which, &set) < 0 || runner_object_enter(self) < 0)
        return NULL;
    Py_BEGIN_ALLOW_THREADS;
    status = train_runner_drop(self->runner, set);
    Py_END_ALLOW_THREADS;
    runner_object_leave(self);
    return py_errors_none(py_module_state_of(self), status);
}

static PyObject *whiten_method(RunnerObject *self, PyObject *args) {
    int which;
    long long count;
    double epsilon;
    TrainSet set;
    Status status;
    if (!PyArg_ParseTuple(args, "iLd", &which, &count, &epsilon) || parse_set(which, &set) < 0) return NULL;
    if (runner_object_enter(self) < 0) return NULL;
    Py_BEGIN_ALLOW_THREADS;
    status = train_runner_whiten(self->runner, set, count, epsilon);
    Py_END_ALLOW_THREADS;
    runner_object_leave(self);
    return py_errors_none(py_module_state_of(self), status);
}

/* ---- runs ---- */

static void write_records(const TrainerStep *steps, int count, double *to) {
    for (int i = 0; i < count; i++, to += RECORD_FIELDS) {
        to[0] = steps[i].loss;
        to[1] = (double)steps[i].correct;
        to[2] = (double)steps[i].images;
        to[3] = steps[i].skipped;
        to[4] = steps[i].side;
    }
}

/* Where images come from: an array of positions, or a Loader. */
typedef struct SourceArgument {
    PyObject *loader; /* borrowed, acquired; NULL: `positions` */
    ArrayView positions;
    TrainBatches source;
} SourceArgument;

static void release_source(SourceArgument *source) {
    if (source->loader != NULL) {
        py_loader_object_release(source->loader);
    } else {
        py_array_release(&source->positions);
    }
}

static int acquire_source(ModuleState *state, PyObject *object, SourceArgument *out) {
    *out = (SourceArgument){0};
    if (PyObject_TypeCheck(object, (PyTypeObject *)state->loader_type)) {
        out->source.loader = py_loader_object_acquire(state, object);
        out->loader = object;
        return out->source.loader == NULL ? -1 : 0;
    }
    if (py_array_acquire(object, "order", 1u << ARRAY_I32, 1, false, &out->positions) < 0) return -1;
    out->source.positions = out->positions.data;
    return 0;
}

/* What a run reads and writes; `losses` has no buffer if it is not wanted. */
typedef struct RunArrays {
    SourceArgument from;
    ArrayView records, losses;
    bool with_losses;
} RunArrays;

static void release_run(RunArrays *arrays) {
    if (arrays->with_losses) py_array_release(&arrays->losses);
    py_array_release(&arrays->records);
    release_source(&arrays->from);
}

static int acquire_run(ModuleState *state, PyObject *source, PyObject *records, PyObject *losses, RunArrays *out) {
    if (acquire_source(state, source, &out->from) < 0) return -1;
    if (py_array_acquire(records, "records", 1u << ARRAY_F64, 2, true, &out->records) < 0) goto no_records;
    out->with_losses = losses != Py_None;
    if (!out->with_losses) return 0;
    if (py_array_acquire(losses, "losses", 1u << ARRAY_F32, 1, true, &out->losses) == 0) return 0;
    py_array_release(&out->records);
no_records:
    release_source(&out->from);
    return -1;
}

/* The steps that the arrays have room for, or -1 with an exception. */
static int64_t count_steps(const TrainerObject *self, const RunArrays *arrays) {
    int64_t steps = arrays->records.shape[0], images = steps <= INT32_MAX ? steps * self->batch : -1;
    int64_t given = arrays->from.loader != NULL ? images : arrays->from.positions.elems;
    bool fits = arrays->records.shape[1] == RECORD_FIELDS && steps <= INT32_MAX && given == images && images >= 0;
    if (fits && (!arrays->with_losses || arrays->losses.elems == images)) return steps;
    return PY_REFUSE(
        PyExc_ValueError,
        "records must have the shape (steps, %d), order and losses steps x %d entries, not (%lld, %lld), %lld",
        RECORD_FIELDS, self->batch, (long long)steps, (long long)arrays->records.shape[1], (long long)given);
}

#define EPOCH                                                                                                          \
    { "epoch", UINT32_MAX, 0 }

static PyObject *run_method(RunnerObject *self, PyObject *args) {
    PyObject *source, *records, *losses, *result = NULL;
    ArgumentsNumber epoch = EPOCH;
    int done = 0;
    RunArrays arrays;
    TrainerStep *steps = NULL;
    Status status = STATUS_OK;
    if (!PyArg_ParseTuple(args, "OO&OO", &source, py_arguments_number, &epoch, &records, &losses)) return NULL;
    if (acquire_run(py_module_state_of(self), source, records, losses, &arrays) < 0) return NULL;
    int64_t count = count_steps(self->trainer, &arrays);
    if (count >= 0 && (steps = PyMem_Calloc((size_t)count + 1, sizeof *steps)) == NULL) PyErr_NoMemory();
    if (steps != NULL && runner_object_enter(self) == 0) {
        Py_BEGIN_ALLOW_THREADS;
        status = train_runner_run(self->runner, &arrays.from.source, (int)count, (uint32_t)epoch.value, steps,
                                  arrays.with_losses ? arrays.losses.data : NULL, &done);
        Py_END_ALLOW_THREADS;
        runner_object_leave(self);
        write_records(steps, done, arrays.records.data);
        result = py_errors_none(py_module_state_of(self), status);
    }
    release_run(&arrays);
    PyMem_Free(steps);
    return result;
}

static PyObject *evaluate_method(RunnerObject *self, PyObject *args) {
    int which;
    PyObject *positions_in, *views_in, *out;
    long long count;
    ArrayView positions;
    TrainSet set;
    TrainerView views[TRAINER_MAX_VIEWS];
    Status status = STATUS_OK;
    if (!PyArg_ParseTuple(args, "iOLO", &which, &positions_in, &count, &views_in)) return NULL;
    if (parse_set(which, &set) < 0) return NULL;
    int view_count = py_trainer_parse_views(views_in, views);
    if (view_count < 0) return NULL;
    bool chosen = positions_in != Py_None;
    if (chosen && py_array_acquire(positions_in, "positions", 1u << ARRAY_I32, 1, false, &positions) < 0) return NULL;
    if (chosen) count = positions.elems;
    const int64_t shape[2] = {count < 0 ? 0 : count, self->trainer->classes};
    out = py_array_new(ARRAY_F32, 2, shape);
    if (out != NULL && runner_object_enter(self) < 0) Py_CLEAR(out);
    if (out != NULL) {
        float *logits = py_array_data(out);
        Py_BEGIN_ALLOW_THREADS;
        status =
            train_runner_evaluate(self->runner, set, chosen ? positions.data : NULL, count, views, view_count, logits);
        Py_END_ALLOW_THREADS;
        runner_object_leave(self);
    }
    if (chosen) py_array_release(&positions);
    return py_errors_result(py_module_state_of(self), status, out);
}

static PyObject *evaluate_fed_method(RunnerObject *self, PyObject *args) {
    PyObject *loader_in, *views_in, *logits, *labels;
    long long count;
    TrainerView views[TRAINER_MAX_VIEWS];
    Status status = STATUS_OK;
    if (!PyArg_ParseTuple(args, "OLO", &loader_in, &count, &views_in)) return NULL;
    int view_count = py_trainer_parse_views(views_in, views);
    if (view_count < 0) return NULL;
    Loader *loader = py_loader_object_acquire(py_module_state_of(self), loader_in);
    if (loader == NULL) return NULL;
    const int64_t shape[2] = {count < 0 ? 0 : count, self->trainer->classes};
    logits = py_array_new(ARRAY_F32, 2, shape);
    labels = py_array_new(ARRAY_I64, 1, shape);
    bool made = logits != NULL && labels != NULL && runner_object_enter(self) == 0;
    if (made) {
        float *to = py_array_data(logits);
        int64_t *to_labels = py_array_data(labels);
        Py_BEGIN_ALLOW_THREADS;
        status = train_runner_evaluate_fed(self->runner, loader, count, views, view_count, to, to_labels);
        Py_END_ALLOW_THREADS;
        runner_object_leave(self);
    }
    py_loader_object_release(loader_in);
    if (made && status == STATUS_OK) return Py_BuildValue("NN", logits, labels);
    Py_XDECREF(logits);
    Py_XDECREF(labels);
    return made ? py_errors_raise(py_module_state_of(self), status) : NULL;
}

static PyObject *look_method(RunnerObject *self, PyObject *args) {
    PyObject *source, *images = NULL, *labels = NULL;
    ArgumentsNumber epoch = EPOCH;
    SourceArgument from;
    Status status = STATUS_OK;
    if (!PyArg_ParseTuple(args, "OO&", &source, py_arguments_number, &epoch)) return NULL;
    if (acquire_source(py_module_state_of(self), source, &from) < 0) return NULL;
    int64_t batch = self->trainer->batch, given = from.loader != NULL ? batch : from.positions.elems;
    const int64_t shape[4] = {given > batch ? batch + 1 : given, self->trainer->side, self->trainer->side, 3};
    images = py_array_new(ARRAY_U8, 4, shape);
    labels = py_array_new(ARRAY_I64, 1, shape);
    bool made = images != NULL && labels != NULL && runner_object_enter(self) == 0;
    if (made) {
        uint8_t *to = py_array_data(images);
        int64_t *to_labels = py_array_data(labels);
        Py_BEGIN_ALLOW_THREADS;
        status = train_runner_preview(self->runner, &from.source, (int)shape[0], (uint32_t)epoch.value, to, to_labels);
        Py_END_ALLOW_THREADS;
        runner_object_leave(self);
    }
    release_source(&from);
    if (made && status == STATUS_OK) return Py_BuildValue("NN", images, labels);
    Py_XDECREF(images);
    Py_XDECREF(labels);
    return made ? py_errors_raise(py_module_state_of(self), status) : NULL;
}

static PyObject *restart_method(RunnerObject *self, PyObject *seed_in) {
    uint64_t seed;
    if (py_arguments_whole(seed_in, "seed", 0, UINT64_MAX, &seed) < 0 || ready(self) < 0) return NULL;
    return py_errors_none(py_module_state_of(self), train_runner_restart(self->runner, seed));
}

static PyObject *seconds_method(RunnerObject *self, PyObject *Py_UNUSED(unused)) {
    double seconds = 0;
    if (ready(self) < 0) return NULL;
    Status status = train_runner_take_seconds(self->runner, &seconds);
    return status == STATUS_OK ? PyFloat_FromDouble(seconds) : py_errors_raise(py_module_state_of(self), status);
}

static PyObject *graphs_method(RunnerObject *self, PyObject *Py_UNUSED(unused)) {
    return ready(self) < 0 ? NULL : PyLong_FromLong(train_runner_graphs(self->runner));
}

static PyMethodDef methods[] = {
    {"begin", (PyCFunction)begin_method, METH_VARARGS,
     "begin(which, count)\n--\n\n"
     "Allocates set 0 (training), 1 (test) or 2 (a sample of the first, for whitening). MemoryError if it does not "
     "fit."},
    {"put", (PyCFunction)put_method, METH_VARARGS,
     "put(which, images, labels, ids)\n--\n\n"
     "Adds the set's next images, uint8 (N, side, side, 3), with their labels and sample numbers, int64."},
    {"drop", (PyCFunction)drop_method, METH_VARARGS, "drop(which)\n--\n\nFrees the set's memory."},
    {"whiten", (PyCFunction)whiten_method, METH_VARARGS,
     "whiten(which, count, epsilon)\n--\n\nSets the frozen layer from the set's first images."},
    {"run", (PyCFunction)run_method, METH_VARARGS,
     "run(order, epoch, records, losses)\n--\n\n"
     "Runs len(records) steps on the positions `order`, int32, or on the next batches of a Loader's pass: uint8 "
     "images (for a GPU, page-locked and not augmented) and int64 labels. `records`, float64 (steps, 5), receives "
     "loss sum, correct, images, skipped, side; `losses`, float32 or None, each image's loss."},
    {"evaluate", (PyCFunction)evaluate_method, METH_VARARGS,
     "evaluate(which, positions, count, views)\n--\n\n"
     "Returns logits, as evaluate() does, of the images at `positions` (int32) or, if None, of the first `count`."},
    {"evaluate_fed", (PyCFunction)evaluate_fed_method, METH_VARARGS,
     "evaluate_fed(loader, count, views)\n--\n\n"
     "Returns (logits, labels) of the next `count` images of a Loader's pass."},
    {"look", (PyCFunction)look_method, METH_VARARGS,
     "look(order, epoch)\n--\n\n"
     "Returns (images, labels) of a training batch as the network sees it; `order` as in run."},
    {"restart", (PyCFunction)restart_method, METH_O,
     "restart(seed)\n--\n\n"
     "Back to step 0 and zero momenta, with another seed for the augmentation; keeps graphs and data."},
    {"seconds", (PyCFunction)seconds_method, METH_NOARGS,
     "seconds()\n--\n\nReturns the seconds that the GPU spent on runs, tests and whitening since the last call."},
    {"graphs", (PyCFunction)graphs_method, METH_NOARGS, "graphs()\n--\n\nReturns how many steps have been recorded."},
    {"close", (PyCFunction)close_method, METH_NOARGS, "close()\n--\n\nFrees the sets and what a step needs."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_doc, "Runner(trainer, operations, seed, graphs)\n--\n\n"
                "Prepares training on a Loader's batches or, on a GPU, on data in its memory. On a GPU, these "
                "operations (like a Loader's) augment the images, and steps may be recorded as graphs. For a "
                "trainer on the CPU, the Loader augments."},
    {Py_tp_new, runner_new},
    {Py_tp_dealloc, runner_dealloc},
    {Py_tp_methods, methods},
    {0, NULL},
};

int py_runner_add(PyObject *module) {
    return py_module_add_type(module, "_cgxffcv.Runner", sizeof(RunnerObject), 0, slots, NULL);
}
