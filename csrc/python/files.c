/* write_file: writes a whole file at once, for everything written from Python that must never be seen half written. */
#include "base/atomic_file.h"

#include <stdbool.h>

#include "python/arguments.h"

#define MAX_PIECES (1 << 20)

/* The pieces' buffers; all are held until fini. */
typedef struct Pieces {
    Py_buffer *buffers; /* owned */
    Py_ssize_t count;
} Pieces;

static void pieces_fini(Pieces *pieces) {
    for (Py_ssize_t i = 0; i < pieces->count; i++) PyBuffer_Release(&pieces->buffers[i]);
    PyMem_Free(pieces->buffers);
}

static int pieces_init(Pieces *pieces, PyObject *sequence) {
    *pieces = (Pieces){NULL, 0};
    PyObject *items = py_arguments_collect(sequence, "pieces", MAX_PIECES);
    if (items == NULL) return -1;
    Py_ssize_t count = PyTuple_GET_SIZE(items);
    pieces->buffers = PyMem_Calloc((size_t)count + 1, sizeof *pieces->buffers);
    if (pieces->buffers == NULL) PyErr_NoMemory();
    for (Py_ssize_t i = 0; i < count && !PyErr_Occurred(); i++) {
        int result = PyObject_GetBuffer(PyTuple_GET_ITEM(items, i), &pieces->buffers[i], PyBUF_SIMPLE);
        if (result == 0) pieces->count++;
    }
    Py_DECREF(items);
    if (!PyErr_Occurred()) return 0;
    pieces_fini(pieces);
    return -1;
}

static Status write_pieces(const char *path, const Pieces *pieces, bool durable, int *unsynced) {
    Status status = STATUS_OK;
    AtomicFile *file = NULL;
    uint64_t at = 0;
    TRY_GOTO(atomic_file_create(path, &file));
    for (Py_ssize_t i = 0; i < pieces->count; i++) {
        TRY_GOTO(atomic_file_write_at(file, pieces->buffers[i].buf, (size_t)pieces->buffers[i].len, at));
        at += (uint64_t)pieces->buffers[i].len;
    }
    *unsynced = 0;
    status = durable ? atomic_file_commit(file, unsynced) : atomic_file_commit_unsynced(file);
    file = NULL;
done:
    atomic_file_abort(file);
    return status;
}

static PyObject *write_file(PyObject *module, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"path", "pieces", "durable", NULL};
    PyObject *path, *sequence;
    Pieces pieces;
    Status status = STATUS_OK;
    int durable = 1, unsynced = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O&O|p:write_file", names, PyUnicode_FSConverter, &path, &sequence,
                                     &durable)) {
        return NULL;
    }
    int result = pieces_init(&pieces, sequence);
    if (result == 0) {
        Py_BEGIN_ALLOW_THREADS;
        status = write_pieces(PyBytes_AS_STRING(path), &pieces, durable, &unsynced);
        Py_END_ALLOW_THREADS;
        pieces_fini(&pieces);
    }
    Py_DECREF(path);
    if (result < 0) return NULL;
    return status == STATUS_OK ? PyLong_FromLong(unsynced) : py_errors_raise(py_module_state(module), status);
}

static PyMethodDef functions[] = {
    {"write_file", PY_KEYWORDS(write_file),
     "write_file(path, pieces, durable=True)\n--\n\n"
     "Write the bytes of `pieces`, one after another, as the file `path`: completely or not at all, synced if "
     "`durable`. Symbolic links are followed; OSError if a regular file cannot be there. Returns 0, or the error "
     "number with which syncing the folder failed once the new file was in place."},
    {NULL, NULL, 0, NULL},
};

int py_files_add(PyObject *module) { return PyModule_AddFunctions(module, functions); }
