/* What a checkpoint keeps of a training: the model's buffers and the trainer's, copied in and out by name. */
#include <string.h>

#include "python/array.h"
#include "python/results.h"
#include "python/trainer.h"

typedef struct Buffer {
    float *data; /* borrowed; NULL: there is none */
    size_t elems;
    bool of_backend; /* perhaps in device memory */
} Buffer;

/* Finds a buffer; 0, or -1 with an exception, for example for an unknown name. */
static int find_buffer(TrainerObject *self, const char *name, Buffer *out) {
    static const char *const own[TRAINER_BUFFERS] = {"momentum", "slow_parameters", "slow_statistics"};
    *out = (Buffer){0};
    if (strcmp(name, "parameters") == 0) {
        *out = (Buffer){nn_model_parameter_data(self->model), nn_model_parameter_elems(self->model), true};
        return 0;
    }
    if (strcmp(name, "statistics") == 0) {
        *out = (Buffer){nn_model_statistic_data(self->model), nn_model_statistic_elems(self->model), true};
        return 0;
    }
    for (int i = 0; i < TRAINER_BUFFERS; i++) {
        if (strcmp(name, own[i]) != 0) continue;
        out->data = trainer_buffer(self->trainer, (TrainerBuffer)i, &out->elems);
        out->of_backend = true;
        return 0;
    }
    return PY_REFUSE(PyExc_KeyError, "a training has no buffer '%s'", name);
}

/* A new array; NULL with an exception. */
static PyObject *copy_of(TrainerObject *self, const Buffer *buffer) {
    const int64_t shape = (int64_t)buffer->elems;
    PyObject *out = py_array_new(ARRAY_F32, 1, &shape);
    if (out == NULL) return NULL;
    float *to = py_array_data(out);
    Status status = STATUS_OK;
    Py_BEGIN_ALLOW_THREADS;
    if (buffer->of_backend)
        status = nn_model_read(self->model, buffer->data, 0, to, buffer->elems);
    else
        memcpy(to, buffer->data, buffer->elems * sizeof *to);
    Py_END_ALLOW_THREADS;
    return py_errors_result(py_module_state_of(self), status, out);
}

/* The residual of error feedback, which the allreduce keeps; None without. */
static PyObject *copy_of_residual(TrainerObject *self) {
    const int64_t elems = self->allreduce == NULL ? 0 : allreduce_residual_elems(self->allreduce);
    if (self->allreduce == NULL || !allreduce_feeds_back(self->allreduce)) Py_RETURN_NONE;
    PyObject *out = py_array_new(ARRAY_F32, 1, &elems);
    if (out == NULL) return NULL;
    Status status = allreduce_residual_copy(self->allreduce, py_array_data(out));
    return py_errors_result(py_module_state_of(self), status, out);
}

PyObject *py_trainer_read(TrainerObject *self, PyObject *name_in) {
    Buffer buffer;
    const char *name = PyUnicode_AsUTF8(name_in);
    if (name == NULL || py_trainer_enter(self) < 0) return NULL;
    PyObject *out = NULL;
    if (strcmp(name, "residual") == 0) {
        out = copy_of_residual(self);
    } else if (find_buffer(self, name, &buffer) == 0) {
        out = buffer.data == NULL ? Py_NewRef(Py_None) : copy_of(self, &buffer);
    }
    py_trainer_leave(self);
    return out;
}

static PyObject *fill_residual(TrainerObject *self, const ArrayView *view) {
    if (self->allreduce == NULL) return PyErr_Format(PyExc_ValueError, "residual: this training keeps none");
    Status status = allreduce_restore(self->allreduce, view->data, view->elems);
    return py_errors_none(py_module_state_of(self), status);
}

static PyObject *state_fill(TrainerObject *self, const char *name, const ArrayView *view) {
    Buffer buffer;
    Status status = STATUS_OK;
    if (strcmp(name, "residual") == 0) return fill_residual(self, view);
    if (find_buffer(self, name, &buffer) < 0) return NULL;
    if (buffer.data == NULL || (size_t)view->elems != buffer.elems) {
        return PyErr_Format(PyExc_ValueError, "%s has %zu elements in this training, not %lld", name, buffer.elems,
                            (long long)view->elems);
    }
    Py_BEGIN_ALLOW_THREADS;
    if (buffer.of_backend)
        status = nn_model_write(self->model, buffer.data, 0, view->data, buffer.elems);
    else
        memcpy(buffer.data, view->data, buffer.elems * sizeof(float));
    Py_END_ALLOW_THREADS;
    return py_errors_none(py_module_state_of(self), status);
}

PyObject *py_trainer_write(TrainerObject *self, PyObject *args) {
    const char *name;
    PyObject *array, *result = NULL;
    ArrayView view;
    if (!PyArg_ParseTuple(args, "sO", &name, &array)) return NULL;
    if (py_array_acquire(array, name, 1u << ARRAY_F32, -1, false, &view) < 0) return NULL;
    if (py_trainer_enter(self) == 0) {
        result = state_fill(self, name, &view);
        py_trainer_leave(self);
    }
    py_array_release(&view);
    return result;
}

static PyObject *trainer_layer_tuple(const NnLayer *layer) {
    PyObject *shape = py_results_shape(layer->shape, layer->ndim);
    if (shape == NULL) return NULL;
    return Py_BuildValue("siiNNn", layer->name, (int)layer->kind, layer->block, PyBool_FromLong(layer->trained), shape,
                         (Py_ssize_t)layer->offset);
}

PyObject *py_trainer_layers(TrainerObject *self, PyObject *Py_UNUSED(unused)) {
    int count;
    if (py_trainer_enter(self) < 0) return NULL;
    const NnLayer *layers = nn_model_layers(self->model, &count);
    PyObject *out = PyList_New(0);
    for (int i = 0; out != NULL && i < count; i++) out = py_results_append(out, trainer_layer_tuple(&layers[i]));
    py_trainer_leave(self);
    return out;
}

PyObject *py_trainer_norms(TrainerObject *self, PyObject *Py_UNUSED(unused)) {
    int count;
    if (py_trainer_enter(self) < 0) return NULL;
    const NnStatistic *norms = nn_model_statistics(self->model, &count);
    PyObject *out = PyList_New(0);
    for (int i = 0; out != NULL && i < count; i++) {
        out = py_results_append(out,
                                Py_BuildValue("snnn", norms[i].name, (Py_ssize_t)norms[i].channels,
                                              (Py_ssize_t)norms[i].mean_offset, (Py_ssize_t)norms[i].variance_offset));
    }
    py_trainer_leave(self);
    return out;
}
