/* What a checkpoint keeps of a training: the model's buffers and the trainer's, copied in and out by name. */
#include <string.h>

#include "python/array.h"
#include "python/trainer.h"

typedef struct Buffer {
    float *data; /* borrowed; NULL: there is none */
    size_t elems;
    bool of_backend; /* perhaps in device memory */
} Buffer;

/* Finds a buffer; 0, or -1 with an exception for a name that no training has. */
static int find_buffer(TrainerObject *self, const char *name, Buffer *out) {
    static const char *const own[TRAINER_BUFFERS] = {"momentum", "slow_parameters", "slow_statistics"};
    *out = (Buffer){0};
    if (strcmp(name, "parameters") == 0) {
        *out = (Buffer){model_parameter_data(self->model), model_parameter_elems(self->model), true};
        return 0;
    }
    if (strcmp(name, "statistics") == 0) {
        *out = (Buffer){model_statistic_data(self->model), model_statistic_elems(self->model), true};
        return 0;
    }
    if (strcmp(name, "residual") == 0) {
        if (self->reducer != NULL) out->data = reducer_residual(self->reducer, &out->elems);
        return 0;
    }
    for (int i = 0; i < TRAINER_BUFFERS; i++) {
        if (strcmp(name, own[i]) != 0) continue;
        out->data = trainer_buffer(self->trainer, (TrainerBuffer)i, &out->elems);
        out->of_backend = true;
        return 0;
    }
    PyErr_Format(PyExc_KeyError, "a training has no buffer '%s'", name);
    return -1;
}

PyObject *trainer_read(TrainerObject *self, PyObject *name_in) {
    Buffer buffer;
    const char *name = PyUnicode_AsUTF8(name_in);
    if (name == NULL || trainer_ready(self) < 0 || find_buffer(self, name, &buffer) < 0) return NULL;
    if (buffer.data == NULL) Py_RETURN_NONE;
    const int64_t shape = (int64_t)buffer.elems;
    PyObject *out = array_new(ARRAY_F32, 1, &shape);
    if (out == NULL) return NULL;
    float *to = array_data(out);
    Status status = STATUS_OK;
    Py_BEGIN_ALLOW_THREADS;
    if (buffer.of_backend)
        status = model_read(self->model, buffer.data, 0, to, buffer.elems);
    else
        memcpy(to, buffer.data, buffer.elems * sizeof *to);
    Py_END_ALLOW_THREADS;
    if (status == STATUS_OK) return out;
    Py_DECREF(out);
    return trainer_raise(self, status);
}

PyObject *trainer_write(TrainerObject *self, PyObject *args) {
    const char *name;
    PyObject *array;
    Buffer buffer;
    ArrayView view;
    if (!PyArg_ParseTuple(args, "sO", &name, &array) || trainer_ready(self) < 0) return NULL;
    if (find_buffer(self, name, &buffer) < 0) return NULL;
    if (array_acquire(array, name, 1u << ARRAY_F32, -1, false, &view) < 0) return NULL;
    if (self->reducer != NULL && strcmp(name, "residual") == 0) {
        Status restored = reducer_restore(self->reducer, view.data, (size_t)view.elems);
        array_release(&view);
        return restored == STATUS_OK ? Py_NewRef(Py_None) : trainer_raise(self, restored);
    }
    if (buffer.data == NULL || (size_t)view.elems != buffer.elems) {
        PyErr_Format(PyExc_ValueError, "%s has %zu elements in this training, not %lld", name, buffer.elems,
                     (long long)view.elems);
        array_release(&view);
        return NULL;
    }
    Status status = STATUS_OK;
    Py_BEGIN_ALLOW_THREADS;
    if (buffer.of_backend)
        status = model_write(self->model, buffer.data, 0, view.data, buffer.elems);
    else
        memcpy(buffer.data, view.data, buffer.elems * sizeof(float));
    Py_END_ALLOW_THREADS;
    array_release(&view);
    if (status != STATUS_OK) return trainer_raise(self, status);
    Py_RETURN_NONE;
}

/* Appends a new reference to the list, which goes away on failure. */
static PyObject *append(PyObject *list, PyObject *item) {
    if (item == NULL || PyList_Append(list, item) < 0) Py_CLEAR(list);
    Py_XDECREF(item);
    return list;
}

PyObject *trainer_layers(TrainerObject *self, PyObject *unused) {
    (void)unused;
    int count;
    if (trainer_ready(self) < 0) return NULL;
    const Layer *layers = model_layers(self->model, &count);
    PyObject *out = PyList_New(0);
    for (int i = 0; out != NULL && i < count; i++) {
        const Layer *layer = &layers[i];
        PyObject *shape = PyTuple_New(layer->ndim);
        for (int d = 0; shape != NULL && d < layer->ndim; d++) {
            PyTuple_SET_ITEM(shape, d, PyLong_FromLongLong(layer->shape[d]));
        }
        if (shape == NULL) {
            Py_CLEAR(out);
            break;
        }
        out = append(out, Py_BuildValue("siiNNn", layer->name, (int)layer->kind, layer->block,
                                        PyBool_FromLong(layer->trained), shape, (Py_ssize_t)layer->offset));
    }
    return out;
}

PyObject *trainer_norms(TrainerObject *self, PyObject *unused) {
    (void)unused;
    int count;
    if (trainer_ready(self) < 0) return NULL;
    const Statistic *norms = model_statistics(self->model, &count);
    PyObject *out = PyList_New(0);
    for (int i = 0; out != NULL && i < count; i++) {
        out = append(out, Py_BuildValue("snnn", norms[i].name, (Py_ssize_t)norms[i].channels,
                                        (Py_ssize_t)norms[i].mean_offset, (Py_ssize_t)norms[i].variance_offset));
    }
    return out;
}
