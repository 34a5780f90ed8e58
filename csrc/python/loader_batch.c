/* Arrays in host memory share one holder, and those on a GPU another one, so that a batch's slot is free for the next
 * batch once it has been copied. */
#include "python/loader_batch.h"

#include <sys/types.h>
#include <unistd.h>

#include "python/array.h"
#include "python/results.h"
#include "python/tensor.h"

/* Holds one of the two. */
typedef struct BatchObject {
    PyObject_HEAD LoaderBatch *batch; /* owned */
    LoaderUpload *upload;             /* owned reference */
    pid_t process;                    /* that made it; a forked child must not touch its locks */
} BatchObject;

/* reader.c asserts that the two lists of types are the same. */
static ArrayType array_type(BetonDtype dtype) { return (ArrayType)dtype; }

static void batch_dealloc(PyObject *object) {
    BatchObject *self = (BatchObject *)object;
    if (self->process == getpid()) {
        loader_batch_release(self->batch);
        loader_upload_release(self->upload);
    }
    py_module_free_object(object);
}

static PyType_Slot batch_slots[] = {
    {Py_tp_dealloc, batch_dealloc},
    {Py_tp_doc, "The memory of a batch, shared by its arrays; it returns to the loader when the last of them dies."},
    {0, NULL},
};

static BatchObject *new_holder(ModuleState *state) {
    PyTypeObject *type = (PyTypeObject *)state->loader_batch_type;
    BatchObject *holder = (BatchObject *)type->tp_alloc(type, 0);
    if (holder != NULL) holder->process = getpid();
    return holder;
}

static void fill_shape(const LoaderArray *array, size_t count, int64_t *shape) {
    shape[0] = (int64_t)count;
    for (int i = 0; i < array->ndim; i++) shape[i + 1] = (int64_t)array->shape[i];
}

static PyObject *wrap_output(const LoaderArray *array, size_t count, void *data, PyObject *holder) {
    int64_t shape[ARRAY_MAX_DIMS + 1];
    fill_shape(array, count, shape);
    return py_array_wrap(array_type(array->dtype), array->ndim + 1, shape, NULL, data, holder, true);
}

/* A batch without samples has nothing on the GPU. */
static PyObject *wrap_moved(ModuleState *state, const LoaderArray *array, int device, const LoaderBatch *batch,
                            size_t output, PyObject *holder) {
    const LoaderUpload *upload = batch->upload;
    const int type = py_tensor_type_of(array_type(array->dtype));
    if (type < 0) return NULL;
    PyTensor tensor = {.type = (AllreduceType)type, .ndim = array->ndim + 1, .elems = 1, .device = device};
    fill_shape(array, batch->count, tensor.shape);
    for (int i = 0; i < tensor.ndim; i++) tensor.elems *= tensor.shape[i];
    tensor.data = upload == NULL ? NULL : upload->arrays[output];
    tensor.writable = tensor.contiguous = true;
    return py_tensor_over(state, &tensor, upload == NULL ? NULL : upload->ready, holder);
}

static PyObject *wrap_outputs(ModuleState *state, const Loader *loader, int device, const LoaderBatch *batch,
                              PyObject *here, PyObject *there) {
    PyObject *arrays = PyTuple_New((Py_ssize_t)batch->array_count);
    for (size_t i = 0; arrays != NULL && i < batch->array_count; i++) {
        const char *why;
        const LoaderArray *described = loader_array(loader, i);
        PyObject *array = loader_moved(loader, i, &why) == LOADER_STAYS
                              ? wrap_output(described, batch->count, batch->arrays[i], here)
                              : wrap_moved(state, described, device, batch, i, there);
        arrays = py_results_put(arrays, (Py_ssize_t)i, array);
    }
    return arrays;
}

PyObject *py_loader_batch_wrap(ModuleState *state, const Loader *loader, int device, LoaderBatch *batch) {
    PyObject *result = NULL, *arrays = NULL, *ids = NULL;
    BatchObject *here = new_holder(state), *there = new_holder(state);
    if (here == NULL || there == NULL) {
        loader_batch_release(batch);
        goto done;
    }
    here->batch = batch;
    if (batch->upload != NULL) loader_upload_retain(batch->upload);
    there->upload = batch->upload;
    int64_t count = (int64_t)batch->count;
    arrays = wrap_outputs(state, loader, device, batch, (PyObject *)here, (PyObject *)there);
    /* Sample numbers fit: a file has fewer than 2^63. */
    ids = py_array_wrap(ARRAY_I64, 1, &count, NULL, (void *)(uintptr_t)batch->ids, (PyObject *)here, false);
    if (arrays != NULL && ids != NULL) result = PyTuple_Pack(2, arrays, ids);
done:
    Py_XDECREF(arrays);
    Py_XDECREF(ids);
    Py_XDECREF(here);
    Py_XDECREF(there);
    return result;
}

static Status announce_read(LoaderUpload *upload, int device, DeviceStream *stream) {
    PyTensorDeviceGuard guard;
    TRY(py_tensor_device_enter(device, &guard));
    Status status = loader_upload_read(upload, stream);
    py_tensor_device_leave(&guard);
    return status;
}

static PyObject *batch_read(PyObject *module, PyObject *args) {
    PyObject *object, *number;
    ModuleState *state = py_module_state(module);
    DeviceStream *stream;
    if (!PyArg_ParseTuple(args, "O!O:loader_batch_read", state->tensor_type, &object, &number) ||
        py_tensor_parse_stream(number, &stream) < 0) {
        return NULL;
    }
    PyObject *owner = py_tensor_owner(object);
    if (owner == NULL || !Py_IS_TYPE(owner, (PyTypeObject *)state->loader_batch_type)) {
        return PyErr_Format(PyExc_ValueError, "the tensor does not belong to a loader's batch");
    }
    LoaderUpload *upload = ((BatchObject *)owner)->upload;
    if (upload == NULL) Py_RETURN_NONE;
    Status status = announce_read(upload, py_tensor_unchecked(object)->device, stream);
    return py_errors_none(state, status);
}

static PyMethodDef functions[] = {
    {"loader_batch_read", batch_read, METH_VARARGS,
     "loader_batch_read(tensor, stream)\n--\n\n"
     "Says that everything that reads this tensor of a batch is queued on the stream.\n"
     "Once said of each tensor of the batch, the memory is reused after that, without waiting for other streams."},
    {NULL, NULL, 0, NULL},
};

int py_loader_batch_add(PyObject *module) {
    if (py_module_add_type(module, "_cgxffcv.LoaderBatch", sizeof(BatchObject), Py_TPFLAGS_DISALLOW_INSTANTIATION,
                           batch_slots, &py_module_state(module)->loader_batch_type) < 0)
        return -1;
    return PyModule_AddFunctions(module, functions);
}
