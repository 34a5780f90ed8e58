/* The loader's orders and parts as functions that need no open file. */
#include "loader/order.h"

#include <string.h>

#include "python/arguments.h"
#include "python/array.h"

#define SAMPLES (1u << ARRAY_I64 | 1u << ARRAY_U64)

static PyObject *shuffled(PyObject *Py_UNUSED(module), PyObject *args) {
    PyObject *samples, *result;
    ArgumentsNumber seed = {"seed", UINT64_MAX, 0}, epoch = {"epoch", UINT32_MAX, 0};
    ArrayView view;
    if (!PyArg_ParseTuple(args, "OO&O&:shuffled", &samples, py_arguments_number, &seed, py_arguments_number, &epoch)) {
        return NULL;
    }
    if (py_array_acquire(samples, "samples", SAMPLES, 1, false, &view) < 0) return NULL;
    result = py_array_new(ARRAY_I64, 1, view.shape);
    if (result != NULL) {
        uint64_t *out = py_array_data(result);
        Py_BEGIN_ALLOW_THREADS;
        if (view.elems > 0) memcpy(out, view.data, (size_t)view.elems * sizeof *out);
        loader_shuffle(out, 0, (uint64_t)view.elems, seed.value, (uint32_t)epoch.value, LOADER_SHUFFLE_SAMPLES);
        Py_END_ALLOW_THREADS;
    }
    py_array_release(&view);
    return result;
}

/* The samples of all the rank's batches, one after another; returns their number. Without `out`, only counts. */
static size_t gather_share(const LoaderSplit *split, const uint64_t *order, uint64_t samples, uint64_t *out) {
    size_t count = 0;
    for (uint64_t i = 0; i < loader_split_batches(split, samples); i++) {
        LoaderPart part = loader_split_part(split, samples, i);
        if (out != NULL && part.count > 0) memcpy(out + count, order + part.first, part.count * sizeof *out);
        count += part.count;
    }
    return count;
}

static PyObject *share(PyObject *Py_UNUSED(module), PyObject *args) {
    PyObject *order, *result;
    ArgumentsNumber batch_size = {"batch_size", UINT64_MAX, 0}, world_size = {"world_size", UINT64_MAX, 0},
                    rank = {"rank", UINT64_MAX, 0};
    int drop_last;
    ArrayView view;
    if (!PyArg_ParseTuple(args, "OO&O&O&p:share", &order, py_arguments_number, &batch_size, py_arguments_number,
                          &world_size, py_arguments_number, &rank, &drop_last)) {
        return NULL;
    }
    LoaderSplit split = {batch_size.value, world_size.value, rank.value, drop_last != 0};
    if (split.batch_size < 1 || split.world_size < 1 || split.rank >= split.world_size ||
        split.batch_size > (1ull << 62) / split.world_size) {
        return PyErr_Format(PyExc_ValueError, "there is no rank %zu of %zu with batches of %zu", split.rank,
                            split.world_size, split.batch_size);
    }
    if (py_array_acquire(order, "order", SAMPLES, 1, false, &view) < 0) return NULL;
    int64_t count = (int64_t)gather_share(&split, NULL, (uint64_t)view.elems, NULL);
    result = py_array_new(ARRAY_I64, 1, &count);
    if (result != NULL) (void)gather_share(&split, view.data, (uint64_t)view.elems, py_array_data(result));
    py_array_release(&view);
    return result;
}

static PyMethodDef functions[] = {
    {"loader_shuffled", shuffled, METH_VARARGS,
     "loader_shuffled(samples, seed, epoch)\n--\n\nThe samples in the random order of an epoch, int64."},
    {"loader_share", share, METH_VARARGS,
     "loader_share(order, batch_size, world_size, rank, drop_last)\n--\n\n"
     "The samples of an epoch that a rank's batches take, in order, int64."},
    {NULL, NULL, 0, NULL},
};

int py_loader_order_add(PyObject *module) { return PyModule_AddFunctions(module, functions); }
