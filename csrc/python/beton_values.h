/* Converts Python values to BetonFieldSpec and BetonValue; shared by the types Writer and Encoder. */
#ifndef CGXFFCV_PYTHON_BETON_VALUES_H
#define CGXFFCV_PYTHON_BETON_VALUES_H

#include "beton/writer.h"
#include "python/module.h"

/* From a sequence of dicts, as cgxffcv/fields/base.py makes them; 0, or -1 with an exception set. */
int py_beton_schema_of(ModuleState *state, PyObject *specs, BetonSchema **out, BetonFieldSpec **fields, size_t *count);

/* From a sequence of dicts with the members of a BetonCustom; 0 or -1. */
int py_beton_customs_of(PyObject *specs, BetonCustom **out, size_t *count);

/* Values of a batch of samples, and what must stay alive while they are in use. */
typedef struct ValueBatch {
    const BetonFieldSpec *fields; /* borrowed */
    size_t num_fields;
    BetonValue *values; /* owned, count * num_fields */
    size_t count, capacity;
    Py_buffer *buffers; /* owned, each held */
    size_t num_buffers, buffer_capacity;
    PyObject *objects; /* owned list */
} ValueBatch;

/* Fills the batch from a list of rows: a tuple of one value per field, or, for a sample that is refused, a list [field
 * index or -1, reason]. 0 or -1. */
int py_value_batch_from_rows(ValueBatch *batch, PyObject *rows);

/* Fills the batch from rows [begin, end) of one array per field. 0 or -1. */
int py_value_batch_from_arrays(ValueBatch *batch, PyObject *columns, Py_ssize_t begin, Py_ssize_t end);

/* Releases the values' memory; keeps the batch's own for the next values. */
void py_value_batch_clear(ValueBatch *batch);
void py_value_batch_fini(ValueBatch *batch);

/* Samples left out, as a list of (index, field name, reason); NULL with an exception set on failure. */
PyObject *py_beton_skips_list(const BetonSkip *skips, size_t count);

#endif
