/* The core's lists of names as tuples of the module, for what Python checks or offers by itself. */
#include "base/names.h"
#include "allreduce/allreduce.h"
#include "augment/augment.h"
#include "beton/writer.h"
#include "nn/model.h"
#include "python/results.h"

static const struct {
    const char *attribute;
    NamesOf names;
} lists[] = {
    {"ALLREDUCE_ALGORITHMS", allreduce_algorithm_name},
    {"ALLREDUCE_DTYPES", allreduce_type_name},
    {"ALLREDUCE_FEEDBACKS", allreduce_feedback_name},
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
    for (int i = 0; tuple != NULL && i < count; i++) tuple = py_results_put(tuple, i, PyUnicode_FromString(names(i)));
    return tuple;
}

/* The maximum bits of each codec. */
static PyObject *codec_bits(void) {
    PyObject *dict = PyDict_New();
    for (int codec = 0; dict != NULL && codec < QUANT_CODEC_COUNT; codec++) {
        PyObject *bits = PyLong_FromLong(quantize_codec_bits((QuantCodec)codec));
        bool set = bits != NULL && PyDict_SetItemString(dict, quantize_codec_name(codec), bits) == 0;
        Py_XDECREF(bits);
        if (!set) Py_CLEAR(dict);
    }
    return dict;
}

static int add_once(PyObject *module, const char *attribute, PyObject *value) {
    int added = value == NULL ? -1 : PyModule_AddObjectRef(module, attribute, value);
    Py_XDECREF(value);
    return added;
}

int py_names_add(PyObject *module) {
    for (size_t i = 0; i < sizeof lists / sizeof *lists; i++) {
        if (add_once(module, lists[i].attribute, tuple_of(lists[i].names)) < 0) return -1;
    }
    return add_once(module, "CODEC_BITS", codec_bits());
}
