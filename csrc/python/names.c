/* The core's lists of names as tuples of the module, for what Python checks or offers by itself. */
#include "base/names.h"
#include "allreduce/allreduce.h"
#include "augment/augment.h"
#include "beton/writer.h"
#include "nn/model.h"
#include "python/module.h"

static const struct {
    const char *attribute;
    NamesOf names;
} lists[] = {
    {"ALLREDUCE_ALGORITHMS", allreduce_algorithm_name},
    {"ALLREDUCE_DTYPES", allreduce_type_name},
    {"ALLREDUCE_OPS", allreduce_op_name},
    {"CODECS", quantize_codec_name},
    {"QUANTIZED_DTYPES", quantize_type_name},
    {"ROUNDINGS", quantize_rounding_name},
    {"SCALES", quantize_scale_name},
    {"FIELD_DTYPES", beton_dtype_name},
    {"IMAGE_TYPES", augment_type_name},
    {"WRITE_MODES", beton_write_mode_name},
    {"LAYER_KINDS", nn_layer_kind_name},
};

static PyObject *tuple_of(NamesOf names) {
    int count = 0;
    while (names(count) != NULL) count++;
    PyObject *tuple = PyTuple_New(count);
    for (int i = 0; tuple != NULL && i < count; i++) {
        PyObject *name = PyUnicode_FromString(names(i));
        if (name == NULL) Py_CLEAR(tuple);
        if (name != NULL) PyTuple_SET_ITEM(tuple, i, name);
    }
    return tuple;
}

int py_names_add(PyObject *module) {
    for (size_t i = 0; i < sizeof lists / sizeof *lists; i++) {
        PyObject *tuple = tuple_of(lists[i].names);
        if (tuple == NULL || PyModule_AddObjectRef(module, lists[i].attribute, tuple) < 0) return -1;
        Py_DECREF(tuple);
    }
    return 0;
}
