/* Conversion only: no file, no thread. A value that cannot be converted makes its sample a refused one, with the
 * reason; the encoder then applies the error policy. */
#include "python/beton_values.h"

#include <string.h>

#include "base/bytes.h"
#include "base/checked.h"
#include "base/memory.h"
#include "python/arguments.h"
#include "python/results.h"
#include "python/spec.h"

#define MAX_FIELDS UINT16_MAX /* more than any file has */

static int no_memory(void) {
    PyErr_NoMemory();
    return -1;
}

/* The kinds by consecutive numbers; the last has another number in BetonKind. */
static const char *kind_name(int index) {
    if (index <= BETON_TENSOR) return beton_kind_name((BetonKind)index);
    return index == BETON_TENSOR + 1 ? beton_kind_name(BETON_CUSTOM) : NULL;
}

static int parse_field_kind(PyObject *value, void *kind) {
    int index = py_spec_name(value, "a field's kind", kind_name);
    *(BetonKind *)kind = index <= BETON_TENSOR ? (BetonKind)index : BETON_CUSTOM;
    return index < 0 ? -1 : 0;
}

static int parse_field_side(PyObject *item, void *side) {
    return py_arguments_whole(item, "a field's shape", 0, UINT64_MAX, side);
}

static int parse_field_shape(PyObject *shape, void *out) {
    BetonFieldSpec *field = out;
    field->ndim = py_arguments_fill(shape, "dimensions of a field's shape", 0, BETON_MAX_DIMS, parse_field_side,
                                    field->shape, sizeof *field->shape);
    return field->ndim < 0 ? -1 : 0;
}

static int parse_header_arguments(PyObject *object, void *arguments) {
    Py_buffer buffer;
    if (PyObject_GetBuffer(object, &buffer, PyBUF_SIMPLE) < 0) return -1;
    bool fits = buffer.len <= BETON_ARGUMENT_BYTES;
    if (fits) {
        memcpy(arguments, buffer.buf, (size_t)buffer.len);
    } else {
        PyErr_Format(PyExc_ValueError, "a field has %zd argument bytes; at most %d fit", buffer.len,
                     BETON_ARGUMENT_BYTES);
    }
    PyBuffer_Release(&buffer);
    return fits ? 0 : -1;
}

#define CUSTOM_MEMBERS(type, of)                                                                                       \
    SPEC_KEY(type, of record_bytes, "record_bytes"), SPEC_KEY(type, of record_alignment, "record_alignment"),          \
        SPEC_KEY(type, of pointer_offset, "pointer_offset"), SPEC_KEY(type, of size_offset, "size_offset")

static const SpecTable custom_table = {"custom field", {SPEC_MEMBER(BetonCustom, name), CUSTOM_MEMBERS(BetonCustom, )}};

static const SpecTable field_table = {
    "field",
    {SPEC_PARSE(BetonFieldSpec, kind, parse_field_kind), SPEC_MEMBER(BetonFieldSpec, name),
     SPEC_ENUM(BetonFieldSpec, write_mode, beton_write_mode_name), SPEC_MEMBER(BetonFieldSpec, max_resolution),
     SPEC_MEMBER(BetonFieldSpec, smart_threshold), SPEC_MEMBER(BetonFieldSpec, jpeg_quality),
     SPEC_MEMBER(BetonFieldSpec, compress_probability), SPEC_ENUM(BetonFieldSpec, dtype, beton_dtype_name),
     SPEC_WHOLE("shape", parse_field_shape), CUSTOM_MEMBERS(BetonFieldSpec, custom.),
     SPEC_PARSE(BetonFieldSpec, arguments, parse_header_arguments)}};

static int parse_custom(PyObject *item, void *custom) { return py_spec_fill(&custom_table, item, NULL, custom); }
static int parse_field(PyObject *item, void *field) { return py_spec_fill(&field_table, item, NULL, field); }

/* A new array with an element for each item; NULL with an exception set. */
static void *parse_all(PyObject *specs, const char *argument, int (*parse)(PyObject *, void *), size_t bytes,
                       size_t *count) {
    PyObject *items = py_arguments_tuple(specs, argument, 0, MAX_FIELDS);
    char *own = NULL;
    if (items == NULL) return NULL;
    *count = (size_t)PyTuple_GET_SIZE(items);
    if (memory_calloc(*count + 1, bytes, &own) != STATUS_OK) {
        no_memory();
    } else if (py_arguments_fill(items, argument, 0, MAX_FIELDS, parse, own, bytes) < 0) {
        memory_free(own);
        own = NULL;
    }
    Py_DECREF(items);
    return own;
}

int py_beton_schema_of(ModuleState *state, PyObject *specs, BetonSchema **out, BetonFieldSpec **fields, size_t *count) {
    BetonFieldSpec *own = parse_all(specs, "fields", parse_field, sizeof *own, count);
    if (own == NULL) return -1;
    Status status = beton_schema_create(own, *count, out);
    if (status == STATUS_OK) {
        *fields = own;
        return 0;
    }
    py_errors_raise(state, status);
    memory_free(own);
    return -1;
}

int py_beton_customs_of(PyObject *specs, BetonCustom **out, size_t *count) {
    *out = parse_all(specs, "custom fields", parse_custom, sizeof **out, count);
    return *out == NULL ? -1 : 0;
}

/* Room for `count` rows; the values are zeroed. */
static int values_start(ValueBatch *batch, size_t count) {
    if (batch->objects == NULL && (batch->objects = PyList_New(0)) == NULL) return -1;
    const size_t row_bytes = batch->num_fields * sizeof *batch->values;
    if (memory_reserve(&batch->values, &batch->capacity, count, row_bytes) != STATUS_OK) return no_memory();
    memset(batch->values, 0, count * row_bytes);
    batch->count = count;
    return 0;
}

/* A buffer of `object` that is held until the batch is cleared; NULL with an exception set on failure. */
static const Py_buffer *hold_buffer(ValueBatch *batch, PyObject *object, int flags) {
    if (batch->num_buffers == batch->buffer_capacity) {
        size_t grown = batch->buffer_capacity * 2 + 64;
        if (memory_resize(&batch->buffers, batch->num_buffers * sizeof *batch->buffers,
                          grown * sizeof *batch->buffers) != STATUS_OK) {
            no_memory();
            return NULL;
        }
        batch->buffer_capacity = grown;
    }
    Py_buffer *buffer = &batch->buffers[batch->num_buffers];
    if (PyObject_GetBuffer(object, buffer, flags) < 0) return NULL;
    batch->num_buffers++;
    return buffer;
}

static bool is_byte_format(const char *format) {
    return format == NULL || strcmp(format, "B") == 0 || strcmp(format, "b") == 0 || strcmp(format, "c") == 0 ||
           strcmp(format, "<B") == 0;
}

static int values_pixels_of(const Py_buffer *buffer, BetonValue *value) {
    const Py_ssize_t *shape = buffer->shape, *strides = buffer->strides;
    if (shape[2] != 3 || shape[0] < 1 || shape[1] < 1 || shape[0] > UINT16_MAX || shape[1] > UINT16_MAX) {
        return PY_REFUSE(PyExc_ValueError,
                         "an image must have shape (height, width, 3) with sides of 1 to 65535, not (%zd, %zd, %zd)",
                         shape[0], shape[1], shape[2]);
    }
    if (strides[2] != 1 || strides[1] != 3 || (shape[0] > 1 && strides[0] < shape[1] * 3)) {
        return PY_REFUSE(PyExc_ValueError, "an image's rows must be contiguous; numpy.ascontiguousarray makes them so");
    }
    *value = (BetonValue){.source = BETON_SOURCE_PIXELS,
                          .data = buffer->buf,
                          .width = (uint32_t)shape[1],
                          .height = (uint32_t)shape[0],
                          .stride = shape[0] > 1 ? (size_t)strides[0] : (size_t)shape[1] * 3};
    return 0;
}

static int image_of(ValueBatch *batch, PyObject *object, BetonValue *value) {
    const Py_buffer *buffer = hold_buffer(batch, object, PyBUF_STRIDES | PyBUF_FORMAT);
    if (buffer == NULL) return -1;
    if (is_byte_format(buffer->format) && buffer->ndim == 3) return values_pixels_of(buffer, value);
    if (is_byte_format(buffer->format) && buffer->ndim == 1 && PyBuffer_IsContiguous(buffer, 'C')) {
        *value = (BetonValue){.source = BETON_SOURCE_JPEG, .data = buffer->buf, .size = (uint64_t)buffer->len};
        return 0;
    }
    return PY_REFUSE(PyExc_TypeError,
                     "an image must be uint8 of shape (height, width, 3), not of format '%s' with %d axes",
                     buffer->format == NULL ? "B" : buffer->format, buffer->ndim);
}

static int take_bytes(ValueBatch *batch, PyObject *object, BetonValue *value) {
    const Py_buffer *buffer = hold_buffer(batch, object, PyBUF_SIMPLE);
    if (buffer == NULL) return -1;
    value->source = BETON_SOURCE_BYTES;
    value->data = buffer->buf;
    value->size = (uint64_t)buffer->len;
    return 0;
}

/* (record, data) */
static int custom_of(ValueBatch *batch, const BetonFieldSpec *spec, PyObject *object, BetonValue *value) {
    PyObject *record, *data;
    if (py_arguments_unpack(object, "OO;a custom field's value is a tuple (record, data)", &record, &data) < 0)
        return -1;
    if (data != Py_None && take_bytes(batch, data, value) < 0) return -1;
    const Py_buffer *buffer = hold_buffer(batch, record, PyBUF_SIMPLE);
    if (buffer == NULL) return -1;
    if (buffer->len != (Py_ssize_t)spec->custom.record_bytes) {
        return PY_REFUSE(PyExc_ValueError, "a record of %zd bytes, but the field's records have %u", buffer->len,
                         spec->custom.record_bytes);
    }
    value->source = BETON_SOURCE_BYTES;
    value->record = buffer->buf;
    return 0;
}

static int take_value(ValueBatch *batch, const BetonFieldSpec *spec, PyObject *object, BetonValue *value) {
    switch (spec->kind) {
    case BETON_INT:
        value->integer = PyLong_AsLongLong(object);
        return PyErr_Occurred() ? -1 : 0;
    case BETON_FLOAT:
        value->number = PyFloat_AsDouble(object);
        return PyErr_Occurred() ? -1 : 0;
    case BETON_IMAGE:
        return image_of(batch, object, value);
    case BETON_CUSTOM:
        return custom_of(batch, spec, object, value);
    default:
        return take_bytes(batch, object, value);
    }
}

/* `field` is the one to blame, or -1. */
static int refuse(ValueBatch *batch, BetonValue *value, PyObject *reason, Py_ssize_t field) {
    const char *text = reason == NULL ? NULL : PyUnicode_AsUTF8(reason);
    if (text == NULL || PyList_Append(batch->objects, reason) < 0) return -1;
    *value = (BetonValue){.source = BETON_SOURCE_BAD, .data = text, .integer = field};
    return 0;
}

/* Turns the exception in flight into a refused value, unless it is not about the value. */
static int refuse_exception(ValueBatch *batch, BetonValue *value, size_t field) {
    if (!PyErr_ExceptionMatches(PyExc_ValueError) && !PyErr_ExceptionMatches(PyExc_TypeError) &&
        !PyErr_ExceptionMatches(PyExc_OverflowError) && !PyErr_ExceptionMatches(PyExc_BufferError)) {
        return -1;
    }
    PyObject *type, *exception, *traceback;
    PyErr_Fetch(&type, &exception, &traceback);
    PyErr_NormalizeException(&type, &exception, &traceback);
    PyObject *text = exception == NULL ? NULL : PyObject_Str(exception);
    int result = refuse(batch, value, text, (Py_ssize_t)field);
    Py_XDECREF(text);
    Py_XDECREF(type);
    Py_XDECREF(exception);
    Py_XDECREF(traceback);
    return result;
}

/* A list [field index or -1, reason]. */
static int refused_row(ValueBatch *batch, PyObject *row, BetonValue *values) {
    Py_ssize_t field;
    PyObject *reason, *tuple = py_arguments_tuple(row, "entries of a refused sample", 2, 2);
    if (tuple == NULL) return -1;
    int result = py_arguments_unpack(tuple, "nU;a refused sample is [field index or -1, reason]", &field, &reason);
    if (result == 0) result = refuse(batch, values, reason, (size_t)field < batch->num_fields ? field : -1);
    Py_DECREF(tuple);
    return result;
}

static int take_row(ValueBatch *batch, PyObject *row, BetonValue *values) {
    if (PyList_Check(row)) return refused_row(batch, row, values);
    if (!PyTuple_Check(row) || (size_t)PyTuple_GET_SIZE(row) != batch->num_fields) {
        return PY_REFUSE(PyExc_ValueError, "a row must be a tuple of %zu values", batch->num_fields);
    }
    for (size_t i = 0; i < batch->num_fields; i++) {
        if (take_value(batch, &batch->fields[i], PyTuple_GET_ITEM(row, (Py_ssize_t)i), &values[i]) == 0) continue;
        if (refuse_exception(batch, &values[i], i) < 0) return -1;
    }
    return 0;
}

int py_value_batch_from_rows(ValueBatch *batch, PyObject *rows) {
    if (!PyList_Check(rows)) return PY_REFUSE(PyExc_TypeError, "rows must be a list");
    PyObject *tuple = py_arguments_tuple(rows, "rows", 0, PY_SSIZE_T_MAX);
    if (tuple == NULL) return -1;
    size_t count = (size_t)PyTuple_GET_SIZE(tuple);
    int result = values_start(batch, count);
    for (size_t i = 0; i < count && result == 0; i++) {
        result = take_row(batch, PyTuple_GET_ITEM(tuple, (Py_ssize_t)i), batch->values + i * batch->num_fields);
    }
    Py_DECREF(tuple);
    return result;
}

static int check_column(const BetonFieldSpec *spec, const Py_buffer *buffer, Py_ssize_t end) {
    bool image = spec->kind == BETON_IMAGE;
    int axes = image ? 4 : spec->kind == BETON_INT || spec->kind == BETON_FLOAT ? 1 : spec->ndim + 1;
    if (buffer->ndim != axes || buffer->shape[0] < end) {
        return PY_REFUSE(PyExc_ValueError,
                         "field '%s': an array of %d axes and at least %zd rows was expected, not one of %d axes",
                         spec->name, axes, end, buffer->ndim);
    }
    Py_ssize_t wanted = 8;
    if (image)
        wanted = 1;
    else if (axes > 1)
        wanted = (Py_ssize_t)beton_dtype_bytes(spec->dtype);
    if (buffer->itemsize != wanted) {
        return PY_REFUSE(PyExc_TypeError, "field '%s': elements of %zd bytes where %zd were expected", spec->name,
                         buffer->itemsize, wanted);
    }
    return 0;
}

/* The buffer of a column that has rows up to `end`. */
static int hold_column(ValueBatch *batch, size_t field, PyObject *object, Py_ssize_t end) {
    const BetonFieldSpec *spec = &batch->fields[field];
    if (spec->kind == BETON_BYTES || spec->kind == BETON_JSON || spec->kind == BETON_CUSTOM) {
        return PY_REFUSE(PyExc_TypeError, "field '%s' cannot be given as one array", spec->name);
    }
    const Py_buffer *buffer = hold_buffer(batch, object, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT);
    return buffer == NULL ? -1 : check_column(spec, buffer, end);
}

/* One column's values for all rows of the batch. */
static int take_column(ValueBatch *batch, size_t field, Py_ssize_t begin, Py_ssize_t end) {
    const BetonFieldSpec *spec = &batch->fields[field];
    const Py_buffer *buffer = &batch->buffers[field];
    BetonValue first = {.source = spec->kind == BETON_IMAGE ? BETON_SOURCE_PIXELS : BETON_SOURCE_BYTES};
    if (spec->kind == BETON_IMAGE) {
        Py_buffer one = *buffer;
        one.ndim = 3;
        one.shape = buffer->shape + 1;
        one.strides = buffer->strides + 1;
        if (values_pixels_of(&one, &first) < 0) return -1;
    }
    Py_ssize_t stride = buffer->strides[0];
    first.size = (uint64_t)stride;
    const char *at = (const char *)buffer->buf + begin * stride;
    BetonValue *value = batch->values + field;
    for (Py_ssize_t i = begin; i < end; i++, at += stride, value += batch->num_fields) {
        *value = first;
        value->data = at;
        if (spec->kind == BETON_INT) *value = (BetonValue){.integer = load_i64(at)};
        if (spec->kind == BETON_FLOAT) *value = (BetonValue){.number = load_f64(at)};
    }
    return 0;
}

int py_value_batch_from_arrays(ValueBatch *batch, PyObject *columns, Py_ssize_t begin, Py_ssize_t end) {
    if (!PyTuple_Check(columns) || (size_t)PyTuple_GET_SIZE(columns) != batch->num_fields || begin < 0 || end < begin) {
        return PY_REFUSE(PyExc_ValueError, "a tuple of %zu arrays and a range of rows were expected",
                         batch->num_fields);
    }
    for (size_t i = 0; i < batch->num_fields; i++) {
        if (hold_column(batch, i, PyTuple_GET_ITEM(columns, (Py_ssize_t)i), end) < 0) return -1;
    }
    if (values_start(batch, (size_t)(end - begin)) < 0) return -1; /* there are that many rows */
    for (size_t i = 0; i < batch->num_fields; i++) {
        if (take_column(batch, i, begin, end) < 0) return -1;
    }
    return 0;
}

void py_value_batch_clear(ValueBatch *batch) {
    for (size_t i = 0; i < batch->num_buffers; i++) PyBuffer_Release(&batch->buffers[i]);
    batch->num_buffers = 0;
    batch->count = 0;
    Py_CLEAR(batch->objects);
}

void py_value_batch_fini(ValueBatch *batch) {
    py_value_batch_clear(batch);
    memory_free(batch->buffers);
    memory_free(batch->values);
    *batch = (ValueBatch){0};
}

PyObject *py_beton_skips_list(const BetonSkip *skips, size_t count) {
    PyObject *list = PyList_New(0);
    for (size_t i = 0; list != NULL && i < count; i++) {
        PyObject *reason = PyUnicode_DecodeFSDefault(skips[i].reason);
        list =
            py_results_append(list, Py_BuildValue("(KsN)", (unsigned long long)skips[i].index, skips[i].field, reason));
    }
    return list;
}
