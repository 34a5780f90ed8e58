#include "python/loader_spec.h"

#include <stddef.h>
#include <string.h>

#include "base/memory.h"
#include "python/arguments.h"
#include "python/operations.h"
#include "python/spec.h"

#define OUTPUTS "outputs of a loader"
#define MAX_OUTPUTS UINT16_MAX /* as many as a file can have fields */

/* ---- an image ---- */

static int parse_channels(PyObject *value, void *out) {
    AugmentChannels *channels = out;
    const Py_ssize_t given = PyTuple_Check(value) ? PyTuple_GET_SIZE(value) : 0;
    if (given < 1 || given > AUGMENT_MAX_CHANNELS) {
        return PY_REFUSE(PyExc_TypeError, "mean and std must be tuples of one to four numbers");
    }
    for (Py_ssize_t c = 0; c < given; c++) {
        channels->value[c] = PyFloat_AsDouble(PyTuple_GET_ITEM(value, c));
        if (channels->value[c] == -1 && PyErr_Occurred()) return -1;
    }
    channels->count = py_operations_spread(channels->value, (int)given);
    return 0;
}

static const SpecTable normalize_table = {"normalisation",
                                          {SPEC_PARSE(AugmentSpec, mean, parse_channels),
                                           SPEC_PARSE(AugmentSpec, std, parse_channels),
                                           SPEC_ENUM_KEY(AugmentSpec, normalized_type, "type", augment_type_name)}};

static int parse_normalize(PyObject *value, void *out) {
    AugmentSpec *spec = out;
    spec->normalize = value != Py_None;
    return spec->normalize ? py_spec_fill(&normalize_table, value, NULL, spec) : 0;
}

static int parse_operations(PyObject *value, void *out) {
    AugmentSpec *spec = out;
    const LoaderColumn *column = (const LoaderColumn *)((char *)out - offsetof(LoaderColumn, image));
    return py_operations_parse(value, column->keep, "one pipeline", AUGMENT_MAX_OPS, spec->ops, &spec->op_count);
}

static const SpecTable image_table = {
    "image",
    {SPEC_WHOLE("operations", parse_operations), SPEC_WHOLE("normalize", parse_normalize),
     SPEC_ENUM(AugmentSpec, type, augment_type_name), SPEC_ENUM(AugmentSpec, layout, augment_layout_name)}};

static int parse_image(PyObject *value, void *out) {
    LoaderColumn *column = out;
    if (value == Py_None) return 0;
    column->output.image = &column->image;
    return py_spec_fill(&image_table, value, NULL, &column->image);
}

static int parse_labels(PyObject *value, void *out) {
    LoaderColumn *column = out;
    column->output.labels = column->labels;
    return py_operations_parse(value, column->keep, "a label's pipeline", LOADER_MAX_LABEL_OPS, column->labels,
                               &column->output.label_count);
}

/* ---- a function ---- */

_Static_assert(sizeof(LoaderRow) == sizeof(uintptr_t) && sizeof(LoaderMap) == sizeof(uintptr_t), "they are addresses");

/* `function` points to a pointer to a function of any type. */
static int parse_address(PyObject *value, void *function) {
    uint64_t number;
    if (py_arguments_whole(value, "a function's address", 0, UINTPTR_MAX, &number) < 0) return -1;
    const uintptr_t address = (uintptr_t)number;
    memcpy(function, &address, sizeof address);
    return 0;
}

static int parse_function_side(PyObject *item, void *out) {
    return py_arguments_whole(item, "the function's shape", 0, INT64_MAX, out);
}

static int parse_function_shape(PyObject *value, void *out) {
    LoaderFunction *function = out;
    function->ndim = py_arguments_fill(value, "dimensions of the function's shape", 0, LOADER_MAX_DIMS,
                                       parse_function_side, function->shape, sizeof *function->shape);
    return function->ndim < 0 ? -1 : 0;
}

static const SpecTable function_table = {"function",
                                         {SPEC_PARSE_KEY(LoaderFunction, call, "address", parse_address),
                                          SPEC_ENUM(LoaderFunction, dtype, beton_dtype_name),
                                          SPEC_WHOLE("shape", parse_function_shape)}};

static int parse_function(PyObject *value, void *out) {
    LoaderColumn *column = out;
    if (value == Py_None) return 0;
    column->output.function = &column->function;
    return py_spec_fill(&function_table, value, NULL, &column->function);
}

/* ---- functions after the decoder ---- */

static int parse_step_shape(PyObject *value, void *out) {
    LoaderStep *step = out;
    step->ndim = py_arguments_fill(value, "dimensions of the function's shape", 0, LOADER_MAX_DIMS, parse_function_side,
                                   step->shape, sizeof *step->shape);
    return step->ndim < 0 ? -1 : 0;
}

static const SpecTable step_table = {"a function",
                                     {SPEC_PARSE_KEY(LoaderStep, call, "address", parse_address),
                                      SPEC_MEMBER(LoaderStep, same), SPEC_ENUM(LoaderStep, dtype, beton_dtype_name),
                                      SPEC_WHOLE("shape", parse_step_shape)}};

static int parse_step(PyObject *value, void *out) { return py_spec_fill(&step_table, value, NULL, out); }

static int parse_steps(PyObject *value, void *out) {
    LoaderColumn *column = out;
    column->output.steps = column->steps;
    column->output.step_count = py_arguments_fill(value, "functions of a pipeline", 0, LOADER_MAX_STEPS, parse_step,
                                                  column->steps, sizeof *column->steps);
    return column->output.step_count < 0 ? -1 : 0;
}

/* ---- a crop ---- */

static int parse_limits(PyObject *value, void *out) {
    double *limits = out;
    return py_arguments_unpack(value, "dd;scale and ratio must be tuples of 2 numbers", &limits[0], &limits[1]);
}

static const SpecTable crop_table = {
    "crop",
    {SPEC_MEMBER(LoaderCrop, height), SPEC_MEMBER(LoaderCrop, width), SPEC_PARSE(LoaderCrop, scale, parse_limits),
     SPEC_PARSE(LoaderCrop, ratio, parse_limits), SPEC_ENUM(LoaderCrop, filter, resize_filter_name),
     SPEC_MEMBER(LoaderCrop, shrinks), SPEC_MEMBER(LoaderCrop, list)}};

static int parse_crop(PyObject *value, void *out) {
    LoaderColumn *column = out;
    if (value == Py_None) return 0;
    column->output.crop = &column->crop;
    return py_spec_fill(&crop_table, value, NULL, &column->crop);
}

/* ---- a move to a GPU ---- */

/* The image's operations before the move; one may become several in the core. */
static int parse_before(PyObject *value, void *out) {
    LoaderOutput *output = out;
    const LoaderColumn *column = (const LoaderColumn *)((char *)out - offsetof(LoaderColumn, output));
    AugmentOp ops[AUGMENT_MAX_OPS];
    int result = py_operations_parse(value, column->keep, "one pipeline", AUGMENT_MAX_OPS, ops, &output->front);
    if (result == 0 && output->front > column->image.op_count) {
        return PY_REFUSE(PyExc_ValueError, "there are more operations before a move than in total");
    }
    return result;
}

static const SpecTable move_table = {"move",
                                     {SPEC_WHOLE("before", parse_before), SPEC_MEMBER(LoaderOutput, process_on_device),
                                      SPEC_MEMBER(LoaderOutput, only_if_processed)}};

static int parse_move(PyObject *value, void *out) {
    LoaderColumn *column = out;
    column->output.moves = value != Py_None;
    return column->output.moves ? py_spec_fill(&move_table, value, NULL, &column->output) : 0;
}

/* ---- the loader ---- */

static const SpecTable output_table = {
    "an output",
    {SPEC_MEMBER(LoaderColumn, field), SPEC_ENUM_KEY(LoaderColumn, output.decoder, "decoder", loader_decoder_name),
     SPEC_KEY(LoaderColumn, output.fast_jpeg, "fast_jpeg"), SPEC_WHOLE("image", parse_image),
     SPEC_WHOLE("labels", parse_labels), SPEC_WHOLE("function", parse_function), SPEC_WHOLE("crop", parse_crop),
     SPEC_WHOLE("steps", parse_steps), SPEC_WHOLE("move", parse_move)}};

static int parse_output(PyObject *item, void *out) {
    LoaderColumn *column = out;
    *column = (LoaderColumn){.output.field = column->field, .keep = column->keep};
    return py_spec_fill(&output_table, item, NULL, column);
}

/* The number of a GPU, or None. */
static int parse_page_locked(PyObject *value, void *out) {
    LoaderConfig *config = out;
    uint64_t device = 0;
    config->page_locked = value != Py_None;
    if (config->page_locked && py_arguments_whole(value, "page_locked", 0, INT32_MAX, &device) < 0) return -1;
    config->page_locker = (int)device;
    return 0;
}

static const SpecTable settings_table = {
    "Loader",
    {SPEC_MEMBER(LoaderConfig, batch_size), SPEC_ENUM(LoaderConfig, order, loader_order_name),
     SPEC_MEMBER(LoaderConfig, window_pages), SPEC_MEMBER(LoaderConfig, seed), SPEC_MEMBER(LoaderConfig, workers),
     SPEC_MEMBER(LoaderConfig, batches_ahead), SPEC_MEMBER(LoaderConfig, world_size), SPEC_MEMBER(LoaderConfig, rank),
     SPEC_MEMBER(LoaderConfig, drop_last), SPEC_MEMBER(LoaderConfig, resident), SPEC_MEMBER(LoaderConfig, read_ahead),
     SPEC_MEMBER(LoaderConfig, blank_damaged), SPEC_MEMBER(LoaderConfig, skip_damaged),
     SPEC_MEMBER(LoaderConfig, device), SPEC_WHOLE("page_locked", parse_page_locked)}};

static int parse_outputs(PyObject *outputs, LoaderSpec *out) {
    PyObject *items = py_arguments_tuple(outputs, OUTPUTS, 0, MAX_OUTPUTS);
    int count = -1;
    if (items == NULL) return -1;
    const size_t given = (size_t)PyTuple_GET_SIZE(items);
    if (memory_calloc(given + 1, sizeof *out->columns, &out->columns) != STATUS_OK ||
        memory_calloc(given + 1, sizeof *out->outputs, &out->outputs) != STATUS_OK) {
        PyErr_NoMemory();
    } else {
        for (size_t i = 0; i < given; i++) out->columns[i].keep = out->keep;
        count = py_arguments_fill(items, OUTPUTS, 0, MAX_OUTPUTS, parse_output, out->columns, sizeof *out->columns);
    }
    Py_DECREF(items);
    for (int i = 0; i < count; i++) out->outputs[i] = out->columns[i].output;
    out->config.outputs = out->outputs;
    out->config.output_count = count < 0 ? 0 : (size_t)count;
    return count < 0 ? -1 : 0;
}

int py_loader_spec_parse(PyObject *outputs, PyObject *settings, LoaderSpec *out) {
    *out = (LoaderSpec){.config = loader_config_default()};
    if (py_spec_fill(&settings_table, settings, NULL, &out->config) < 0) return -1;
    out->keep = PyList_New(0);
    return out->keep == NULL ? -1 : parse_outputs(outputs, out);
}

void py_loader_spec_clear(LoaderSpec *spec) {
    Py_CLEAR(spec->keep);
    memory_free(spec->columns);
    memory_free(spec->outputs);
    *spec = (LoaderSpec){.config = loader_config_default()};
}
