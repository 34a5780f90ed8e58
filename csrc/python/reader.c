/* The type BetonFile: an open, validated .beton file. Arrays that view its mapping keep it alive, so it is closed when
 * the last of them and the object itself are gone. */
#include "beton/reader.h"

#include <string.h>

#include "base/memory.h"
#include "image/jpeg.h"
#include "python/arguments.h"
#include "python/array.h"
#include "python/beton_values.h"
#include "python/results.h"

typedef struct FileObject {
    PyObject_HEAD;
    BetonReader *reader; /* owned */
} FileObject;

/* The two lists of types have the same order. */
_Static_assert((int)BETON_DTYPES == (int)ARRAY_TYPES && (int)BETON_BOOL == (int)ARRAY_BOOL &&
                   (int)BETON_I64 == (int)ARRAY_I64 && (int)BETON_F16 == (int)ARRAY_F16 &&
                   (int)BETON_C128 == (int)ARRAY_C128,
               "BetonDtype and ArrayType differ");

static PyObject *file_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"path", "custom", NULL};
    PyObject *path, *specs = NULL;
    BetonCustom *customs = NULL;
    size_t count = 0;
    Status status;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O&|O:BetonFile", names, PyUnicode_FSConverter, &path, &specs)) {
        return NULL;
    }
    FileObject *self = NULL;
    if (specs != NULL && py_beton_customs_of(specs, &customs, &count) < 0) goto done;
    self = (FileObject *)type->tp_alloc(type, 0);
    if (self == NULL) goto done;
    const char *name = PyBytes_AS_STRING(path);
    Py_BEGIN_ALLOW_THREADS;
    status = beton_reader_open(name, customs, count, &self->reader);
    Py_END_ALLOW_THREADS;
    if (status != STATUS_OK) {
        py_errors_raise(py_module_state_of(self), status);
        Py_CLEAR(self);
    }
done:
    memory_free(customs);
    Py_DECREF(path);
    return (PyObject *)self;
}

static void file_dealloc(FileObject *self) {
    beton_reader_close(self->reader);
    py_module_free_object(self);
}

static PyObject *field_shape(const BetonField *field) {
    PyObject *shape = PyTuple_New(field->ndim);
    for (int i = 0; shape != NULL && i < field->ndim; i++) {
        shape = py_results_put(shape, i, PyLong_FromUnsignedLongLong(field->shape[i]));
    }
    return shape;
}

/* Describes what was read when the file was opened; leaves out the field's arguments, which are in the mapping. */
static PyObject *describe_field(const BetonField *field) {
    bool array = field->kind == BETON_ARRAY || field->kind == BETON_TENSOR, image = field->kind == BETON_IMAGE;
    PyObject *result = Py_BuildValue(
        "{ss ss sI sI sN sK sK}", "name", field->name, "kind", beton_kind_name(field->kind), "record_offset",
        field->record_offset, "record_bytes", field->record_bytes, "has_data", PyBool_FromLong(field->has_data),
        "min_bytes", (unsigned long long)field->min_bytes, "max_bytes", (unsigned long long)field->max_bytes);
    PyObject *more = NULL;
    if (array)
        more = Py_BuildValue("{ss sN}", "dtype", beton_dtype_name((int)field->dtype), "shape", field_shape(field));
    if (image) {
        more = Py_BuildValue("{sI sI sI sI sK sK}", "min_width", field->min_width, "max_width", field->max_width,
                             "min_height", field->min_height, "max_height", field->max_height, "num_jpeg",
                             (unsigned long long)field->num_jpeg, "num_raw", (unsigned long long)field->num_raw);
    }
    if (result != NULL && more != NULL && PyDict_Update(result, more) < 0) Py_CLEAR(result);
    if (more == NULL && (array || image)) Py_CLEAR(result);
    Py_XDECREF(more);
    return result;
}

static PyObject *get_fields(FileObject *self, void *Py_UNUSED(unused)) {
    size_t count = beton_reader_num_fields(self->reader);
    PyObject *list = PyList_New(0);
    for (size_t i = 0; list != NULL && i < count; i++) {
        list = py_results_append(list, describe_field(beton_reader_field(self->reader, i)));
    }
    return list;
}

static PyObject *get_num_samples(FileObject *self, void *Py_UNUSED(unused)) {
    return PyLong_FromUnsignedLongLong(beton_reader_num_samples(self->reader));
}

static PyObject *get_page_size(FileObject *self, void *Py_UNUSED(unused)) {
    return PyLong_FromUnsignedLongLong(beton_reader_page_size(self->reader));
}

static PyObject *get_data_span(FileObject *self, void *Py_UNUSED(unused)) {
    BetonSpan span = beton_reader_data_span(self->reader);
    return Py_BuildValue("(KK)", (unsigned long long)span.begin, (unsigned long long)span.end);
}

static PyObject *get_has_checksums(FileObject *self, void *Py_UNUSED(unused)) {
    return PyBool_FromLong(beton_reader_has_checksums(self->reader));
}

/* A view of the mapping, or a copy of it. */
static PyObject *array_of(FileObject *self, ArrayType type, int ndim, const int64_t *shape, const BetonRegion *region,
                          bool view) {
    if (view && region->size != 0) {
        return py_array_wrap(type, ndim, shape, NULL, (void *)(uintptr_t)region->data, (PyObject *)self, false);
    }
    PyObject *array = py_array_new(type, ndim, shape);
    if (array == NULL || region->size == 0) return array;
    void *to = py_array_data(array);
    Py_BEGIN_ALLOW_THREADS;
    memcpy(to, region->data, (size_t)region->size);
    Py_END_ALLOW_THREADS;
    return array;
}

static Status decode_image(const BetonImage *image, bool fast, uint8_t *pixels) {
    JpegDecoder *decoder = NULL;
    TRY(jpeg_decoder_create(&decoder));
    Status status =
        jpeg_decode(decoder, image->region.data, (size_t)image->region.size, fast ? JPEG_IDCT_FAST : JPEG_IDCT_ACCURATE,
                    image->width, image->height, pixels, (size_t)image->width * 3);
    jpeg_decoder_destroy(decoder);
    return status;
}

static PyObject *image_value(FileObject *self, size_t field, uint64_t sample, bool view, bool fast) {
    BetonImage image;
    Status status = beton_reader_image(self->reader, field, sample, &image);
    if (status != STATUS_OK) return py_errors_raise(py_module_state_of(self), status);
    const int64_t shape[] = {image.height, image.width, 3};
    if (image.mode == BETON_IMAGE_RAW) return array_of(self, ARRAY_U8, 3, shape, &image.region, view);
    PyObject *array = NULL;
    status = jpeg_check_pixels(image.width, image.height);
    if (status == STATUS_OK) {
        array = py_array_new(ARRAY_U8, 3, shape);
        if (array == NULL) return NULL;
        uint8_t *pixels = py_array_data(array);
        Py_BEGIN_ALLOW_THREADS;
        status = beton_damaged_image(decode_image(&image, fast, pixels));
        Py_END_ALLOW_THREADS;
    }
    if (status == STATUS_OK) return array;
    Py_XDECREF(array);
    error_at_offset(status, (int64_t)image.region.offset);
    error_at_sample(status, (int64_t)sample);
    error_at_field(status, beton_reader_field(self->reader, field)->name);
    return py_errors_raise(py_module_state_of(self), error_at_path(status, beton_reader_path(self->reader)));
}

/* A copy of a region, which may have to be read from the disk. */
static PyObject *region_bytes(const BetonRegion *region) {
    PyObject *bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)region->size);
    if (bytes == NULL || region->size == 0) return bytes;
    char *to = PyBytes_AS_STRING(bytes);
    Py_BEGIN_ALLOW_THREADS;
    memcpy(to, region->data, (size_t)region->size);
    Py_END_ALLOW_THREADS;
    return bytes;
}

static PyObject *region_value(FileObject *self, const BetonField *field, const BetonRegion *region, bool view) {
    if (field->kind != BETON_ARRAY && field->kind != BETON_TENSOR) return region_bytes(region);
    int64_t shape[BETON_MAX_DIMS];
    for (int i = 0; i < field->ndim; i++) shape[i] = (int64_t)field->shape[i];
    return array_of(self, (ArrayType)field->dtype, field->ndim, shape, region, view);
}

/* Includes the record's bytes: only the user's class knows what they mean. */
static PyObject *custom_value(FileObject *self, size_t index, uint64_t sample) {
    const BetonField *field = beton_reader_field(self->reader, index);
    BetonColumn column;
    BetonRegion region = {0};
    Status status = beton_reader_column(self->reader, index, &column);
    if (status == STATUS_OK && field->has_data) status = beton_reader_region(self->reader, index, sample, &region);
    if (status != STATUS_OK) return py_errors_raise(py_module_state_of(self), status);
    PyObject *data = field->has_data ? region_bytes(&region) : Py_NewRef(Py_None);
    return Py_BuildValue("(y#N)", (const char *)column.data + sample * column.stride, (Py_ssize_t)field->record_bytes,
                         data);
}

static PyObject *reader_value(FileObject *self, size_t index, uint64_t sample, bool view, bool fast) {
    const BetonField *field = beton_reader_field(self->reader, index);
    int64_t integer = 0;
    double number = 0;
    BetonRegion region = {0};
    Status status = STATUS_OK;
    switch (field->kind) {
    case BETON_INT:
        status = beton_reader_int(self->reader, index, sample, &integer);
        return status == STATUS_OK ? PyLong_FromLongLong(integer) : py_errors_raise(py_module_state_of(self), status);
    case BETON_FLOAT:
        status = beton_reader_float(self->reader, index, sample, &number);
        return status == STATUS_OK ? PyFloat_FromDouble(number) : py_errors_raise(py_module_state_of(self), status);
    case BETON_IMAGE:
        return image_value(self, index, sample, view, fast);
    case BETON_CUSTOM:
        return custom_value(self, index, sample);
    default:
        status = beton_reader_region(self->reader, index, sample, &region);
        if (status != STATUS_OK) return py_errors_raise(py_module_state_of(self), status);
        return region_value(self, field, &region, view);
    }
}

#define SAMPLE                                                                                                         \
    { "sample", UINT64_MAX, 0 }

/* 0, or -1 with an exception set. */
static int check_indices(FileObject *self, Py_ssize_t field, uint64_t sample) {
    if (field < 0 || (size_t)field >= beton_reader_num_fields(self->reader)) {
        return PY_REFUSE(PyExc_IndexError, "there is no field %zd: the file has %zu", field,
                         beton_reader_num_fields(self->reader));
    }
    if (sample >= beton_reader_num_samples(self->reader)) {
        return PY_REFUSE(PyExc_IndexError, "there is no sample %llu: the file has %llu", (unsigned long long)sample,
                         (unsigned long long)beton_reader_num_samples(self->reader));
    }
    /* before any byte is touched: a file that is complete again later can then still be read */
    Status status = beton_reader_check_length(self->reader);
    if (status != STATUS_OK) py_errors_raise(py_module_state_of(self), status);
    return status == STATUS_OK ? 0 : -1;
}

/* `result`, unless the file has lost bytes since beton_reader_enter. */
static PyObject *reader_leave(FileObject *self, const Guard *guard, PyObject *result) {
    Status status = beton_reader_leave(self->reader, guard, STATUS_OK);
    if (status == STATUS_OK) status = beton_reader_check_length(self->reader);
    if (status == STATUS_OK) return result;
    Py_XDECREF(result);
    PyErr_Clear();
    return py_errors_raise(py_module_state_of(self), status);
}

static PyObject *value(FileObject *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"field", "sample", "view", "fast", NULL};
    Py_ssize_t field;
    ArgumentsNumber sample = SAMPLE;
    int view = 0, fast = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "nO&|pp:value", names, &field, py_arguments_number, &sample, &view,
                                     &fast) ||
        check_indices(self, field, sample.value) < 0) {
        return NULL;
    }
    Guard guard;
    beton_reader_enter(self->reader, &guard);
    return reader_leave(self, &guard, reader_value(self, (size_t)field, sample.value, view, fast));
}

/* mode, width, height, bytes as they are stored */
static PyObject *stored_of(FileObject *self, size_t field, uint64_t sample) {
    BetonImage image;
    Status status = beton_reader_image(self->reader, field, sample, &image);
    if (status != STATUS_OK) return py_errors_raise(py_module_state_of(self), status);
    return Py_BuildValue("(sIIN)", image.mode == BETON_IMAGE_RAW ? "raw" : "jpg", image.width, image.height,
                         region_bytes(&image.region));
}

static PyObject *stored_image(FileObject *self, PyObject *args) {
    Py_ssize_t field;
    ArgumentsNumber sample = SAMPLE;
    Guard guard;
    if (!PyArg_ParseTuple(args, "nO&:stored_image", &field, py_arguments_number, &sample) ||
        check_indices(self, field, sample.value) < 0) {
        return NULL;
    }
    beton_reader_enter(self->reader, &guard);
    return reader_leave(self, &guard, stored_of(self, (size_t)field, sample.value));
}

static PyObject *column(FileObject *self, PyObject *args) {
    Py_ssize_t field;
    if (!PyArg_ParseTuple(args, "n:column", &field)) return NULL;
    if (field < 0 || (size_t)field >= beton_reader_num_fields(self->reader)) {
        check_indices(self, field, 0);
        return NULL;
    }
    uint64_t count = beton_reader_num_samples(self->reader);
    if (count > 0 && check_indices(self, field, 0) < 0) return NULL;
    BetonKind kind = beton_reader_field(self->reader, (size_t)field)->kind;
    int64_t shape[] = {(int64_t)count};
    PyObject *array = py_array_new(kind == BETON_FLOAT ? ARRAY_F64 : ARRAY_I64, 1, shape);
    if (array == NULL) return NULL;
    void *out = py_array_data(array);
    Status status;
    Guard guard;
    Py_BEGIN_ALLOW_THREADS;
    beton_reader_enter(self->reader, &guard);
    status = kind == BETON_FLOAT ? beton_reader_floats(self->reader, (size_t)field, 0, count, out)
                                 : beton_reader_ints(self->reader, (size_t)field, 0, count, out);
    status = beton_reader_leave(self->reader, &guard, status);
    if (status == STATUS_OK) status = beton_reader_check_length(self->reader);
    Py_END_ALLOW_THREADS;
    return py_errors_result(py_module_state_of(self), status, array);
}

static PyObject *sample_span(FileObject *self, PyObject *args) {
    ArgumentsNumber sample = SAMPLE;
    BetonSpan span;
    Guard guard;
    if (!PyArg_ParseTuple(args, "O&:sample_span", py_arguments_number, &sample) ||
        check_indices(self, 0, sample.value) < 0) {
        return NULL;
    }
    beton_reader_enter(self->reader, &guard);
    Status status =
        beton_reader_leave(self->reader, &guard, beton_reader_sample_span(self->reader, sample.value, &span));
    if (status != STATUS_OK) return py_errors_raise(py_module_state_of(self), status);
    return Py_BuildValue("(KK)", (unsigned long long)span.begin, (unsigned long long)span.end);
}

static PyObject *report_list(const BetonVerifyReport *report) {
    PyObject *list = PyList_New(0);
    for (size_t i = 0; list != NULL && i < report->kept; i++) {
        const BetonProblem *problem = &report->problems[i];
        list = py_results_append(list, Py_BuildValue("(KsLs)", (unsigned long long)problem->sample, problem->field,
                                                     (long long)problem->offset, problem->reason));
    }
    return list;
}

static PyObject *verify(FileObject *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"first", "last", "threads", "decode_jpeg", "max_problems", NULL};
    ArgumentsNumber first = {"first", UINT64_MAX, 0}, last = {"last", UINT64_MAX, 0};
    Py_ssize_t max_problems;
    int threads, decode;
    BetonVerifyReport report;
    Status status;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O&O&$ipn:verify", names, py_arguments_number, &first,
                                     py_arguments_number, &last, &threads, &decode, &max_problems)) {
        return NULL;
    }
    BetonVerifyOptions options = {
        .threads = threads, .decode_jpeg = decode, .max_problems = max_problems < 0 ? 0 : (size_t)max_problems};
    Py_BEGIN_ALLOW_THREADS;
    status = beton_reader_verify(self->reader, first.value, last.value, &options, &report);
    Py_END_ALLOW_THREADS;
    if (status != STATUS_OK) return py_errors_raise(py_module_state_of(self), status);
    PyObject *problems = report_list(&report);
    PyObject *result =
        problems == NULL
            ? NULL
            : Py_BuildValue("(KKKKN)", (unsigned long long)report.num_regions, (unsigned long long)report.num_bytes,
                            (unsigned long long)report.num_jpeg, (unsigned long long)report.num_problems, problems);
    beton_verify_report_fini(&report);
    return result;
}

static PyMethodDef methods[] = {
    {"value", PY_KEYWORDS(value),
     "value(field, sample, view=False, fast=False)\n--\n\n"
     "Return an int, float, array or bytes. `view` gives read-only arrays over the mapping where the bytes are "
     "stored unchanged; `fast` uses the fast IDCT. A custom field gives (record, data)."},
    {"stored_image", (PyCFunction)stored_image, METH_VARARGS,
     "stored_image(field, sample)\n--\n\nReturn ('raw' or 'jpg', width, height, bytes as stored)."},
    {"column", (PyCFunction)column, METH_VARARGS,
     "column(field)\n--\n\nAll values of an int field (int64) or a float field (float64), shape (num_samples,)."},
    {"sample_span", (PyCFunction)sample_span, METH_VARARGS,
     "sample_span(sample)\n--\n\nReturn (begin, end): the bytes of the file that hold the sample's data."},
    {"verify", PY_KEYWORDS(verify),
     "verify(first, last, *, threads, decode_jpeg, max_problems)\n--\n\nCheck the data of samples [first, last). "
     "Returns "
     "(regions, bytes, JPEGs decoded, problems, [(sample, field, offset, reason)])."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef properties[] = {
    {"num_samples", (getter)get_num_samples, NULL, "The number of samples.", NULL},
    {"page_size", (getter)get_page_size, NULL, "Bytes per page.", NULL},
    {"data_span", (getter)get_data_span, NULL, "(begin, end) of the data pages in the file.", NULL},
    {"has_checksums", (getter)get_has_checksums, NULL, "Whether the file has an extension block.", NULL},
    {"fields", (getter)get_fields, NULL, "One dict per field, in the file's order.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_new, file_new},
    {Py_tp_dealloc, file_dealloc},
    {Py_tp_methods, methods},
    {Py_tp_getset, properties},
    {Py_tp_doc, "An open .beton file. Use cgxffcv.Reader."},
    {0, NULL},
};

int py_reader_add(PyObject *module) {
    return py_module_add_type(module, "_cgxffcv.BetonFile", sizeof(FileObject), 0, slots, NULL);
}
