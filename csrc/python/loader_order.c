/* The loader's orders and parts as functions, for which no file need be open. */
#include "loader/order.h"

#include <string.h>

#include "python/array.h"

#define SAMPLES (1u << ARRAY_I64 | 1u << ARRAY_U64)

static PyObject *shuffled(PyObject *module, PyObject *args) {
    PyObject *samples, *result;
    unsigned long long seed;
    unsigned epoch;
    ArrayView view;
    (void)module;
    if (!PyArg_ParseTuple(args, "OKI:shuffled", &samples, &seed, &epoch)) return NULL;
    if (array_acquire(samples, "samples", SAMPLES, 1, false, &view) < 0) return NULL;
    result = array_new(ARRAY_I64, 1, view.shape);
    if (result != NULL) {
        uint64_t *out = array_data(result);
        Py_BEGIN_ALLOW_THREADS;
        if (view.elems > 0) memcpy(out, view.data, (size_t)view.elems * sizeof *out);
        loader_shuffle(out, 0, (uint64_t)view.elems, seed, epoch, LOADER_SHUFFLE_SAMPLES);
        Py_END_ALLOW_THREADS;
    }
    array_release(&view);
    return result;
}

/* The samples of all the rank's batches, one after the other; returns how many, and only counts without `out`. */
static size_t gather_share(const LoaderSplit *split, const uint64_t *order, uint64_t samples, uint64_t *out) {
    size_t count = 0;
    for (uint64_t i = 0; i < loader_split_batches(split, samples); i++) {
        LoaderPart part = loader_split_part(split, samples, i);
        if (out != NULL && part.count > 0) memcpy(out + count, order + part.first, part.count * sizeof *out);
        count += part.count;
    }
    return count;
}

static PyObject *share(PyObject *module, PyObject *args) {
    PyObject *order, *result;
    unsigned long long batch_size, world_size, rank;
    int drop_last;
    ArrayView view;
    (void)module;
    if (!PyArg_ParseTuple(args, "OKKKp:share", &order, &batch_size, &world_size, &rank, &drop_last)) return NULL;
    if (batch_size < 1 || world_size < 1 || rank >= world_size || batch_size > (1ull << 62) / world_size) {
        return PyErr_Format(PyExc_ValueError, "there is no rank %llu of %llu with batches of %llu", rank, world_size,
                            batch_size);
    }
    if (array_acquire(order, "order", SAMPLES, 1, false, &view) < 0) return NULL;
    LoaderSplit split = {batch_size, world_size, rank, drop_last != 0};
    int64_t count = (int64_t)gather_share(&split, NULL, (uint64_t)view.elems, NULL);
    result = array_new(ARRAY_I64, 1, &count);
    if (result != NULL) (void)gather_share(&split, view.data, (uint64_t)view.elems, array_data(result));
    array_release(&view);
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

int loader_order_add(PyObject *module) { return PyModule_AddFunctions(module, functions); }
