/* Exports the dict of the CUDA array interface; cgxffcv.tensors imports those of others. */
#include "python/cuda_array.h"

#include "python/results.h"

#define LEGACY_STREAM 1 /* the interface's number of the default stream */

/* As in NumPy's typestr, which has no bfloat16. */
static const char kinds[ALLREDUCE_TYPES] = {
    [ALLREDUCE_F32] = 'f', [ALLREDUCE_F16] = 'f', [ALLREDUCE_F64] = 'f', [ALLREDUCE_I8] = 'i',
    [ALLREDUCE_U8] = 'u',  [ALLREDUCE_I16] = 'i', [ALLREDUCE_U16] = 'u', [ALLREDUCE_I32] = 'i',
    [ALLREDUCE_U32] = 'u', [ALLREDUCE_I64] = 'i', [ALLREDUCE_U64] = 'u',
};

const char *py_cuda_array_refusal(const PyTensor *tensor) {
    if (tensor->device < 0) return "it is in host memory";
    if (kinds[tensor->type] == 0) return "it has no name for bfloat16; DLPack has one";
    return tensor->contiguous ? NULL : "it is not in C order";
}

PyObject *py_cuda_array_describe(const PyTensor *tensor, bool ordered) {
    const size_t bytes = allreduce_type_bytes(tensor->type);
    PyObject *shape = py_results_shape(tensor->shape, tensor->ndim), *result = NULL;
    PyObject *stream = ordered ? PyLong_FromLong(LEGACY_STREAM) : Py_NewRef(Py_None);
    PyObject *type = PyUnicode_FromFormat("%c%c%zu", bytes == 1 ? '|' : '<', kinds[tensor->type], bytes);
    PyObject *address = PyLong_FromVoidPtr(tensor->elems == 0 ? NULL : tensor->data);
    if (shape != NULL && stream != NULL && type != NULL && address != NULL) {
        result =
            Py_BuildValue("{sOsOs(OO)sOsOsi}", "shape", shape, "typestr", type, "data", address,
                          tensor->writable ? Py_False : Py_True, "strides", Py_None, "stream", stream, "version", 3);
    }
    Py_XDECREF(shape);
    Py_XDECREF(stream);
    Py_XDECREF(type);
    Py_XDECREF(address);
    return result;
}
