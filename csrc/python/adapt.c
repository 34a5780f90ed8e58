/* Quantisation losses of a plan's layers, and the choice of bit widths by them. */
#include "python/adapt.h"

#include "allreduce/adapt.h"
#include "base/memory.h"
#include "python/arguments.h"
#include "python/array.h"
#include "python/results.h"
#include "python/stages.h"

/* Whole numbers from 1 to QUANTIZE_MAX_BITS; their count, or -1 with an exception set. */
static int parse_widths(PyObject *object, int widths[QUANTIZE_MAX_BITS]) {
    PyObject *tuple = py_arguments_tuple(object, "widths", 1, QUANTIZE_MAX_BITS);
    if (tuple == NULL) return -1;
    int count = (int)PyTuple_GET_SIZE(tuple);
    for (int i = 0; i < count; i++) {
        uint64_t width;
        if (py_arguments_whole(PyTuple_GET_ITEM(tuple, i), "a width", 1, QUANTIZE_MAX_BITS, &width) < 0) count = -1;
        if (count > 0) widths[i] = (int)width;
    }
    Py_DECREF(tuple);
    return count;
}

static int check_elems(const char *argument, int64_t elems, int64_t expected) {
    if (elems == expected) return 0;
    return PY_REFUSE(PyExc_ValueError, "%s must have the plan's %lld elements, not %lld", argument, (long long)expected,
                     (long long)elems);
}

/* (losses and energy, bytes) of a plan that has been taken. */
static PyObject *adapt_weigh(PyObject *plan, const Allreduce *allreduce, const ArrayView *buffer, const float *residual,
                             const int *widths, int count) {
    int64_t rows = allreduce_layers(allreduce);
    PyObject *lost = py_array_new(ARRAY_F64, 2, (int64_t[]){rows, count + 1});
    PyObject *bytes = lost == NULL ? NULL : py_array_new(ARRAY_U64, 2, (int64_t[]){rows, count});
    if (bytes == NULL) {
        Py_XDECREF(lost);
        return NULL;
    }
    Status status;
    Py_BEGIN_ALLOW_THREADS;
    status =
        allreduce_losses(allreduce, buffer->data, residual, widths, count, py_array_data(lost), py_array_data(bytes));
    Py_END_ALLOW_THREADS;
    if (status == STATUS_OK) return Py_BuildValue("(NN)", lost, bytes);
    Py_DECREF(lost);
    Py_DECREF(bytes);
    return py_errors_raise(py_module_state_of(plan), status);
}

PyObject *py_adapt_losses(PyObject *plan, PyObject *args) {
    PyObject *buffer_in, *residual_in, *widths_in, *result = NULL;
    ArrayView buffer, residual;
    int widths[QUANTIZE_MAX_BITS], count;
    unsigned types;
    if (!PyArg_ParseTuple(args, "OOO:losses", &buffer_in, &residual_in, &widths_in)) return NULL;
    if ((count = parse_widths(widths_in, widths)) < 0) return NULL;
    Allreduce *allreduce = py_allreduce_acquire(plan, &types);
    if (allreduce == NULL) return NULL;
    bool feedback = residual_in != Py_None;
    if (py_array_acquire(buffer_in, "buffer", types, -1, false, &buffer) < 0) goto give;
    if (feedback && py_array_acquire(residual_in, "residual", 1u << ARRAY_F32, -1, false, &residual) < 0) goto release;
    if (check_elems("buffer", buffer.elems, allreduce_elems(allreduce)) == 0 &&
        (!feedback || check_elems("residual", residual.elems, allreduce_elems(allreduce)) == 0)) {
        result = adapt_weigh(plan, allreduce, &buffer, feedback ? residual.data : NULL, widths, count);
    }
    if (feedback) py_array_release(&residual);
release:
    py_array_release(&buffer);
give:
    py_allreduce_release(plan);
    return result;
}

/* ---- choosing ---- */

static PyObject *tuple_of(const int *choice, int64_t layers) {
    PyObject *tuple = PyTuple_New((Py_ssize_t)layers);
    for (int64_t i = 0; tuple != NULL && i < layers; i++) {
        tuple = py_results_put(tuple, (Py_ssize_t)i, PyLong_FromLong(choice[i]));
    }
    return tuple;
}

static PyObject *adapt_choose(PyObject *module, const ArrayView *lost, const ArrayView *bytes, double budget) {
    int *choice = NULL;
    if (lost->shape[0] != bytes->shape[0] || lost->shape[1] != bytes->shape[1]) {
        return PyErr_Format(PyExc_ValueError, "lost and bytes must have the same shape: layers by widths");
    }
    if (lost->shape[0] > ALLREDUCE_MAX_ADAPTED || lost->shape[1] > QUANTIZE_MAX_BITS) {
        return PyErr_Format(PyExc_ValueError, "at most %d layers of %d widths, not %lld of %lld", ALLREDUCE_MAX_ADAPTED,
                            QUANTIZE_MAX_BITS, (long long)lost->shape[0], (long long)lost->shape[1]);
    }
    Status status = memory_calloc((size_t)lost->shape[0], sizeof *choice, &choice);
    if (status == STATUS_OK) {
        Py_BEGIN_ALLOW_THREADS;
        status =
            allreduce_choose_widths(lost->data, bytes->data, (int)lost->shape[0], (int)lost->shape[1], budget, choice);
        Py_END_ALLOW_THREADS;
    }
    PyObject *result =
        status == STATUS_OK ? tuple_of(choice, lost->shape[0]) : py_errors_raise(py_module_state(module), status);
    memory_free(choice);
    return result;
}

static PyObject *choose_widths(PyObject *module, PyObject *args) {
    PyObject *lost_in, *bytes_in, *result;
    double budget;
    ArrayView lost, bytes;
    if (!PyArg_ParseTuple(args, "OOd:allreduce_choose_widths", &lost_in, &bytes_in, &budget)) return NULL;
    if (py_array_acquire(lost_in, "lost", 1u << ARRAY_F64, 2, false, &lost) < 0) return NULL;
    if (py_array_acquire(bytes_in, "bytes", 1u << ARRAY_U64, 2, false, &bytes) < 0) {
        py_array_release(&lost);
        return NULL;
    }
    result = adapt_choose(module, &lost, &bytes, budget);
    py_array_release(&bytes);
    py_array_release(&lost);
    return result;
}

static PyMethodDef functions[] = {
    {"allreduce_choose_widths", choose_widths, METH_VARARGS,
     "allreduce_choose_widths(lost, bytes, budget)\n--\n\n"
     "Chooses each layer's width (from arrays of layers by widths): the fewest bytes whose losses\n"
     "are at most the budget or, if that is impossible, the smallest losses."},
    {NULL, NULL, 0, NULL},
};

int py_adapt_add(PyObject *module) { return PyModule_AddFunctions(module, functions); }
