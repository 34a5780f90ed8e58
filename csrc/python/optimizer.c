/* _cgxffcv.Optimizer: SGD and Muon on NumPy arrays in place, on the CPU or via the GPU. */
#include <string.h>

#include "base/memory.h"
#include "optim/optim.h"
#include "python/arguments.h"
#include "python/array.h"
#include "python/optimizer_gpu.h"
#include "python/spec.h"
#include "python/train.h"

#define MAX_TENSORS (1 << 20)
#define MAX_RATES (1 << 24) /* steps whose rates are loaded at once */

typedef struct OptimizerObject {
    PyObject_HEAD Optim *optim; /* owned */
    Pool *pool;                 /* owned */
    OptimizerGpu *gpu;          /* owned; NULL on the CPU */
    ArrayView *views;           /* owned: value and gradient of each tensor */
    int view_count, group_count;
    bool busy; /* a call is running without the GIL */
} OptimizerObject;

#define RULE_MEMBERS                                                                                                   \
    SPEC_ENUM(OptimGroup, rule, optim_rule_name), SPEC_MEMBER(OptimGroup, momentum), SPEC_MEMBER(OptimGroup, decay)

static const SpecTable sgd = {"an optimizer group", {RULE_MEMBERS}};
static const SpecTable muon = {"an optimizer group",
                               {RULE_MEMBERS, SPEC_MEMBER(OptimGroup, iterations), SPEC_MEMBER(OptimGroup, a),
                                SPEC_MEMBER(OptimGroup, b), SPEC_MEMBER(OptimGroup, c),
                                SPEC_MEMBER(OptimGroup, epsilon)}};

int py_train_parse_rule(PyObject *item, void *group) {
    int rule = py_spec_kind(item, sgd.what, "rule", optim_rule_name);
    *(OptimGroup *)group = (OptimGroup){0};
    return rule < 0 ? -1 : py_spec_fill(rule == OPTIM_MUON ? &muon : &sgd, item, NULL, group);
}

static int parse_rate(PyObject *item, void *out) {
    OptimRate *rate = out;
    int active = 0, project = 0;
    if (py_arguments_unpack(item, "fpp;a rate must be a tuple (rate, active, project)", &rate->rate, &active,
                            &project) < 0) {
        return -1;
    }
    rate->active = active != 0;
    rate->project = project != 0;
    return 0;
}

static int parse_rates(PyObject *sequence, int count, OptimRate rates[TRAIN_MAX_GROUPS]) {
    return py_arguments_fill(sequence, "rates, one for each group", count, count, parse_rate, rates, sizeof *rates);
}

static int take_tensor(OptimizerObject *self, PyObject *item, OptimTensor *tensor) {
    PyObject *value, *gradient;
    if (py_arguments_unpack(item, "OOi;a tensor must be a tuple (value, gradient, group)", &value, &gradient,
                            &tensor->group) < 0) {
        return -1;
    }
    ArrayView *v = &self->views[self->view_count];
    if (py_array_acquire(value, "value", 1u << ARRAY_F32, -1, true, v) < 0) return -1;
    ArrayView *g = &self->views[++self->view_count];
    if (py_array_acquire(gradient, "gradient", 1u << ARRAY_F32, -1, false, g) < 0) return -1;
    self->view_count++;
    if (v->elems != g->elems) {
        return PY_REFUSE(PyExc_ValueError, "value has %lld elements, but its gradient has %lld", (long long)v->elems,
                         (long long)g->elems);
    }
    tensor->value = v->data;
    tensor->gradient = g->data;
    tensor->rows = v->ndim == 0 ? 1 : v->shape[0];
    tensor->columns = tensor->rows == 0 ? 0 : v->elems / tensor->rows;
    return 0;
}

static Status create_optim(OptimizerObject *self, const OptimGroup *groups, OptimTensor *tensors, int count, bool gpu) {
    if (gpu) TRY(py_optimizer_gpu_create(tensors, count, &self->gpu));
    return optim_create(groups, self->group_count, tensors, count, self->pool,
                        gpu ? py_optimizer_gpu_stream(self->gpu) : NULL, &self->optim);
}

static int optimizer_fill(OptimizerObject *self, PyObject *type, PyObject *groups_in, PyObject *tensors_in, int threads,
                          bool gpu) {
    OptimGroup groups[TRAIN_MAX_GROUPS];
    OptimTensor *tensors = NULL;
    int result = -1;
    Status status = STATUS_OK;
    self->group_count = py_arguments_fill(groups_in, "optimizer groups", 1, TRAIN_MAX_GROUPS, py_train_parse_rule,
                                          groups, sizeof *groups);
    if (self->group_count < 0) return -1;
    PyObject *tuple = py_arguments_tuple(tensors_in, "tensors", 0, MAX_TENSORS);
    if (tuple == NULL) return -1;
    Py_ssize_t count = PyTuple_GET_SIZE(tuple);
    TRY_GOTO(memory_calloc((size_t)count + 1, sizeof *tensors, &tensors));
    TRY_GOTO(memory_calloc(2 * (size_t)count + 1, sizeof *self->views, &self->views));
    for (Py_ssize_t i = 0; i < count; i++) {
        if (take_tensor(self, PyTuple_GET_ITEM(tuple, i), &tensors[i]) < 0) goto done;
    }
    TRY_GOTO(pool_create(threads, &self->pool));
    TRY_GOTO(create_optim(self, groups, tensors, (int)count, gpu));
    result = 0;
done:
    if (status != STATUS_OK) py_errors_raise(py_module_state_of_type((PyTypeObject *)type), status);
    memory_free(tensors);
    Py_DECREF(tuple);
    return result;
}

static PyObject *optimizer_new(PyTypeObject *type, PyObject *args, PyObject *keywords) {
    static char *names[] = {"groups", "tensors", "threads", "device", NULL};
    PyObject *groups, *tensors;
    int threads = 1;
    const char *device = "cpu";
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "OO|is", names, &groups, &tensors, &threads, &device)) return NULL;
    bool gpu = strcmp(device, "gpu") == 0;
    if (!gpu && strcmp(device, "cpu") != 0) {
        return PyErr_Format(PyExc_ValueError, "device must be 'cpu' or 'gpu', not '%s'", device);
    }
    OptimizerObject *self = (OptimizerObject *)type->tp_alloc(type, 0);
    if (self == NULL) return NULL;
    if (optimizer_fill(self, (PyObject *)type, groups, tensors, threads, gpu) < 0) Py_CLEAR(self);
    return (PyObject *)self;
}

static void optimizer_dealloc(OptimizerObject *self) {
    optim_destroy(self->optim);
    py_optimizer_gpu_destroy(self->gpu);
    pool_destroy(self->pool);
    for (int i = 0; i < self->view_count; i++) py_array_release(&self->views[i]);
    memory_free(self->views);
    py_module_free_object(self);
}

/* One call at a time: -1 with RuntimeError set if another is running. */
static int optimizer_enter(OptimizerObject *self) {
    if (self->busy) return PY_REFUSE(PyExc_RuntimeError, "this optimizer is in use by another thread");
    self->busy = true;
    return 0;
}

/* The end of a call; 0, or -1 with the exception of its status. */
static int optimizer_leave(OptimizerObject *self, Status status) {
    self->busy = false;
    return py_errors_check(py_module_state_of(self), status);
}

static Status run_step(OptimizerObject *self, const OptimRate *rates) {
    if (self->gpu == NULL) return optim_step(self->optim, rates);
    TRY(py_optimizer_gpu_enter(self->gpu));
    TRY(optim_step(self->optim, rates));
    return py_optimizer_gpu_leave(self->gpu);
}

static PyObject *optimizer_step(OptimizerObject *self, PyObject *rates_in) {
    OptimRate rates[TRAIN_MAX_GROUPS];
    Status status;
    if (parse_rates(rates_in, self->group_count, rates) < 0 || optimizer_enter(self) < 0) return NULL;
    Py_BEGIN_ALLOW_THREADS;
    status = run_step(self, rates);
    Py_END_ALLOW_THREADS;
    return optimizer_leave(self, status) < 0 ? NULL : Py_NewRef(Py_None);
}

static Status run_finite(OptimizerObject *self, const OptimRate *rates, bool *out) {
    if (self->gpu != NULL) TRY(py_optimizer_gpu_enter(self->gpu));
    return optim_gradients_finite(self->optim, rates, out);
}

static PyObject *optimizer_finite(OptimizerObject *self, PyObject *args, PyObject *keywords) {
    static char *names[] = {"rates", NULL};
    PyObject *rates_in = Py_None;
    OptimRate rates[TRAIN_MAX_GROUPS];
    bool finite = false;
    Status status;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "|O", names, &rates_in)) return NULL;
    if (rates_in != Py_None && parse_rates(rates_in, self->group_count, rates) < 0) return NULL;
    if (optimizer_enter(self) < 0) return NULL;
    Py_BEGIN_ALLOW_THREADS;
    status = run_finite(self, rates_in == Py_None ? NULL : rates, &finite);
    Py_END_ALLOW_THREADS;
    return optimizer_leave(self, status) < 0 ? NULL : PyBool_FromLong(finite);
}

static PyObject *optimizer_load_rates(OptimizerObject *self, PyObject *table) {
    Status status = STATUS_OK;
    OptimRate *rates = NULL;
    PyObject *result = NULL, *tuple = py_arguments_tuple(table, "steps in the table of rates", 0, MAX_RATES);
    if (tuple == NULL) return NULL;
    Py_ssize_t steps = PyTuple_GET_SIZE(tuple);
    TRY_GOTO(memory_calloc((size_t)steps + 1, TRAIN_MAX_GROUPS * sizeof *rates, &rates));
    for (Py_ssize_t i = 0; i < steps; i++) {
        OptimRate *row = rates + i * self->group_count;
        if (parse_rates(PyTuple_GET_ITEM(tuple, i), self->group_count, row) < 0) goto done;
    }
    if (optimizer_enter(self) < 0) goto done;
    Py_BEGIN_ALLOW_THREADS;
    status = optim_load_rates(self->optim, rates, steps);
    Py_END_ALLOW_THREADS;
    if (self->gpu != NULL) py_optimizer_gpu_forget_graph(self->gpu);
    if (optimizer_leave(self, status) == 0) result = Py_NewRef(Py_None);
    status = STATUS_OK;
done:
    if (status != STATUS_OK) py_errors_raise(py_module_state_of(self), status);
    memory_free(rates);
    Py_DECREF(tuple);
    return result;
}

static Status run_scheduled(OptimizerObject *self, int32_t step, const bool *enabled, uint32_t *flag) {
    if (self->gpu == NULL) return optim_step_scheduled(self->optim, NULL, NULL, enabled); /* which fails */
    TRY(py_optimizer_gpu_enter(self->gpu));
    TRY(py_optimizer_gpu_replay(self->gpu, self->optim, step, enabled, self->group_count, flag));
    return py_optimizer_gpu_leave(self->gpu);
}

static int parse_truth(PyObject *item, void *out) {
    int truth = PyObject_IsTrue(item);
    *(bool *)out = truth > 0;
    return truth < 0 ? -1 : 0;
}

static int parse_enabled(OptimizerObject *self, PyObject *sequence, bool enabled[TRAIN_MAX_GROUPS]) {
    int count = self->group_count;
    for (int i = 0; i < count; i++) enabled[i] = true;
    if (sequence == Py_None) return 0;
    return py_arguments_fill(sequence, "entries of enabled, one for each group", count, count, parse_truth, enabled,
                             sizeof *enabled);
}

static PyObject *optimizer_step_scheduled(OptimizerObject *self, PyObject *args, PyObject *keywords) {
    static char *names[] = {"step", "enabled", "skip", NULL};
    PyObject *enabled_in = Py_None;
    bool enabled[TRAIN_MAX_GROUPS];
    int step, skip = 0;
    Status status;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "i|Op", names, &step, &enabled_in, &skip)) return NULL;
    if (parse_enabled(self, enabled_in, enabled) < 0 || optimizer_enter(self) < 0) return NULL;
    uint32_t flag = skip != 0;
    Py_BEGIN_ALLOW_THREADS;
    status = run_scheduled(self, step, enabled, &flag);
    Py_END_ALLOW_THREADS;
    return optimizer_leave(self, status) < 0 ? NULL : PyBool_FromLong(flag != 0);
}

static PyObject *optimizer_pull(OptimizerObject *self, PyObject *args) {
    PyObject *slow_in, *value_in, *result = NULL;
    float keep;
    ArrayView slow, value;
    Status status;
    if (!PyArg_ParseTuple(args, "OOf", &slow_in, &value_in, &keep)) return NULL;
    if (py_array_acquire(slow_in, "slow", 1u << ARRAY_F32, -1, true, &slow) < 0) return NULL;
    if (py_array_acquire(value_in, "value", 1u << ARRAY_F32, -1, true, &value) < 0) {
        py_array_release(&slow);
        return NULL;
    }
    if (slow.elems != value.elems) {
        PyErr_Format(PyExc_ValueError, "slow has %lld elements, but value has %lld", (long long)slow.elems,
                     (long long)value.elems);
    } else if (optimizer_enter(self) == 0) {
        size_t elems = (size_t)slow.elems;
        Py_BEGIN_ALLOW_THREADS;
        status = self->gpu == NULL ? optim_lerp(self->optim, slow.data, value.data, elems, keep)
                                   : py_optimizer_gpu_lerp(self->gpu, self->optim, slow.data, value.data, elems, keep);
        Py_END_ALLOW_THREADS;
        if (optimizer_leave(self, status) == 0) result = Py_NewRef(Py_None);
    }
    py_array_release(&value);
    py_array_release(&slow);
    return result;
}

static PyObject *optimizer_momentum(OptimizerObject *self, void *Py_UNUSED(unused)) {
    int64_t elems;
    float *data = optim_momentum(self->optim, &elems);
    if (self->gpu == NULL) return py_array_wrap(ARRAY_F32, 1, &elems, NULL, data, (PyObject *)self, true);
    Status status;
    PyObject *copy = py_array_new(ARRAY_F32, 1, &elems);
    if (copy == NULL) return NULL;
    float *to = py_array_data(copy);
    if (optimizer_enter(self) < 0) {
        Py_DECREF(copy);
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS;
    status = py_optimizer_gpu_read(self->gpu, data, (size_t)elems, to);
    Py_END_ALLOW_THREADS;
    if (optimizer_leave(self, status) < 0) Py_CLEAR(copy);
    return copy;
}

static PyObject *optimizer_flops(OptimizerObject *self, void *Py_UNUSED(unused)) {
    return PyFloat_FromDouble(optim_step_flops(self->optim));
}

static PyMethodDef optimizer_methods[] = {
    {"step", (PyCFunction)optimizer_step, METH_O,
     "step(rates)\n--\n\nApplies one step; rates is a sequence of (rate, active, project), one for each group."},
    {"gradients_finite", PY_KEYWORDS(optimizer_finite),
     "gradients_finite(rates=None)\n--\n\n"
     "Whether every gradient element is finite; with rates, only of active groups."},
    {"load_rates", (PyCFunction)optimizer_load_rates, METH_O,
     "load_rates(table)\n--\n\nGPU: sets the rates of all steps for step_scheduled."},
    {"step_scheduled", PY_KEYWORDS(optimizer_step_scheduled),
     "step_scheduled(step, enabled=None, skip=False)\n--\n\n"
     "GPU: runs a recorded step; returns whether it was left out."},
    {"pull", (PyCFunction)optimizer_pull, METH_VARARGS,
     "pull(slow, value, keep, /)\n--\n\nslow = value = keep * slow + (1 - keep) * value, in place."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef optimizer_getset[] = {
    {"momentum", (getter)optimizer_momentum, NULL,
     "All momentum buffers in the tensors' order, float32: a view; on the GPU, a copy.", NULL},
    {"step_flops", (getter)optimizer_flops, NULL, "Floating-point operations of one step's matrix products.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot optimizer_slots[] = {
    {Py_tp_doc, "Optimizer(groups, tensors, threads=1, device='cpu')\n--\n\nSee cgxffcv.train.Optimizer."},
    {Py_tp_new, optimizer_new},
    {Py_tp_dealloc, optimizer_dealloc},
    {Py_tp_methods, optimizer_methods},
    {Py_tp_getset, optimizer_getset},
    {0, NULL},
};

int py_optimizer_add(PyObject *module) {
    return py_module_add_type(module, "_cgxffcv.Optimizer", sizeof(OptimizerObject), 0, optimizer_slots, NULL);
}
