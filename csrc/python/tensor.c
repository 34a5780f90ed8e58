/* The type Tensor. One is made from an object that supports the buffer protocol, a DLPack capsule, or an address on a
 * GPU; cgxffcv.tensors asks the frameworks. */
#include "python/tensor.h"

#include <string.h>

#include "base/checked.h"
#include "base/memory.h"
#include "python/arguments.h"
#include "python/cuda_array.h"
#include "python/dlpack.h"
#include "python/results.h"
#include "python/spec.h"

/* An array, and what holds its memory: one of the members after it. */
typedef struct TensorObject {
    PyObject_HEAD PyTensor tensor;
    Py_buffer buffer;   /* owned; none if its object is NULL */
    DlpackLoan loan;    /* owned */
    PyObject *owner;    /* owned, or NULL */
    void *memory;       /* owned, or NULL: on the tensor's device */
    DeviceEvent *ready; /* everything has been written; owned with `memory`, otherwise by `owner`. NULL in host
                         * memory */
} TensorObject;

static const ArrayType array_types[ALLREDUCE_TYPES] = {
    [ALLREDUCE_F32] = ARRAY_F32, [ALLREDUCE_F16] = ARRAY_F16, [ALLREDUCE_BF16] = ARRAY_U16, [ALLREDUCE_F64] = ARRAY_F64,
    [ALLREDUCE_I8] = ARRAY_I8,   [ALLREDUCE_U8] = ARRAY_U8,   [ALLREDUCE_I16] = ARRAY_I16,  [ALLREDUCE_U16] = ARRAY_U16,
    [ALLREDUCE_I32] = ARRAY_I32, [ALLREDUCE_U32] = ARRAY_U32, [ALLREDUCE_I64] = ARRAY_I64,  [ALLREDUCE_U64] = ARRAY_U64,
};

ArrayType py_tensor_array_type(AllreduceType type) { return array_types[type]; }

size_t py_tensor_bytes(const PyTensor *tensor) { return (size_t)tensor->elems * allreduce_type_bytes(tensor->type); }

/* ---- checking descriptions of arrays ---- */

/* Counts the elements and their bytes, without wrapping around. */
static bool count_bytes(const PyTensor *tensor, uint64_t *elems, uint64_t *bytes) {
    *elems = 1;
    for (int i = 0; i < tensor->ndim; i++) {
        if (tensor->shape[i] == 0) *elems = 0;
    }
    for (int i = 0; i < tensor->ndim && *elems != 0; i++) {
        if (!checked_mul(*elems, (uint64_t)tensor->shape[i], elems)) return false;
    }
    return checked_mul(*elems, allreduce_type_bytes(tensor->type), bytes) && *bytes <= INT64_MAX;
}

static bool in_c_order(const PyTensor *tensor, const int64_t *strides, int64_t unit) {
    int64_t expected = (int64_t)allreduce_type_bytes(tensor->type) / unit;
    for (int i = tensor->ndim - 1; i >= 0 && strides != NULL && tensor->elems > 1; i--) {
        if (tensor->shape[i] != 1 && strides[i] != expected) return false;
        expected *= tensor->shape[i];
    }
    return true;
}

/* The first and the last byte must be on the GPU. */
static int check_device(ModuleState *state, const PyTensor *tensor, uint64_t bytes) {
    if (tensor->device < 0 || tensor->elems == 0) return 0;
    if ((uintptr_t)tensor->data % allreduce_type_bytes(tensor->type) != 0) {
        return PY_REFUSE(PyExc_ValueError, "an array of %s on a GPU must begin at a multiple of its elements' size",
                         allreduce_type_name((int)tensor->type));
    }
    const char *ends[2] = {tensor->data, (const char *)tensor->data + (tensor->contiguous ? bytes - 1 : 0)};
    for (int i = 0; i < 2; i++) {
        int found = -1;
        Status status = device_locate(ends[i], &found);
        if (py_errors_check(state, status) < 0) return -1;
        if (found == tensor->device) continue;
        if (found < 0) {
            PyErr_Format(PyExc_ValueError, "an array claims to be on GPU %d at %p, where no GPU has memory",
                         tensor->device, (const void *)ends[i]);
        } else {
            PyErr_Format(PyExc_ValueError, "an array claims to be on GPU %d at %p, which is memory of GPU %d",
                         tensor->device, (const void *)ends[i], found);
        }
        return -1;
    }
    return 0;
}

int py_tensor_measure(ModuleState *state, PyTensor *tensor, const int64_t *strides, int64_t unit) {
    uint64_t elems, bytes, end;
    for (int i = 0; i < tensor->ndim; i++) {
        if (tensor->shape[i] >= 0) continue;
        return PY_REFUSE(PyExc_ValueError, "an array has %lld elements in dimension %d", (long long)tensor->shape[i],
                         i);
    }
    if (!count_bytes(tensor, &elems, &bytes) || !checked_add((uintptr_t)tensor->data, bytes, &end)) {
        return PY_REFUSE(PyExc_ValueError, "an array has more elements than fit in memory");
    }
    if (elems > 0 && tensor->data == NULL) {
        return PY_REFUSE(PyExc_ValueError, "an array of %llu elements claims to be at address 0",
                         (unsigned long long)elems);
    }
    tensor->elems = (int64_t)elems;
    tensor->contiguous = in_c_order(tensor, strides, unit);
    return check_device(state, tensor, bytes);
}

/* ---- making ---- */

static TensorObject *new_tensor(ModuleState *state) {
    PyTypeObject *type = (PyTypeObject *)state->tensor_type;
    TensorObject *self = (TensorObject *)type->tp_alloc(type, 0);
    if (self != NULL) self->tensor.device = -1;
    return self;
}

static void tensor_dealloc(PyObject *object) {
    TensorObject *self = (TensorObject *)object;
    if (self->buffer.obj != NULL) PyBuffer_Release(&self->buffer);
    py_dlpack_release(&self->loan);
    if (self->memory != NULL) device_event_destroy(self->ready);
    if (self->tensor.device < 0) {
        memory_free(self->memory);
    } else {
        device_free(self->memory);
    }
    Py_XDECREF(self->owner);
    py_module_free_object(object);
}

PyObject *py_tensor_over(ModuleState *state, const PyTensor *tensor, DeviceEvent *ready, PyObject *owner) {
    TensorObject *self = new_tensor(state);
    if (self == NULL) return NULL;
    self->tensor = *tensor;
    self->ready = ready;
    self->owner = Py_NewRef(owner);
    return (PyObject *)self;
}

PyObject *py_tensor_owner(PyObject *tensor) { return ((TensorObject *)tensor)->owner; }

static PyObject *or_none(TensorObject *self, int result) {
    if (result < 0) Py_CLEAR(self);
    return (PyObject *)self;
}

/* The type of a buffer's elements; `wanted` (NULL: none) may say more about it than the buffer can. */
static int type_of_elements(const Py_buffer *buffer, PyObject *wanted, AllreduceType *out) {
    int found = py_array_type_of(buffer);
    int named = wanted == NULL || wanted == Py_None ? -1 : py_spec_name(wanted, "dtype", allreduce_type_name);
    if (wanted != NULL && wanted != Py_None && named < 0) return -1;
    for (int i = 0; i < ALLREDUCE_TYPES; i++) {
        int type = named >= 0 ? named : i == ALLREDUCE_BF16 ? -1 : i;
        if (found < 0 || type < 0 || (int)array_types[type] != found) continue;
        *out = (AllreduceType)type;
        return 0;
    }
    return PY_REFUSE(PyExc_TypeError, "an array with elements of format '%s' is not %s%s",
                     buffer->format == NULL ? "B" : buffer->format, named < 0 ? "of a type that is summed" : "one of ",
                     named < 0 ? "" : allreduce_type_name(named));
}

int py_tensor_type_of(ArrayType type) {
    for (int i = 0; i < ALLREDUCE_TYPES; i++) {
        if (i != ALLREDUCE_BF16 && array_types[i] == type) return i;
    }
    return PY_REFUSE(PyExc_TypeError, "batches of bool or of complex numbers cannot go to a GPU without torch");
}

static int fill_from_buffer(ModuleState *state, TensorObject *self, PyObject *dtype) {
    PyTensor *tensor = &self->tensor;
    const Py_buffer *buffer = &self->buffer;
    int64_t strides[ARRAY_MAX_DIMS];
    bool plain = buffer->strides == NULL; /* as ctypes leaves it */
    if (type_of_elements(buffer, dtype, &tensor->type) < 0) return -1;
    if (buffer->ndim < 0 || buffer->ndim > ARRAY_MAX_DIMS || (buffer->ndim > 0 && buffer->shape == NULL)) {
        return PY_REFUSE(PyExc_ValueError, "an array has %d dimensions%s; 0 to %d are possible", buffer->ndim,
                         buffer->shape == NULL ? " and no shape" : "", ARRAY_MAX_DIMS);
    }
    tensor->data = buffer->buf;
    tensor->writable = !buffer->readonly;
    tensor->ndim = buffer->ndim;
    for (int i = 0; i < buffer->ndim; i++) {
        tensor->shape[i] = buffer->shape[i];
        if (!plain) strides[i] = buffer->strides[i];
    }
    return py_tensor_measure(state, tensor, plain ? NULL : strides, 1);
}

static PyObject *tensor_of_buffer(PyObject *module, PyObject *args) {
    PyObject *object, *dtype = NULL;
    ModuleState *state = py_module_state(module);
    if (!PyArg_ParseTuple(args, "O|O:tensor_of_buffer", &object, &dtype)) return NULL;
    TensorObject *self = new_tensor(state);
    if (self == NULL) return NULL;
    if (PyObject_GetBuffer(object, &self->buffer, PyBUF_STRIDES | PyBUF_FORMAT) < 0) {
        self->buffer.obj = NULL;
        return or_none(self, -1);
    }
    return or_none(self, fill_from_buffer(state, self, dtype));
}

static PyObject *tensor_of_dlpack(PyObject *module, PyObject *capsule) {
    ModuleState *state = py_module_state(module);
    TensorObject *self = new_tensor(state);
    return self == NULL ? NULL : or_none(self, py_dlpack_import(state, capsule, &self->tensor, &self->loan));
}

static int fill_extent(PyObject *item, void *out) {
    uint64_t number;
    if (py_arguments_whole(item, "an array's shape or stride", INT64_MIN, INT64_MAX, &number) < 0) return -1;
    *(int64_t *)out = (int64_t)number;
    return 0;
}

static PyObject *tensor_reshape(PyObject *object, PyObject *shape) {
    TensorObject *self = (TensorObject *)object;
    ModuleState *state = py_module_state_of(object);
    PyTensor now = self->tensor;
    now.ndim = py_arguments_fill(shape, "dimensions", 0, ARRAY_MAX_DIMS, fill_extent, now.shape, sizeof *now.shape);
    now.device = -1; /* where the memory is has been checked, but not whether the shape fits */
    if (now.ndim < 0 || py_tensor_measure(state, &now, NULL, 1) < 0) return NULL;
    now.device = self->tensor.device;
    if (now.elems != self->tensor.elems || !self->tensor.contiguous) {
        return PyErr_Format(PyExc_ValueError, "%lld elements%s cannot be viewed in a shape of %lld",
                            (long long)self->tensor.elems, self->tensor.contiguous ? "" : ", which are not in C order,",
                            (long long)now.elems);
    }
    return py_tensor_over(state, &now, self->ready, object);
}

static PyObject *tensor_view(PyObject *object, PyObject *dtype) {
    TensorObject *self = (TensorObject *)object;
    PyTensor now = self->tensor;
    const int type = py_spec_name(dtype, "dtype", allreduce_type_name);
    if (type < 0) return NULL;
    now.type = (AllreduceType)type;
    if (!now.contiguous || allreduce_type_bytes(now.type) != allreduce_type_bytes(self->tensor.type)) {
        return PyErr_Format(PyExc_ValueError, "elements of %s%s cannot be viewed as %s",
                            allreduce_type_name((int)self->tensor.type),
                            now.contiguous ? "" : ", which are not in C order,", allreduce_type_name(type));
    }
    return py_tensor_over(py_module_state_of(object), &now, self->ready, object);
}

/* The device is whichever GPU the address is on. */
static int fill_from_address(ModuleState *state, TensorObject *self, PyObject *shape, PyObject *strides,
                             PyObject *dtype) {
    PyTensor *tensor = &self->tensor;
    int64_t steps[ARRAY_MAX_DIMS];
    int type = py_spec_name(dtype, "dtype", allreduce_type_name);
    if (type < 0) return -1;
    tensor->type = (AllreduceType)type;
    tensor->ndim =
        py_arguments_fill(shape, "dimensions", 0, ARRAY_MAX_DIMS, fill_extent, tensor->shape, sizeof *tensor->shape);
    if (tensor->ndim < 0) return -1;
    bool plain = strides == Py_None;
    if (!plain &&
        py_arguments_fill(strides, "strides", tensor->ndim, tensor->ndim, fill_extent, steps, sizeof *steps) < 0) {
        return -1;
    }
    Status status = device_locate(tensor->data, &tensor->device);
    if (status == STATUS_OK && tensor->device < 0 && tensor->data == NULL) status = device_current(&tensor->device);
    if (py_errors_check(state, status) < 0) return -1;
    if (tensor->device < 0) {
        return PY_REFUSE(PyExc_ValueError, "an array claims to be on a GPU at %p, where no GPU has memory",
                         tensor->data);
    }
    return py_tensor_measure(state, tensor, plain ? NULL : steps, 1);
}

static PyObject *tensor_of_address(PyObject *module, PyObject *args) {
    PyObject *owner, *address, *shape, *strides, *dtype;
    int writable;
    uint64_t at;
    ModuleState *state = py_module_state(module);
    if (!PyArg_ParseTuple(args, "OOOOOp:tensor_of_address", &owner, &address, &shape, &strides, &dtype, &writable)) {
        return NULL;
    }
    if (py_arguments_whole(address, "address", 0, UINTPTR_MAX, &at) < 0) return NULL;
    TensorObject *self = new_tensor(state);
    if (self == NULL) return NULL;
    self->tensor.data = (void *)(uintptr_t)at;
    self->tensor.writable = writable;
    self->owner = Py_NewRef(owner);
    return or_none(self, fill_from_address(state, self, shape, strides, dtype));
}

/* ---- copying ---- */

static Status copy_tensor(const TensorObject *source, TensorObject *copy, DeviceStream *stream) {
    const PyTensor *from = &source->tensor;
    PyTensor *to = &copy->tensor;
    size_t bytes = py_tensor_bytes(from);
    if (to->device < 0) {
        TRY(memory_alloc(bytes, 1, &copy->memory));
    } else {
        TRY(device_alloc(bytes, &copy->memory));
    }
    to->data = copy->memory;
    if (to->device < 0 && from->device < 0) {
        if (bytes > 0) memcpy(to->data, from->data, bytes);
        return STATUS_OK;
    }
    if (source->ready != NULL) TRY(device_stream_wait(stream, source->ready));
    TRY(device_copy(to->data, from->data, bytes, stream));
    if (to->device < 0) return device_stream_synchronize(stream);
    TRY(device_event_create(&copy->ready));
    return device_event_record(copy->ready, stream);
}

static Status copy_on_device(const TensorObject *source, TensorObject *copy, DeviceStream *stream) {
    PyTensorDeviceGuard guard;
    TRY(py_tensor_device_enter(copy->tensor.device >= 0 ? copy->tensor.device : source->tensor.device, &guard));
    Status status = copy_tensor(source, copy, stream);
    py_tensor_device_leave(&guard);
    return status;
}

static PyObject *tensor_copy(PyObject *object, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"device", "stream", NULL};
    PyObject *device = NULL, *stream_object = NULL;
    DeviceStream *stream;
    const PyTensor *from = &((TensorObject *)object)->tensor;
    uint64_t index = (uint64_t)(int64_t)from->device;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|OO:copy", names, &device, &stream_object)) return NULL;
    if (device != NULL && py_arguments_whole(device, "device", -1, INT32_MAX, &index) < 0) return NULL;
    if (py_tensor_parse_stream(stream_object, &stream) < 0) return NULL;
    if (!from->contiguous) return PyErr_Format(PyExc_ValueError, "an array that is not in C order cannot be copied");
    ModuleState *state = py_module_state_of(object);
    TensorObject *copy = new_tensor(state);
    if (copy == NULL) return NULL;
    copy->tensor = *from;
    copy->tensor.data = NULL;
    copy->tensor.device = (int)(int64_t)index;
    copy->tensor.writable = true;
    Status status;
    Py_BEGIN_ALLOW_THREADS;
    status = copy_on_device((TensorObject *)object, copy, stream);
    Py_END_ALLOW_THREADS;
    if (status == STATUS_OK && copy->tensor.device >= 0 && from->device != copy->tensor.device) {
        copy->owner = Py_NewRef(object); /* page-locked memory, or another GPU's, may still be read later */
    }
    return py_errors_result(state, status, (PyObject *)copy);
}

/* ---- exporting ---- */

static PyObject *tensor_made_on(PyObject *object, PyObject *number) {
    TensorObject *self = (TensorObject *)object;
    DeviceStream *stream;
    PyTensorDeviceGuard guard;
    if (py_tensor_parse_stream(number, &stream) < 0) return NULL;
    if (self->ready == NULL) Py_RETURN_NONE;
    Status status = py_tensor_device_enter(self->tensor.device, &guard);
    if (status == STATUS_OK) status = device_event_record(self->ready, stream);
    py_tensor_device_leave(&guard);
    return py_errors_none(py_module_state_of(object), status);
}

/* Whether an argument asks for version 1 or later. */
static int wants_versions(PyObject *object, bool *out) {
    int major, minor;
    *out = false;
    if (object == NULL || object == Py_None) return 0;
    if (py_arguments_unpack(object, "ii;max_version must be a pair of numbers, or None", &major, &minor) < 0) return -1;
    *out = major >= 1;
    return 0;
}

/* Makes what follows on the stream wait for the copy. */
static int let_stream_wait(TensorObject *self, DeviceStream *stream) {
    if (self->ready == NULL) return 0;
    PyTensorDeviceGuard guard;
    Status status = py_tensor_device_enter(self->tensor.device, &guard);
    if (status == STATUS_OK) status = device_stream_wait(stream, self->ready);
    py_tensor_device_leave(&guard);
    return py_errors_check(py_module_state_of(self), status);
}

/* The consumer's stream: -1 if none has to wait, None for the default stream. */
static int wait_on_stream(TensorObject *self, PyObject *object) {
    uint64_t number = 0;
    bool given = object != NULL && object != Py_None;
    if (given && py_arguments_whole(object, "stream", -1, UINTPTR_MAX, &number) < 0) return -1;
    return given && number == UINT64_MAX ? 0 : let_stream_wait(self, (DeviceStream *)(uintptr_t)number);
}

static PyObject *tensor_dlpack_device(PyObject *object, PyObject *Py_UNUSED(unused)) {
    int device = py_tensor_unchecked(object)->device;
    return Py_BuildValue("(ii)", device < 0 ? DLPACK_CPU : DLPACK_CUDA, device < 0 ? 0 : device);
}

/* Whether a consumer wants the array on another device; -1 with an exception set. */
static int is_elsewhere(PyObject *object, PyObject *device) {
    if (device == NULL || device == Py_None) return 0;
    PyObject *own = tensor_dlpack_device(object, NULL);
    int same = own == NULL ? -1 : PyObject_RichCompareBool(own, device, Py_EQ);
    Py_XDECREF(own);
    return same < 0 ? -1 : !same;
}

static PyObject *tensor_dlpack(PyObject *object, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"stream", "max_version", "dl_device", "copy", NULL};
    PyObject *stream = NULL, *version = NULL, *device = NULL, *copy = NULL;
    TensorObject *self = (TensorObject *)object;
    bool versioned;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|$OOOO:__dlpack__", names, &stream, &version, &device, &copy)) {
        return NULL;
    }
    if (wants_versions(version, &versioned) < 0) return NULL;
    int elsewhere = is_elsewhere(object, device), asks_copy = copy == NULL ? 0 : PyObject_IsTrue(copy);
    if (elsewhere < 0 || asks_copy < 0) return NULL;
    const char *why = asks_copy                              ? "copy() makes a copy"
                      : elsewhere                            ? "copy() brings it to another device"
                      : !self->tensor.contiguous             ? "it is not in C order"
                      : !versioned && !self->tensor.writable ? "it is read-only, which only DLPack 1 can express"
                                                             : NULL;
    if (why != NULL) return PyErr_Format(PyExc_BufferError, "a Tensor can only be exported as it is: %s", why);
    if (wait_on_stream(self, stream) < 0) return NULL;
    return py_dlpack_export(object, &self->tensor, versioned);
}

/* Names the default stream, which exists as long as the device: that of the copy may be gone. */
static PyObject *get_cuda_array(PyObject *object, void *Py_UNUSED(unused)) {
    TensorObject *self = (TensorObject *)object;
    const char *why = py_cuda_array_refusal(&self->tensor);
    if (why != NULL) return PyErr_Format(PyExc_AttributeError, "this Tensor has no CUDA array interface: %s", why);
    if (let_stream_wait(self, NULL) < 0) return NULL;
    return py_cuda_array_describe(&self->tensor, self->ready != NULL);
}

static PyObject *tensor_numpy(PyObject *object, PyObject *Py_UNUSED(unused)) {
    const PyTensor *tensor = py_tensor_unchecked(object);
    if (tensor->device >= 0 || !tensor->contiguous) {
        return PyErr_Format(PyExc_ValueError, "%s",
                            tensor->contiguous ? "it is on a GPU: copy(-1) brings it into host memory"
                                               : "an array that is not in C order cannot be viewed");
    }
    return py_array_wrap(py_tensor_array_type(tensor->type), tensor->ndim, tensor->shape, NULL, tensor->data, object,
                         tensor->writable);
}

/* ---- properties ---- */

const PyTensor *py_tensor_unchecked(PyObject *object) { return &((TensorObject *)object)->tensor; }

const PyTensor *py_tensor_of(ModuleState *state, PyObject *object, const char *argument) {
    if (PyObject_TypeCheck(object, (PyTypeObject *)state->tensor_type)) return py_tensor_unchecked(object);
    PyErr_Format(PyExc_TypeError, "%s must be a Tensor, not %.100s", argument, Py_TYPE(object)->tp_name);
    return NULL;
}

static PyObject *get_shape(PyObject *self, void *Py_UNUSED(unused)) {
    const PyTensor *tensor = py_tensor_unchecked(self);
    return py_results_shape(tensor->shape, tensor->ndim);
}

static PyObject *get_dtype(PyObject *self, void *Py_UNUSED(unused)) {
    return PyUnicode_FromString(allreduce_type_name((int)py_tensor_unchecked(self)->type));
}

static PyObject *get_device(PyObject *self, void *Py_UNUSED(unused)) {
    return PyLong_FromLong(py_tensor_unchecked(self)->device);
}

static PyObject *get_writable(PyObject *self, void *Py_UNUSED(unused)) {
    return PyBool_FromLong(py_tensor_unchecked(self)->writable);
}

static PyObject *get_contiguous(PyObject *self, void *Py_UNUSED(unused)) {
    return PyBool_FromLong(py_tensor_unchecked(self)->contiguous);
}

static PyGetSetDef tensor_getset[] = {
    {"shape", get_shape, NULL, "The sizes of its dimensions.", NULL},
    {"dtype", get_dtype, NULL, "The type of its elements, one of ALLREDUCE_DTYPES.", NULL},
    {"device", get_device, NULL, "The number of its GPU; -1 in host memory.", NULL},
    {"writable", get_writable, NULL, "Whether it may be written to.", NULL},
    {"contiguous", get_contiguous, NULL, "Whether its elements are in C order without gaps.", NULL},
    {"__cuda_array_interface__", get_cuda_array, NULL,
     "Version 3, as in Numba's documentation. AttributeError if it is in host memory, not in C order, or of\n"
     "bfloat16.",
     NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMethodDef tensor_methods[] = {
    {"copy", PY_KEYWORDS(tensor_copy),
     "copy($self, /, device=..., stream=0)\n--\n\n"
     "Returns a Tensor with its own memory, on the same or another device (-1: the host), copied on a\n"
     "stream; waits for that if the copy is in host memory."},
    {"reshape", tensor_reshape, METH_O,
     "reshape($self, shape, /)\n--\n\nReturns the same memory in another shape with as many elements."},
    {"view", tensor_view, METH_O,
     "view($self, dtype, /)\n--\n\nReturns the same memory as elements of another type of the same size."},
    {"made_on", tensor_made_on, METH_O,
     "made_on($self, stream, /)\n--\n\n"
     "Of a copy on a GPU: says that what is queued on the stream now completes it; its consumers wait for that."},
    {"numpy", tensor_numpy, METH_NOARGS,
     "numpy($self, /)\n--\n\nReturns its memory as a NumPy array; bfloat16 as uint16."},
    {"__dlpack__", PY_KEYWORDS(tensor_dlpack),
     "__dlpack__($self, /, *, stream=None, max_version=None, dl_device=None, copy=None)\n--\n\nAs DLPack specifies."},
    {"__dlpack_device__", tensor_dlpack_device, METH_NOARGS, "__dlpack_device__($self, /)\n--\n\nAs DLPack specifies."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot tensor_slots[] = {
    {Py_tp_doc, "An array of any framework, in host memory or on a GPU. Exports itself through DLPack and, on a "
                "GPU, the CUDA array interface."},
    {Py_tp_dealloc, tensor_dealloc},
    {Py_tp_methods, tensor_methods},
    {Py_tp_getset, tensor_getset},
    {0, NULL},
};

static PyMethodDef functions[] = {
    {"tensor_of_buffer", tensor_of_buffer, METH_VARARGS,
     "tensor_of_buffer(object, dtype=None)\n--\n\n"
     "Returns a Tensor of an object with the buffer protocol; dtype if that cannot express it (bfloat16 as uint16)."},
    {"tensor_of_dlpack", tensor_of_dlpack, METH_O,
     "tensor_of_dlpack(capsule)\n--\n\nReturns a Tensor of what is in a DLPack capsule, which is used up."},
    {"tensor_of_address", tensor_of_address, METH_VARARGS,
     "tensor_of_address(owner, address, shape, strides, dtype, writable)\n--\n\n"
     "Returns a Tensor of GPU memory that `owner` keeps alive; strides in bytes, or None."},
    {NULL, NULL, 0, NULL},
};

int py_tensor_add(PyObject *module) {
    if (py_module_add_type(module, "_cgxffcv.Tensor", sizeof(TensorObject), Py_TPFLAGS_DISALLOW_INSTANTIATION,
                           tensor_slots, &py_module_state(module)->tensor_type) < 0)
        return -1;
    if (py_tensor_streams_add(module) < 0) return -1;
    return PyModule_AddFunctions(module, functions);
}
