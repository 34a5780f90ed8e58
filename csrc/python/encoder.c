/* The type Encoder: turns rows of values into packed chunks, in a process that does not write the file itself. */
#include <stdbool.h>

#include "base/memory.h"
#include "beton/writer.h"
#include "python/arguments.h"
#include "python/beton_values.h"
#include "python/spec.h"

typedef struct EncoderObject {
    PyObject_HEAD;
    BetonSchema *schema;    /* owned */
    BetonFieldSpec *fields; /* owned */
    BetonEncoder *encoder;  /* owned */
    ValueBatch batch;
    bool busy;
} EncoderObject;

typedef struct EncoderSettings {
    uint64_t seed;
    int threads;
    bool skip_bad;
} EncoderSettings;

static const SpecTable settings_table = {"Encoder",
                                         {SPEC_MEMBER(EncoderSettings, seed), SPEC_MEMBER(EncoderSettings, threads),
                                          SPEC_MEMBER(EncoderSettings, skip_bad)}};

static PyObject *encoder_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    PyObject *specs;
    EncoderSettings settings;
    if (!PyArg_ParseTuple(args, "O:Encoder", &specs)) return NULL;
    if (py_spec_fill(&settings_table, kwargs, NULL, &settings) < 0) return NULL;
    EncoderObject *self = (EncoderObject *)type->tp_alloc(type, 0);
    if (self == NULL) return NULL;
    ModuleState *state = py_module_state_of_type(type);
    if (py_beton_schema_of(state, specs, &self->schema, &self->fields, &self->batch.num_fields) < 0) {
        Py_DECREF(self);
        return NULL;
    }
    self->batch.fields = self->fields;
    Status status =
        beton_encoder_create(self->schema, settings.seed, settings.threads, settings.skip_bad, &self->encoder);
    if (status != STATUS_OK) {
        Py_DECREF(self);
        return py_errors_raise(state, status);
    }
    return (PyObject *)self;
}

static void encoder_dealloc(EncoderObject *self) {
    beton_encoder_destroy(self->encoder);
    py_value_batch_fini(&self->batch);
    memory_free(self->fields);
    beton_schema_destroy(self->schema);
    py_module_free_object(self);
}

static PyObject *encoder_run_batch(EncoderObject *self, uint64_t first_index) {
    const BetonChunk *chunk = NULL;
    Status status;
    Py_BEGIN_ALLOW_THREADS;
    status = beton_encoder_run(self->encoder, first_index, self->batch.values, self->batch.count, &chunk);
    Py_END_ALLOW_THREADS;
    if (status != STATUS_OK) return py_errors_raise(py_module_state_of(self), status);
    PyObject *packed = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)beton_chunk_packed_bytes(chunk));
    if (packed == NULL) return NULL;
    unsigned char *bytes = (unsigned char *)PyBytes_AS_STRING(packed);
    Py_BEGIN_ALLOW_THREADS;
    beton_chunk_pack(chunk, bytes);
    Py_END_ALLOW_THREADS;
    size_t count;
    const BetonSkip *skips = beton_chunk_skips(chunk, &count);
    return Py_BuildValue("(NN)", packed, py_beton_skips_list(skips, count));
}

static PyObject *encoder_encode(EncoderObject *self, PyObject *args) {
    ArgumentsNumber first = {"first_index", UINT64_MAX, 0};
    PyObject *rows, *result = NULL;
    if (!PyArg_ParseTuple(args, "O&O:encode", py_arguments_number, &first, &rows)) return NULL;
    if (self->busy) return PyErr_Format(PyExc_RuntimeError, "another thread is using this encoder");
    self->busy = true;
    if (py_value_batch_from_rows(&self->batch, rows) == 0) result = encoder_run_batch(self, first.value);
    py_value_batch_clear(&self->batch);
    self->busy = false;
    return result;
}

static PyMethodDef methods[] = {
    {"encode", (PyCFunction)encoder_encode, METH_VARARGS,
     "encode(first_index, rows)\n--\n\nEncode a list of rows as Writer.append takes them. Returns (bytes for "
     "Writer.append_packed, samples left out: [(index, field, reason)])."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_new, encoder_new},
    {Py_tp_dealloc, encoder_dealloc},
    {Py_tp_methods, methods},
    {Py_tp_doc, "Encodes samples of a .beton file for a Writer in another process."},
    {0, NULL},
};

int py_encoder_add(PyObject *module) {
    return py_module_add_type(module, "_cgxffcv.Encoder", sizeof(EncoderObject), 0, slots, NULL);
}
