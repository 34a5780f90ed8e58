/* Outputs and image operations from plain Python tuples, which cgxffcv/pipeline/compile.py makes. */
#include "python/loader_spec.h"

#include <string.h>

#include "python/arguments.h"

typedef struct Name {
    const char *name;
    int value;
} Name;

static const Name types[] = {
    {"uint8", IMAGE_U8}, {"float32", IMAGE_F32}, {"float16", IMAGE_F16}, {"bfloat16", IMAGE_BF16}, {NULL, 0}};
static const Name layouts[] = {{"hwc", IMAGE_HWC}, {"chw", IMAGE_CHW}, {NULL, 0}};
static const Name kinds[] = {{"flip", AUGMENT_FLIP}, {"alternate", AUGMENT_ALTERNATE}, {"translate", AUGMENT_TRANSLATE},
                             {"crop", AUGMENT_CROP}, {"cutout", AUGMENT_CUTOUT},       {NULL, 0}};

static int look_up(const Name *names, const char *name, const char *what, int *value) {
    for (; names->name != NULL; names++) {
        if (strcmp(names->name, name) != 0) continue;
        *value = names->value;
        return 0;
    }
    PyErr_Format(PyExc_ValueError, "unknown %s '%s'", what, name);
    return -1;
}

static int parse_op(PyObject *item, AugmentOp *op) {
    const char *name;
    int kind, reflect, normalized;
    unsigned occurrence, list;
    if (arguments_unpack(item, "sIIfiiipp(ddd);an image operation is a tuple of 10", &name, &occurrence, &list,
                         &op->probability, &op->padding, &op->height, &op->width, &reflect, &normalized, &op->fill[0],
                         &op->fill[1], &op->fill[2]) < 0 ||
        look_up(kinds, name, "image operation", &kind) < 0) {
        return -1;
    }
    op->kind = (AugmentKind)kind;
    op->draw = crop_draw_index((CropDraw)kind, occurrence, list);
    op->reflect = reflect != 0;
    op->normalized = normalized != 0;
    return 0;
}

int loader_spec_parse_ops(PyObject *ops, AugmentSpec *spec) {
    Py_ssize_t count = PyTuple_GET_SIZE(ops);
    if (count > AUGMENT_MAX_OPS) {
        PyErr_Format(PyExc_ValueError, "at most %d image operations fit one pipeline, not %zd", AUGMENT_MAX_OPS, count);
        return -1;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        if (parse_op(PyTuple_GET_ITEM(ops, i), &spec->ops[i]) < 0) return -1;
    }
    spec->op_count = (int)count;
    return 0;
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
        loader_spec_parse_ops(ops, spec) < 0 || parse_normalize(normalize, spec) < 0) {
        return -1;
    }
    spec->type = (ImageType)type;
    spec->layout = (ImageLayout)layout;
    return 0;
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
        LoaderOutput *output = &out->outputs[i];
        PyObject *image;
        const char *decoder_name;
        int fast;
        *output = (LoaderOutput){0};
        if (arguments_unpack(PyTuple_GET_ITEM(sequence, i), "sspO;an output is a tuple of 4", &output->field,
                             &decoder_name, &fast, &image) < 0) {
            return -1;
        }
        if (!loader_decoder_find(decoder_name, &output->decoder)) {
            PyErr_Format(PyExc_ValueError, "unknown decoder '%s'", decoder_name);
            return -1;
        }
        output->fast_jpeg = fast != 0;
        if (image == Py_None) continue;
        if (parse_image(image, &out->images[i]) < 0) return -1;
        output->image = &out->images[i];
    }
    return 0;
}
