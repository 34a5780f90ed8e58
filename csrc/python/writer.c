/* The type Writer: a file being written. Values become chunks and chunks become the file with the GIL released. */
#include "beton/writer.h"

#include <stdbool.h>

#include "base/memory.h"
#include "python/arguments.h"
#include "python/beton_values.h"
#include "python/spec.h"

typedef struct WriterObject {
    PyObject_HEAD;
    BetonSchema *schema;    /* owned */
    BetonFieldSpec *fields; /* owned */
    BetonEncoder *encoder;  /* owned */
    BetonWriter *writer;    /* owned; NULL once committed, aborted or failed */
    ValueBatch batch;
    bool busy; /* a call of another thread is in progress, without the GIL */
} WriterObject;

typedef struct WriterSettings {
    BetonWriterOptions options;
    uint64_t seed;
    bool skip_bad;
} WriterSettings;

static const SpecTable settings_table = {"Writer",
                                         {SPEC_KEY(WriterSettings, options.page_size, "page_size"),
                                          SPEC_KEY(WriterSettings, options.small_pages, "small_pages"),
                                          SPEC_KEY(WriterSettings, options.checksums, "checksums"),
                                          SPEC_KEY(WriterSettings, options.durable, "durable"),
                                          SPEC_KEY(WriterSettings, options.expected_samples, "expected_samples"),
                                          SPEC_KEY(WriterSettings, options.threads, "threads"),
                                          SPEC_MEMBER(WriterSettings, seed), SPEC_MEMBER(WriterSettings, skip_bad)}};

static int writer_fill(WriterObject *self, const char *path, PyObject *specs, const WriterSettings *settings) {
    ModuleState *state = py_module_state_of(self);
    if (py_beton_schema_of(state, specs, &self->schema, &self->fields, &self->batch.num_fields) < 0) return -1;
    self->batch.fields = self->fields;
    Status status = beton_encoder_create(self->schema, settings->seed, settings->options.threads, settings->skip_bad,
                                         &self->encoder);
    if (status == STATUS_OK) status = beton_writer_create(path, self->schema, &settings->options, &self->writer);
    return py_errors_check(state, status);
}

static PyObject *writer_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    PyObject *path, *specs;
    WriterSettings settings;
    WriterObject *self = NULL;
    if (!PyArg_ParseTuple(args, "O&O:Writer", PyUnicode_FSConverter, &path, &specs)) return NULL;
    if (py_spec_fill(&settings_table, kwargs, NULL, &settings) == 0) self = (WriterObject *)type->tp_alloc(type, 0);
    if (self != NULL && writer_fill(self, PyBytes_AS_STRING(path), specs, &settings) < 0) Py_CLEAR(self);
    Py_DECREF(path);
    return (PyObject *)self;
}

static void writer_dealloc(WriterObject *self) {
    beton_writer_abort(self->writer);
    beton_encoder_destroy(self->encoder);
    py_value_batch_fini(&self->batch);
    memory_free(self->fields);
    beton_schema_destroy(self->schema);
    py_module_free_object(self);
}

/* -1 with an exception set if the writer cannot be used now. */
static int writer_enter(WriterObject *self) {
    if (self->writer == NULL) {
        return PY_REFUSE(PyExc_ValueError, "this file is finished or abandoned; nothing can be added to it");
    }
    if (self->busy) return PY_REFUSE(PyExc_RuntimeError, "another thread is using this writer");
    self->busy = true;
    return 0;
}

/* Encodes and appends the batch; returns its list of skips, or NULL with an exception set. */
static PyObject *writer_run_batch(WriterObject *self, uint64_t first_index) {
    const BetonChunk *chunk = NULL;
    Status status;
    Py_BEGIN_ALLOW_THREADS;
    status = beton_encoder_run(self->encoder, first_index, self->batch.values, self->batch.count, &chunk);
    if (status == STATUS_OK) status = beton_writer_append(self->writer, chunk);
    Py_END_ALLOW_THREADS;
    if (status != STATUS_OK) return py_errors_raise(py_module_state_of(self), status);
    size_t count;
    const BetonSkip *skips = beton_chunk_skips(chunk, &count);
    return py_beton_skips_list(skips, count);
}

static PyObject *writer_append(WriterObject *self, PyObject *args) {
    ArgumentsNumber first = {"first_index", UINT64_MAX, 0};
    PyObject *rows, *result = NULL;
    if (!PyArg_ParseTuple(args, "O&O:append", py_arguments_number, &first, &rows) || writer_enter(self) < 0)
        return NULL;
    if (py_value_batch_from_rows(&self->batch, rows) == 0) result = writer_run_batch(self, first.value);
    py_value_batch_clear(&self->batch);
    self->busy = false;
    return result;
}

static PyObject *append_arrays(WriterObject *self, PyObject *args) {
    ArgumentsNumber first = {"first_index", UINT64_MAX, 0};
    Py_ssize_t begin, end;
    PyObject *columns, *result = NULL;
    if (!PyArg_ParseTuple(args, "O&Onn:append_arrays", py_arguments_number, &first, &columns, &begin, &end) ||
        writer_enter(self) < 0) {
        return NULL;
    }
    if (py_value_batch_from_arrays(&self->batch, columns, begin, end) == 0)
        result = writer_run_batch(self, first.value);
    py_value_batch_clear(&self->batch);
    self->busy = false;
    return result;
}

static PyObject *append_packed(WriterObject *self, PyObject *object) {
    Py_buffer packed;
    Status status;
    if (PyObject_GetBuffer(object, &packed, PyBUF_SIMPLE) < 0) return NULL;
    if (writer_enter(self) < 0) {
        PyBuffer_Release(&packed);
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS;
    status = beton_writer_append_packed(self->writer, packed.buf, (uint64_t)packed.len);
    Py_END_ALLOW_THREADS;
    PyBuffer_Release(&packed);
    self->busy = false;
    return py_errors_none(py_module_state_of(self), status);
}

static PyObject *commit(WriterObject *self, PyObject *Py_UNUSED(unused)) {
    BetonWriterResult result;
    Status status;
    if (writer_enter(self) < 0) return NULL;
    BetonWriter *writer = self->writer;
    self->writer = NULL;
    Py_BEGIN_ALLOW_THREADS;
    status = beton_writer_commit(writer, &result);
    Py_END_ALLOW_THREADS;
    self->busy = false;
    if (status != STATUS_OK) return py_errors_raise(py_module_state_of(self), status);
    return Py_BuildValue("(KKKi)", (unsigned long long)result.num_samples, (unsigned long long)result.num_bytes,
                         (unsigned long long)result.page_size, result.unsynced);
}

static PyObject *abort_file(WriterObject *self, PyObject *Py_UNUSED(unused)) {
    if (self->busy) return PyErr_Format(PyExc_RuntimeError, "another thread is using this writer");
    beton_writer_abort(self->writer);
    self->writer = NULL;
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"append", (PyCFunction)writer_append, METH_VARARGS,
     "append(first_index, rows)\n--\n\n"
     "Encode and append a list of rows, each a tuple of one value per field (or a list [field index or -1, reason] "
     "for a sample to refuse). Returns the samples left out: [(index, field, reason)]."},
    {"append_arrays", (PyCFunction)append_arrays, METH_VARARGS,
     "append_arrays(first_index, columns, begin, end)\n--\n\n"
     "Append rows [begin, end) of one C-contiguous array per field. Returns as append."},
    {"append_packed", (PyCFunction)append_packed, METH_O,
     "append_packed(data)\n--\n\nAppend what Encoder.encode made with the same fields."},
    {"commit", (PyCFunction)commit, METH_NOARGS,
     "commit()\n--\n\n"
     "Complete the file and move it into place. Returns (num_samples, num_bytes, page_size, unsynced), the last as "
     "in write_file."},
    {"abort", (PyCFunction)abort_file, METH_NOARGS, "abort()\n--\n\nAbandon the file; nothing of it remains."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_new, writer_new},
    {Py_tp_dealloc, writer_dealloc},
    {Py_tp_methods, methods},
    {Py_tp_doc, "A .beton file being written. Use cgxffcv.DatasetWriter."},
    {0, NULL},
};

int py_writer_add(PyObject *module) {
    return py_module_add_type(module, "_cgxffcv.Writer", sizeof(WriterObject), 0, slots, NULL);
}
