/* Image operations on batches in memory, made by a user's own step. */
#include <string.h>

#include "base/memory.h"
#include "python/arguments.h"
#include "python/array.h"
#include "python/operations.h"

#define WHERE "one pipeline"

/* All operations of the tuple but those of its first `done` dicts, each with the draws that it has in the whole
 * tuple. */
static int parse_rest(PyObject *tuple, PyObject *keep, Py_ssize_t done, AugmentSpec *spec) {
    int skipped = 0, result = -1;
    PyObject *before = PyTuple_GetSlice(tuple, 0, done);
    if (before != NULL && py_operations_parse(before, keep, WHERE, AUGMENT_MAX_OPS, spec->ops, &skipped) == 0 &&
        py_operations_parse(tuple, keep, WHERE, AUGMENT_MAX_OPS, spec->ops, &spec->op_count) == 0) {
        spec->op_count -= skipped;
        memmove(spec->ops, spec->ops + skipped, (size_t)spec->op_count * sizeof *spec->ops);
        result = 0;
    }
    Py_XDECREF(before);
    return result;
}

/* A batch, and what is done to it. */
typedef struct Batch {
    AugmentSpec spec;
    ArrayView images, ids;
    size_t pixel_bytes;
    uint64_t seed, epoch;
    bool evaluate;
} Batch;

static Status batch_run(const Batch *batch, const Augment *augment, uint8_t *out, size_t out_bytes) {
    const AugmentSpec *spec = &batch->spec;
    const size_t stride = (size_t)spec->width * batch->pixel_bytes;
    const uint64_t *ids = batch->ids.data;
    const uint8_t *pixels = batch->images.data;
    void *scratch = NULL;
    TRY(memory_calloc(augment_scratch_bytes(augment), 1, &scratch));
    augment_scratch_init(augment, scratch);
    for (int64_t i = 0; i < batch->ids.elems; i++, pixels += stride * (size_t)spec->height, out += out_bytes) {
        const AugmentKey key = {batch->seed, ids[i], ids[0], (uint32_t)batch->epoch};
        const AugmentImage image = {pixels, stride, {0, 0, spec->height, spec->width}};
        AugmentDrawn drawn[AUGMENT_MAX_OPS];
        augment_draw(augment, &key, batch->evaluate, drawn);
        augment_run(augment, drawn, &image, NULL, out, scratch);
    }
    memory_free(scratch);
    return STATUS_OK;
}

static PyObject *augmented(PyObject *module, const Batch *batch, const Augment *augment) {
    int32_t height, width;
    augment_output_size(augment, &height, &width);
    const int64_t shape[] = {batch->ids.elems, height, width, batch->spec.format.channels};
    PyObject *result = py_array_new(batch->images.type, 4, shape);
    if (result == NULL) return NULL;
    uint8_t *out = py_array_data(result);
    Status status;
    Py_BEGIN_ALLOW_THREADS;
    status = batch_run(batch, augment, out, (size_t)height * (size_t)width * batch->pixel_bytes);
    Py_END_ALLOW_THREADS;
    return py_errors_result(py_module_state(module), status, result);
}

static ImageType type_of(ArrayType type) {
    return type == ARRAY_F32 ? IMAGE_F32 : type == ARRAY_U16 ? IMAGE_U16 : IMAGE_U8;
}

static PyObject *check_and_augment(PyObject *module, Batch *batch) {
    const int64_t *shape = batch->images.shape;
    if (shape[1] < 1 || shape[2] < 1 || shape[1] > UINT16_MAX || shape[2] > UINT16_MAX || shape[3] < 1 ||
        shape[3] > AUGMENT_MAX_CHANNELS || shape[0] != batch->ids.elems) {
        return PyErr_Format(PyExc_TypeError,
                            "operations on images take a batch (%lld, height, width, 1 to %d), not (%lld, %lld, %lld, "
                            "%lld)",
                            (long long)batch->ids.elems, AUGMENT_MAX_CHANNELS, (long long)shape[0], (long long)shape[1],
                            (long long)shape[2], (long long)shape[3]);
    }
    Augment *augment = NULL;
    batch->spec.height = (int32_t)shape[1];
    batch->spec.width = (int32_t)shape[2];
    batch->spec.format = (AugmentFormat){(int32_t)shape[3], type_of(batch->images.type)};
    batch->spec.type = batch->spec.format.type;
    batch->pixel_bytes = (size_t)(batch->images.item_bytes * shape[3]);
    Status status = augment_create(&batch->spec, &augment);
    if (status != STATUS_OK) return py_errors_raise(py_module_state(module), status);
    PyObject *result = NULL;
    if (augment_mixes(augment)) {
        PyErr_SetString(PyExc_ValueError, "an operation that mixes a batch must come before a step of your own");
    } else {
        result = augmented(module, batch, augment);
    }
    augment_destroy(augment);
    return result;
}

static PyObject *augment_images(PyObject *module, PyObject *args) {
    PyObject *images, *ids, *operations, *result = NULL;
    ArgumentsNumber done = {"done", PY_SSIZE_T_MAX, 0}, seed = {"seed", UINT64_MAX, 0};
    ArgumentsNumber epoch = {"epoch", UINT32_MAX, 0};
    int evaluate;
    Batch batch = {.spec = {.layout = IMAGE_HWC}};
    const unsigned types = 1u << ARRAY_U8 | 1u << ARRAY_U16 | 1u << ARRAY_F32;
    if (!PyArg_ParseTuple(args, "OOOO&O&O&p:augment_images", &images, &ids, &operations, py_arguments_number, &done,
                          py_arguments_number, &seed, py_arguments_number, &epoch, &evaluate)) {
        return NULL;
    }
    batch.seed = seed.value;
    batch.epoch = epoch.value;
    batch.evaluate = evaluate != 0;
    PyObject *tuple = py_arguments_tuple(operations, "operations", 0, PY_OPERATIONS_MAX), *keep = PyList_New(0);
    if (tuple != NULL && keep != NULL && parse_rest(tuple, keep, (Py_ssize_t)done.value, &batch.spec) == 0 &&
        py_array_acquire(images, "the batch", types, 4, false, &batch.images) == 0) {
        if (py_array_acquire(ids, "ids", 1u << ARRAY_I64 | 1u << ARRAY_U64, 1, false, &batch.ids) == 0) {
            result = check_and_augment(module, &batch);
            py_array_release(&batch.ids);
        }
        py_array_release(&batch.images);
    }
    Py_XDECREF(tuple);
    Py_XDECREF(keep);
    return result;
}

static PyMethodDef functions[] = {
    {"augment_images", augment_images, METH_VARARGS,
     "augment_images(images, ids, operations, done, seed, epoch, evaluate)\n--\n\n"
     "Applies a pipeline's operations, except the first `done`, to a batch (batch, height, width, channels)\n"
     "in memory, of uint8, uint16 or float32; `ids` are its sample numbers."},
    {NULL, NULL, 0, NULL},
};

int py_operations_batch_add(PyObject *module) { return PyModule_AddFunctions(module, functions); }
