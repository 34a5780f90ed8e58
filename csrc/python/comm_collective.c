/* The collectives of the type Comm: bytes, buffers, and arrays, whose methods are written in Python. */
#include <string.h>

#include "base/memory.h"
#include "python/comm.h"
#include "python/results.h"

static Comm *acquire_self(PyObject *self) { return py_comm_object_acquire(py_module_state_of(self), self, "comm"); }

/* ---- bytes ---- */

PyObject *py_comm_barrier(PyObject *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"timeout", NULL};
    PyObject *timeout = NULL;
    double seconds;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|O:barrier", names, &timeout)) return NULL;
    if (py_comm_parse_timeout(timeout, "timeout", &seconds) < 0) return NULL;
    Comm *comm = acquire_self(self);
    if (comm == NULL) return NULL;
    Status status;
    Py_BEGIN_ALLOW_THREADS;
    status = comm_begin(comm, "barrier", seconds);
    if (status == STATUS_OK) status = comm_end(comm, comm_barrier(comm));
    Py_END_ALLOW_THREADS;
    py_comm_object_release(self);
    return py_errors_none(py_module_state_of(self), status);
}

/* In place, on a buffer that has the same size everywhere. */
static PyObject *broadcast_buffer(PyObject *self, Comm *comm, PyObject *object, int root, double seconds) {
    Py_buffer view;
    if (PyObject_GetBuffer(object, &view, PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE) < 0) return NULL;
    Status status;
    Py_BEGIN_ALLOW_THREADS;
    status = comm_begin(comm, "broadcast", seconds);
    if (status == STATUS_OK) status = comm_end(comm, comm_broadcast(comm, root, view.buf, (size_t)view.len));
    Py_END_ALLOW_THREADS;
    PyBuffer_Release(&view);
    return status == STATUS_OK ? Py_NewRef(object) : py_errors_raise(py_module_state_of(self), status);
}

typedef struct Blob {
    unsigned char *data; /* owned */
    uint64_t bytes;
} Blob;

static Status broadcast_blob(Comm *comm, int root, Blob *blob) {
    TRY(comm_broadcast(comm, root, &blob->bytes, sizeof blob->bytes));
    if (comm_rank(comm) != root) TRY(memory_alloc((size_t)blob->bytes, 1, &blob->data));
    return comm_broadcast(comm, root, blob->data, (size_t)blob->bytes);
}

/* The root's bytes, whose size the others do not know. */
static PyObject *broadcast_bytes(PyObject *self, Comm *comm, PyObject *object, int root, double seconds) {
    Blob blob = {0};
    bool is_root = comm_rank(comm) == root;
    if (is_root) {
        blob.data = (unsigned char *)PyBytes_AS_STRING(object);
        blob.bytes = (uint64_t)PyBytes_GET_SIZE(object);
    }
    Status status;
    Py_BEGIN_ALLOW_THREADS;
    status = comm_begin(comm, "broadcast of bytes", seconds);
    if (status == STATUS_OK) status = comm_end(comm, broadcast_blob(comm, root, &blob));
    Py_END_ALLOW_THREADS;
    if (is_root) return status == STATUS_OK ? Py_NewRef(object) : py_errors_raise(py_module_state_of(self), status);
    PyObject *result = status == STATUS_OK ? PyBytes_FromStringAndSize((const char *)blob.data, (Py_ssize_t)blob.bytes)
                                           : py_errors_raise(py_module_state_of(self), status);
    memory_free(blob.data);
    return result;
}

PyObject *py_comm_broadcast(PyObject *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"data", "root", "timeout", NULL};
    PyObject *data, *timeout = NULL;
    int root = 0;
    double seconds;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|iO:broadcast", names, &data, &root, &timeout)) return NULL;
    if (py_comm_parse_timeout(timeout, "timeout", &seconds) < 0) return NULL;
    Comm *comm = acquire_self(self);
    if (comm == NULL) return NULL;
    PyObject *result = NULL;
    if (root < 0 || root >= comm_size(comm)) {
        PyErr_Format(PyExc_ValueError, "root=%d is not a rank: there are %d", root, comm_size(comm));
    } else if (PyBytes_Check(data) || (data == Py_None && comm_rank(comm) != root)) {
        result = broadcast_bytes(self, comm, data, root, seconds);
    } else {
        result = broadcast_buffer(self, comm, data, root, seconds);
    }
    py_comm_object_release(self);
    return result;
}

typedef struct Gathered {
    int ranks;
    uint64_t most;
    uint64_t *sizes;       /* owned */
    unsigned char *blocks; /* owned: ranks blocks of `most` bytes, then mine */
} Gathered;

/* Sizes first, then everyone's bytes in blocks of the largest size. */
static Status gather_bytes(Comm *comm, const void *mine, uint64_t bytes, Gathered *out) {
    TRY(memory_calloc((size_t)out->ranks, sizeof *out->sizes, &out->sizes));
    TRY(comm_allgather(comm, &bytes, sizeof bytes, out->sizes));
    for (int rank = 0; rank < out->ranks; rank++) {
        if (out->sizes[rank] > out->most) out->most = out->sizes[rank];
    }
    TRY(memory_calloc((size_t)out->ranks + 1, (size_t)out->most, &out->blocks));
    unsigned char *padded = out->blocks + (size_t)out->ranks * out->most;
    if (bytes > 0) memcpy(padded, mine, (size_t)bytes);
    return comm_allgather(comm, padded, (size_t)out->most, out->blocks);
}

static PyObject *list_of_blocks(const Gathered *gathered) {
    PyObject *list = PyList_New(0);
    for (int rank = 0; list != NULL && rank < gathered->ranks; rank++) {
        const char *block = (const char *)gathered->blocks + (size_t)rank * gathered->most;
        list = py_results_append(list, PyBytes_FromStringAndSize(block, (Py_ssize_t)gathered->sizes[rank]));
    }
    return list;
}

PyObject *py_comm_allgather(PyObject *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"data", "timeout", NULL};
    Py_buffer view;
    PyObject *timeout = NULL;
    double seconds;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "y*|O:allgather", names, &view, &timeout)) return NULL;
    Comm *comm = py_comm_parse_timeout(timeout, "timeout", &seconds) < 0 ? NULL : acquire_self(self);
    if (comm == NULL) {
        PyBuffer_Release(&view);
        return NULL;
    }
    Gathered gathered = {.ranks = comm_size(comm)};
    Status status;
    Py_BEGIN_ALLOW_THREADS;
    status = comm_begin(comm, "allgather", seconds);
    if (status == STATUS_OK) status = comm_end(comm, gather_bytes(comm, view.buf, (uint64_t)view.len, &gathered));
    Py_END_ALLOW_THREADS;
    py_comm_object_release(self);
    PyBuffer_Release(&view);
    PyObject *list =
        status == STATUS_OK ? list_of_blocks(&gathered) : py_errors_raise(py_module_state_of(self), status);
    memory_free(gathered.sizes);
    memory_free(gathered.blocks);
    return list;
}

/* ---- arrays ---- */

/* Written in Python, over plans that are kept for the communicator. */
static PyObject *call_arrays(const char *name, PyObject *self, PyObject *args, PyObject *kwargs) {
    PyObject *result = NULL, *module = PyImport_ImportModule("cgxffcv.arrays");
    PyObject *function = module == NULL ? NULL : PyObject_GetAttrString(module, name);
    PyObject *own = Py_BuildValue("(O)", self), *all = own == NULL ? NULL : PySequence_Concat(own, args);
    if (function != NULL && all != NULL) result = PyObject_Call(function, all, kwargs);
    Py_XDECREF(all);
    Py_XDECREF(own);
    Py_XDECREF(function);
    Py_XDECREF(module);
    return result;
}

PyObject *py_comm_allreduce(PyObject *self, PyObject *args, PyObject *kwargs) {
    return call_arrays("reduce", self, args, kwargs);
}

PyObject *py_comm_allreduce_async(PyObject *self, PyObject *args, PyObject *kwargs) {
    return call_arrays("reduce_async", self, args, kwargs);
}

PyObject *py_comm_allreduce_plans(PyObject *self, PyObject *args, PyObject *kwargs) {
    return call_arrays("plans", self, args, kwargs);
}
