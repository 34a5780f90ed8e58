/* _cgxffcv.Trainer: what a _cgxffcv.Runner trains. See cgxffcv.train.Trainer for the public interface. */
#include <math.h>
#include <string.h>

#include "python/arguments.h"
#include "python/array.h"
#include "python/comm.h"
#include "python/trainer.h"

static void trainer_free(TrainerObject *self) {
    Trainer *trainer = self->trainer;
    Allreduce *allreduce = self->allreduce;
    self->trainer = NULL;
    self->allreduce = NULL;
    trainer_destroy(trainer);
    allreduce_destroy(allreduce);
    if (self->comm_object != NULL) py_comm_object_release(self->comm_object);
    self->model = NULL;
    Py_CLEAR(self->comm_object);
    Py_CLEAR(self->model_object);
}

TrainerObject *py_trainer_of_object(ModuleState *state, PyObject *object) {
    if (PyObject_TypeCheck(object, (PyTypeObject *)state->trainer_type)) return (TrainerObject *)object;
    PyErr_Format(PyExc_TypeError, "expected a Trainer, not %.100s", Py_TYPE(object)->tp_name);
    return NULL;
}

int py_trainer_ready(const TrainerObject *self) {
    if (self->trainer == NULL) return PY_REFUSE(PyExc_ValueError, "this trainer is closed");
    if (self->model_object->busy) return PY_REFUSE(PyExc_RuntimeError, "this trainer is in use by another thread");
    return 0;
}

int py_trainer_enter(TrainerObject *self) {
    if (py_trainer_ready(self) < 0) return -1;
    self->model_object->busy = true;
    return 0;
}

void py_trainer_leave(TrainerObject *self) { self->model_object->busy = false; }

/* --- construction ----------------------------------------------------------------------------------------------- */

static int make_allreduce(TrainerObject *self, PyObject *comm_object, const TrainerReduction *reduction,
                          TrainerConfig *config) {
    AllreduceOptions options = reduction->options;
    int first_blocks[TRAINER_MAX_PHASES];
    ModuleState *state = py_module_state_of(self);
    options.op = config->reduction == LOSS_SUM ? ALLREDUCE_SUM : ALLREDUCE_AVERAGE;
    for (int i = 0; i < config->phase_count; i++) first_blocks[i] = config->phases[i].first_block;
    Comm *comm = py_comm_object_acquire(state, comm_object, "comm");
    if (comm == NULL) return -1;
    self->comm_object = Py_NewRef(comm_object);
    Status status;
    Py_BEGIN_ALLOW_THREADS; /* on GPUs it waits for the other ranks */
    status = trainer_allreduce_create(comm, self->model, &options, reduction->layers, reduction->layer_count,
                                      first_blocks, config->phase_count, &self->allreduce);
    Py_END_ALLOW_THREADS;
    if (py_errors_check(state, status) < 0) return -1;
    config->allreduce = self->allreduce;
    return 0;
}

static int reduce_by(TrainerObject *self, PyObject *comm, PyObject *dict, TrainerConfig *config) {
    TrainerReduction reduction = {.keep = PyList_New(0)};
    if (reduction.keep == NULL) return -1;
    int result = py_trainer_parse_reduction(dict, &reduction);
    if (result == 0) result = make_allreduce(self, comm, &reduction, config);
    Py_DECREF(reduction.keep);
    return result;
}

static int trainer_fill(TrainerObject *self, PyObject *args, PyObject *keywords) {
    PyObject *model, *comm, *reduction;
    TrainerSettings settings;
    ModuleState *state = py_module_state_of(self);
    if (!PyArg_ParseTuple(args, "OOO:Trainer", &model, &comm, &reduction)) return -1;
    if (py_trainer_parse_settings(keywords, &settings) < 0) return -1;
    TrainerConfig *config = &settings.config;
    config->check = py_errors_check_signals;
    memcpy(self->mean, settings.mean, sizeof self->mean);
    memcpy(self->std, settings.std, sizeof self->std);
    self->side = config->side;
    self->batch = config->batch;
    self->groups = config->group_count;
    self->steps = config->steps;
    ModelObject *taken = py_nn_take_model(state, model);
    if (taken == NULL) return -1;
    self->model_object = (ModelObject *)Py_NewRef(model);
    self->model = taken->model;
    const NnModelDesc *desc = nn_model_desc(self->model);
    self->classes = desc->nodes[desc->count - 1].out_channels;
    if (comm != Py_None && reduce_by(self, comm, reduction, config) < 0) return -1;
    Status status = trainer_create(config, self->model, &self->trainer);
    return py_errors_check(state, status);
}

static PyObject *trainer_new(PyTypeObject *type, PyObject *args, PyObject *keywords) {
    TrainerObject *self = (TrainerObject *)type->tp_alloc(type, 0);
    if (self == NULL) return NULL;
    if (trainer_fill(self, args, keywords) < 0) Py_CLEAR(self);
    return (PyObject *)self;
}

static void trainer_dealloc(TrainerObject *self) {
    trainer_free(self);
    py_module_free_object(self);
}

static int parse_view(PyObject *item, void *out) {
    TrainerView *view = out;
    int mirror = 0;
    int result = py_arguments_unpack(item, "iipf;a view is a tuple (dy, dx, mirror, weight)", &view->dy, &view->dx,
                                     &mirror, &view->weight);
    view->mirror = mirror != 0;
    return result;
}

int py_trainer_parse_views(PyObject *sequence, TrainerView views[TRAINER_MAX_VIEWS]) {
    return py_arguments_fill(sequence, "views", 1, TRAINER_MAX_VIEWS, parse_view, views, sizeof *views);
}

/* --- questions ---------------------------------------------------------------------------------------------------- */

static PyObject *trainer_hash_method(TrainerObject *self, PyObject *Py_UNUSED(unused)) {
    uint64_t hash = 0;
    Status status;
    if (py_trainer_enter(self) < 0) return NULL;
    Py_BEGIN_ALLOW_THREADS;
    status = trainer_hash(self->trainer, &hash);
    Py_END_ALLOW_THREADS;
    py_trainer_leave(self);
    if (status != STATUS_OK) return py_errors_raise(py_module_state_of(self), status);
    return PyLong_FromUnsignedLongLong(hash);
}

static PyObject *trainer_rate_method(TrainerObject *self, PyObject *args) {
    int group;
    long long step;
    if (!PyArg_ParseTuple(args, "iL", &group, &step) || py_trainer_ready(self) < 0) return NULL;
    if (group < 0 || group >= self->groups || step < 0 || step >= self->steps) {
        return PyErr_Format(PyExc_IndexError,
                            "there is no group %d, step %lld in a training with %d groups and %lld steps", group, step,
                            self->groups, self->steps);
    }
    OptimRate rate = trainer_rate(self->trainer, group, step);
    return Py_BuildValue("fNN", (double)rate.rate, PyBool_FromLong(rate.active), PyBool_FromLong(rate.project));
}

static PyObject *trainer_explain_method(TrainerObject *self, PyObject *Py_UNUSED(unused)) {
    char text[8192];
    if (py_trainer_ready(self) < 0) return NULL;
    if (self->allreduce == NULL) return PyUnicode_FromString("one rank: gradients are not exchanged");
    allreduce_explain(self->allreduce, text, sizeof text);
    return PyUnicode_FromString(text);
}

static PyObject *trainer_wire_method(TrainerObject *self, PyObject *argument) {
    int first_block;
    if (py_nn_parse_block(argument, &first_block) < 0 || py_trainer_ready(self) < 0) return NULL;
    if (self->allreduce == NULL) return Py_BuildValue("ii", 0, 0);
    AllreduceBytes bytes = allreduce_bytes(self->allreduce, (int64_t)nn_model_gradient_elems(self->model, first_block));
    return Py_BuildValue("KK", (unsigned long long)bytes.wire, (unsigned long long)bytes.plain);
}

static PyObject *trainer_close_method(TrainerObject *self, PyObject *Py_UNUSED(unused)) {
    if (self->trainer != NULL && py_trainer_ready(self) < 0) return NULL;
    if (self->runners > 0) return PyErr_Format(PyExc_ValueError, "this trainer is in use: close its Runner first");
    trainer_free(self);
    Py_RETURN_NONE;
}

static PyObject *get_step(TrainerObject *self, void *Py_UNUSED(unused)) {
    return py_trainer_ready(self) < 0 ? NULL : PyLong_FromLongLong(trainer_steps_done(self->trainer));
}

static int set_step(TrainerObject *self, PyObject *value, void *Py_UNUSED(unused)) {
    uint64_t step;
    if (py_arguments_whole(value == NULL ? Py_None : value, "step", 0, INT64_MAX, &step) < 0) return -1;
    if (py_trainer_ready(self) < 0) return -1;
    Status status = trainer_set_step(self->trainer, (int64_t)step);
    return py_errors_check(py_module_state_of(self), status);
}

static PyObject *get_optimizer_flops(TrainerObject *self, void *Py_UNUSED(unused)) {
    return py_trainer_ready(self) < 0 ? NULL : PyFloat_FromDouble(trainer_optimizer_flops(self->trainer));
}

static PyMethodDef trainer_methods[] = {
    {"read", (PyCFunction)py_trainer_read, METH_O,
     "read(name)\n--\n\n"
     "Returns a copy of a buffer, float32: parameters, statistics, momentum, slow_parameters, slow_statistics, "
     "residual; None if this training has no such buffer."},
    {"write", (PyCFunction)py_trainer_write, METH_VARARGS,
     "write(name, array)\n--\n\nFills a buffer from an array of its size."},
    {"layers", (PyCFunction)py_trainer_layers, METH_NOARGS,
     "layers()\n--\n\nReturns each layer as (name, kind, block, trained, shape, offset in the parameters)."},
    {"norms", (PyCFunction)py_trainer_norms, METH_NOARGS,
     "norms()\n--\n\n"
     "Returns each norm as (name, channels, offset of the means, of the variances in the statistics)."},
    {"algorithms", (PyCFunction)py_trainer_algorithms, METH_NOARGS,
     "algorithms()\n--\n\n"
     "Returns how the convolutions of the plans made so far are computed, each as (layer, pass, side, images, "
     "evaluation, name, source, milliseconds, workspace bytes); source is fixed, timed or cached; milliseconds "
     "None if not known."},
    {"library", (PyCFunction)py_trainer_library, METH_NOARGS,
     "library()\n--\n\n"
     "Returns (name and version, cache file, what is wrong with it) of the convolutions' library; None before the "
     "first plan."},
    {"hash", (PyCFunction)trainer_hash_method, METH_NOARGS,
     "hash()\n--\n\n"
     "Returns a hash of parameters and momenta: XXH64, or on a GPU the sum over their 32-bit words w_i of "
     "SplitMix64's finaliser of i << 32 | w_i."},
    {"rate", (PyCFunction)trainer_rate_method, METH_VARARGS,
     "rate(group, step)\n--\n\nReturns (rate, active, project) of a group in a step."},
    {"wire", (PyCFunction)trainer_wire_method, METH_O,
     "wire(first_block)\n--\n\n"
     "Returns the bytes that this rank sends per step, and what they would be uncompressed."},
    {"explain", (PyCFunction)trainer_explain_method, METH_NOARGS,
     "explain()\n--\n\nReturns how gradients are exchanged, as text."},
    {"close", (PyCFunction)trainer_close_method, METH_NOARGS, "close()\n--\n\nFrees everything."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef trainer_getset[] = {
    {"steps_done", (getter)get_step, (setter)set_step, "Steps done; set by a resumed run.", NULL},
    {"optimizer_flops", (getter)get_optimizer_flops, NULL, "Operations of an optimizer step's matrix products.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot trainer_slots[] = {
    {Py_tp_doc, "Trainer(model, groups, ...)\n--\n\nSee cgxffcv.train.Trainer."},
    {Py_tp_new, trainer_new},
    {Py_tp_dealloc, trainer_dealloc},
    {Py_tp_methods, trainer_methods},
    {Py_tp_getset, trainer_getset},
    {0, NULL},
};

int py_trainer_add(PyObject *module) {
    return py_module_add_type(module, "_cgxffcv.Trainer", sizeof(TrainerObject), 0, trainer_slots,
                              &py_module_state(module)->trainer_type);
}
