/* Outputs from plain Python tuples, which cgxffcv/pipeline/compile.py makes. */
#include "python/loader_spec.h"

#include <string.h>

#include "python/arguments.h"
#include "python/operations.h"
#include "python/spec.h"

typedef struct Name {
    const char *name;
    int value;
} Name;

static const Name types[] = {
    {"uint8", IMAGE_U8}, {"float32", IMAGE_F32}, {"float16", IMAGE_F16}, {"bfloat16", IMAGE_BF16}, {NULL, 0}};
static const Name layouts[] = {{"hwc", IMAGE_HWC}, {"chw", IMAGE_CHW}, {NULL, 0}};

static int look_up(const Name *names, const char *name, const char *what, int *value) {
    for (; names->name != NULL; names++) {
        if (strcmp(names->name, name) != 0) continue;
        *value = names->value;
        return 0;
    }
    PyErr_Format(PyExc_ValueError, "unknown %s '%s'", what, name);
    return -1;
}

static int parse_normalize(PyObject *normalize, AugmentSpec *spec) {
    const char *type_name;
    int type;
    if (normalize == Py_None) return 0;
    if (arguments_unpack(normalize, "(ddd)(ddd)s;normalisation is a tuple of 3", &spec->mean[0], &spec->mean[1],
                         &spec->mean[2], &spec->std[0], &spec->std[1], &spec->std[2], &type_name) < 0 ||
        look_up(types, type_name, "image type", &type) < 0) {
        return -1;
    }
    spec->normalize = true;
    spec->normalized_type = (ImageType)type;
    return 0;
}

static int parse_image(PyObject *image, AugmentSpec *spec) {
    PyObject *ops, *normalize;
    const char *type_name, *layout_name;
    int type, layout;
    *spec = (AugmentSpec){0};
    if (arguments_unpack(image, "O!Oss;an image output is a tuple of 4", &PyTuple_Type, &ops, &normalize, &type_name,
                         &layout_name) < 0 ||
        look_up(types, type_name, "image type", &type) < 0 || look_up(layouts, layout_name, "layout", &layout) < 0 ||
        operations_parse(ops, "one pipeline", AUGMENT_MAX_OPS, spec->ops, &spec->op_count) < 0 ||
        parse_normalize(normalize, spec) < 0) {
        return -1;
    }
    spec->type = (ImageType)type;
    spec->layout = (ImageLayout)layout;
    return 0;
}

static int parse_shape(PyObject *shape, LoaderFunction *function) {
    uint64_t side;
    PyObject *sides = arguments_tuple(shape, "the function's shape", 0, LOADER_MAX_DIMS);
    if (sides == NULL) return -1;
    function->ndim = (int)PyTuple_GET_SIZE(sides);
    for (int i = 0; i < function->ndim; i++) {
        if (arguments_whole(PyTuple_GET_ITEM(sides, i), "the function's shape", 0, INT64_MAX, &side) < 0) break;
        function->shape[i] = side;
    }
    Py_DECREF(sides);
    return PyErr_Occurred() ? -1 : 0;
}

static int parse_function(PyObject *item, LoaderFunction *function) {
    unsigned long long address;
    PyObject *dtype, *shape;
    if (arguments_unpack(item, "KOO;a function is a tuple of 3", &address, &dtype, &shape) < 0) return -1;
    int type = spec_name(dtype, "the function's dtype", beton_dtype_name);
    if (type < 0) return -1;
    function->call = (LoaderRow)(uintptr_t)address;
    function->dtype = (BetonDtype)type;
    return parse_shape(shape, function);
}

static int parse_output(PyObject *item, LoaderSpec *out, size_t i) {
    LoaderOutput *output = &out->outputs[i];
    PyObject *decoder, *more;
    int fast;
    *output = (LoaderOutput){0};
    if (arguments_unpack(item, "sOpO;an output is a tuple of 4", &output->field, &decoder, &fast, &more) < 0) return -1;
    int number = spec_name(decoder, "a decoder", loader_decoder_name);
    if (number < 0) return -1;
    output->decoder = (LoaderDecoder)number;
    output->fast_jpeg = fast != 0;
    if (more == Py_None) return 0;
    if (output->decoder == LOADER_FUNCTION) {
        output->function = &out->functions[i];
        return parse_function(more, &out->functions[i]);
    }
    output->image = &out->images[i];
    return parse_image(more, &out->images[i]);
}

int loader_spec_parse(PyObject *sequence, LoaderSpec *out) {
    if (!PyTuple_Check(sequence)) {
        PyErr_SetString(PyExc_TypeError, "outputs must be a tuple");
        return -1;
    }
    Py_ssize_t count = PyTuple_GET_SIZE(sequence);
    if (count > LOADER_SPEC_MAX_OUTPUTS) {
        PyErr_Format(PyExc_ValueError, "a loader has at most %d outputs, not %zd", LOADER_SPEC_MAX_OUTPUTS, count);
        return -1;
    }
    out->count = (size_t)count;
    for (Py_ssize_t i = 0; i < count; i++) {
        if (parse_output(PyTuple_GET_ITEM(sequence, i), out, (size_t)i) < 0) return -1;
    }
    return 0;
}
