/* Arrays of any framework, in host memory or on a GPU, as the core sees them. The type Tensor holds one and keeps its
 * memory alive. */
#ifndef CGXFFCV_PYTHON_TENSOR_H
#define CGXFFCV_PYTHON_TENSOR_H

#include "allreduce/allreduce.h"
#include "python/array.h"

typedef struct PyTensor {
    void *data; /* NULL only without elements */
    AllreduceType type;
    int ndim;
    int64_t shape[ARRAY_MAX_DIMS];
    int64_t elems;
    int device; /* the number of the GPU; -1: host memory */
    bool writable;
    bool contiguous; /* in C order */
} PyTensor;

/* What a Tensor object holds, as long as the object lives; NULL with an exception set that names `argument`. */
const PyTensor *py_tensor_of(ModuleState *state, PyObject *object, const char *argument);

/* The same for an object known to be one; needs no GIL. */
const PyTensor *py_tensor_unchecked(PyObject *object);

/* A new Tensor of memory that `owner` keeps alive together with `ready` (or NULL), the event after which the memory is
 * complete on its GPU. NULL with an exception set. */
PyObject *py_tensor_over(ModuleState *state, const PyTensor *tensor, DeviceEvent *ready, PyObject *owner);

/* What keeps the memory of an object known to be a Tensor alive, borrowed from it; NULL if it is the object itself. */
PyObject *py_tensor_owner(PyObject *object);

/* The element type that is `type` in NumPy; -1 with an exception set if there is none. */
int py_tensor_type_of(ArrayType type);

size_t py_tensor_bytes(const PyTensor *tensor);
/* The NumPy type that represents elements of that type. */
ArrayType py_tensor_array_type(AllreduceType type);

/* Fills `elems` and `contiguous` from the shape and the strides (NULL: C order), which are in units of `unit` bytes,
 * and checks that the array can be where it claims to be. -1 with an exception set. */
int py_tensor_measure(ModuleState *state, PyTensor *tensor, const int64_t *strides, int64_t unit);

/* Switches the calling thread to another GPU until it leaves; device -1 changes nothing. Leaving keeps the error
 * record; after entering has failed, it does nothing. */
typedef struct PyTensorDeviceGuard {
    int before; /* -1: nothing to go back to */
} PyTensorDeviceGuard;
Status py_tensor_device_enter(int device, PyTensorDeviceGuard *guard);
void py_tensor_device_leave(const PyTensorDeviceGuard *guard);

/* A stream as a number, as in Python: 0 and 1 are the default stream, 2 is the thread's. -1 with an exception. */
int py_tensor_parse_stream(PyObject *object, DeviceStream **out);

/* tensor_streams.c: device_order; 0 or -1. */
int py_tensor_streams_add(PyObject *module);

#endif
