/* _cgxffcv.Model: a network's parameters, gradients and running statistics as NumPy views. */
#include "python/nn.h"

#include <string.h>

#include "python/arguments.h"
#include "python/array.h"

ModelObject *nn_take_model(ModuleState *state, PyObject *object) {
    if (PyObject_TypeCheck(object, (PyTypeObject *)state->model_type)) return (ModelObject *)object;
    PyErr_Format(PyExc_TypeError, "expected a Model, not %.100s", Py_TYPE(object)->tp_name);
    return NULL;
}

int nn_enter(ModelObject *model) {
    if (model->busy) {
        PyErr_SetString(PyExc_RuntimeError, "this model is in use by another thread");
        return -1;
    }
    model->busy = true;
    return 0;
}

void nn_leave(ModelObject *model) { model->busy = false; }

static int parse_node(PyObject *item, NnNodeDesc *node) {
    const char *name;
    int kind, activation, init, frozen, bias, bias_init, pool_place, residual_place, scale;
    if (arguments_unpack(item, "isiiiiiiippiiiiipddd;a node is a tuple of 20", &kind, &name, &node->block, &activation,
                         &node->out_channels, &init, &node->kernel, &node->stride, &node->padding, &frozen, &bias,
                         &bias_init, &pool_place, &node->pool, &residual_place, &node->residual, &scale, &node->eps,
                         &node->keep, &node->scale) < 0) {
        return -1;
    }
    if (strlen(name) >= sizeof node->name) {
        PyErr_Format(PyExc_ValueError, "the name \"%s\" is longer than %d bytes", name, NN_NAME_BYTES - 1);
        return -1;
    }
    strcpy(node->name, name);
    node->kind = (NnNodeKind)kind;
    node->activation = (Activation)activation;
    node->init = (Initialisation)init;
    node->frozen_filters = frozen != 0;
    node->bias = bias != 0;
    node->bias_init = (Initialisation)bias_init;
    node->pool_place = (PoolPlace)pool_place;
    node->residual_place = (ResidualPlace)residual_place;
    node->scale_trained = scale != 0;
    return 0;
}

static int parse_desc(PyObject *nodes, NnModelDesc *desc) {
    PyObject *tuple = arguments_tuple(nodes, "nodes", 1, NN_MAX_NODES);
    if (tuple == NULL) return -1;
    int result = 0;
    desc->count = (int)PyTuple_GET_SIZE(tuple);
    for (int i = 0; i < desc->count && result == 0; i++) {
        result = parse_node(PyTuple_GET_ITEM(tuple, i), &desc->nodes[i]);
    }
    Py_DECREF(tuple);
    return result;
}

static int parse_name(const char *argument, const char *value, const char *const *names, int count) {
    char allowed[128] = "";
    for (int i = 0; i < count; i++) {
        if (strcmp(value, names[i]) == 0) return i;
        size_t used = strlen(allowed);
        PyOS_snprintf(allowed + used, sizeof allowed - used, "%s%s", i == 0 ? "" : ", ", names[i]);
    }
    PyErr_Format(PyExc_ValueError, "%s must be one of %s, not \"%s\"", argument, allowed, value);
    return -1;
}

static const char *const backend_names[] = {"cpu", "cuda"};
static const char *const convolution_names[] = {"auto", "direct", "winograd2", "winograd4"};
static const char *const precision_names[] = {"auto", "float32", "bfloat16", "float16"};

static PyObject *model_new(PyTypeObject *type, PyObject *args, PyObject *keywords) {
    static char *names[] = {"nodes",       "image_channels", "backend",       "precision",
                            "convolution", "threads",        "deterministic", NULL};
    const char *backend = "cpu", *precision = "auto", *convolution = "auto";
    PyObject *nodes;
    NnModelDesc desc = {.image_channels = 3};
    NnModelOptions options = {0};
    int deterministic = 0;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "O|isssip", names, &nodes, &desc.image_channels, &backend,
                                     &precision, &convolution, &options.threads, &deterministic)) {
        return NULL;
    }
    int chosen_backend = parse_name("backend", backend, backend_names, 2);
    int chosen_precision = chosen_backend < 0 ? -1 : parse_name("precision", precision, precision_names, 4);
    int method = chosen_precision < 0 ? -1 : parse_name("convolution", convolution, convolution_names, 4);
    if (method < 0 || parse_desc(nodes, &desc) < 0) return NULL;
    options.backend = (BackendKind)chosen_backend;
    options.precision = (Precision)chosen_precision;
    options.convolution = (Convolution)method;
    options.deterministic = deterministic != 0;
    ModelObject *self = (ModelObject *)type->tp_alloc(type, 0);
    if (self == NULL) return NULL;
    Status status = nn_model_create(&desc, &options, &self->model);
    if (status == STATUS_OK) status = nn_mirrors_init(self);
    if (status == STATUS_OK) return (PyObject *)self;
    Py_DECREF(self);
    return errors_raise(module_state_of_type(type), status);
}

static void model_dealloc(ModelObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    nn_mirrors_fini(self);
    nn_model_destroy(self->model);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *model_initialise_method(ModelObject *self, PyObject *seed) {
    unsigned long long value = PyLong_AsUnsignedLongLong(seed);
    if (value == (unsigned long long)-1 && PyErr_Occurred()) return NULL;
    if (nn_enter(self) < 0) return NULL;
    Status status;
    Py_BEGIN_ALLOW_THREADS;
    status = nn_upload(self);
    if (status == STATUS_OK) status = nn_model_initialise(self->model, value);
    if (status == STATUS_OK) status = nn_download(self);
    Py_END_ALLOW_THREADS;
    nn_leave(self);
    if (status != STATUS_OK) return errors_raise(module_state_of_type(Py_TYPE(self)), status);
    Py_RETURN_NONE;
}

int nn_parse_block(PyObject *object, int *out) {
    static const long most = 1 << 20;
    long block = PyLong_AsLong(object);
    if (block == -1 && PyErr_Occurred()) return -1;
    *out = block < 0 ? 0 : block > most ? (int)most : (int)block;
    return 0;
}

static PyObject *model_gradient_elems_method(ModelObject *self, PyObject *first_block) {
    int block;
    if (nn_parse_block(first_block, &block) < 0) return NULL;
    return PyLong_FromSize_t(nn_model_gradient_elems(self->model, block));
}

PyObject *nn_layer_shape(const NnLayer *layer) {
    PyObject *shape = PyTuple_New(layer->ndim);
    for (int i = 0; shape != NULL && i < layer->ndim; i++) {
        PyObject *size = PyLong_FromLongLong(layer->shape[i]);
        if (size == NULL) Py_CLEAR(shape);
        if (size != NULL) PyTuple_SET_ITEM(shape, i, size);
    }
    return shape;
}

static PyObject *describe_layer(const NnLayer *layer) {
    static const char *const kinds[] = {"filters", "bias", "norm_scale", "norm_bias", "linear"};
    PyObject *shape = nn_layer_shape(layer);
    if (shape == NULL) return NULL;
    return Py_BuildValue("(ssiiNNnn)", layer->name, kinds[layer->kind], layer->node, layer->block,
                         PyBool_FromLong(layer->trained), shape, (Py_ssize_t)layer->offset, (Py_ssize_t)layer->elems);
}

static PyObject *get_layers(ModelObject *self, void *closure) {
    int count;
    const NnLayer *layers = nn_model_layers(self->model, &count);
    PyObject *list = PyList_New(count);
    (void)closure;
    for (int i = 0; list != NULL && i < count; i++) {
        PyObject *layer = describe_layer(&layers[i]);
        if (layer == NULL) Py_CLEAR(list);
        if (layer != NULL) PyList_SET_ITEM(list, i, layer);
    }
    return list;
}

static PyObject *get_statistics(ModelObject *self, void *closure) {
    int count;
    const NnStatistic *statistics = nn_model_statistics(self->model, &count);
    PyObject *list = PyList_New(count);
    (void)closure;
    for (int i = 0; list != NULL && i < count; i++) {
        const NnStatistic *s = &statistics[i];
        PyObject *item = Py_BuildValue("(siinnn)", s->name, s->node, s->block, (Py_ssize_t)s->mean_offset,
                                       (Py_ssize_t)s->variance_offset, (Py_ssize_t)s->channels);
        if (item == NULL) Py_CLEAR(list);
        if (item != NULL) PyList_SET_ITEM(list, i, item);
    }
    return list;
}

static PyObject *wrap_buffer(ModelObject *self, ModelBuffer buffer) {
    int64_t shape = (int64_t)nn_buffer_elems(self, buffer);
    return array_wrap(ARRAY_F32, 1, &shape, NULL, nn_buffer_data(self, buffer), (PyObject *)self, true);
}

static PyObject *get_parameters(ModelObject *self, void *closure) {
    (void)closure;
    return wrap_buffer(self, MODEL_PARAMETERS);
}

static PyObject *get_gradients(ModelObject *self, void *closure) {
    (void)closure;
    return wrap_buffer(self, MODEL_GRADIENTS);
}

static PyObject *get_running(ModelObject *self, void *closure) {
    (void)closure;
    return wrap_buffer(self, MODEL_RUNNING);
}

static PyObject *get_precision(ModelObject *self, void *closure) {
    (void)closure;
    return PyUnicode_FromString(precision_names[nn_model_precision(self->model)]);
}

static PyObject *get_backend(ModelObject *self, void *closure) {
    (void)closure;
    return PyUnicode_FromString(nn_model_backend(self->model));
}

static PyObject *get_threads(ModelObject *self, void *closure) {
    (void)closure;
    return PyLong_FromLong(pool_threads(nn_model_pool(self->model)));
}

static PyMethodDef model_methods[] = {
    {"initialise", (PyCFunction)(void (*)(void))model_initialise_method, METH_O,
     "initialise(seed)\n--\n\nEvery trained layer from its description, a pure function of the seed and the layer's "
     "name;\n"
     "running means 0, variances 1."},
    {"gradient_elems", (PyCFunction)(void (*)(void))model_gradient_elems_method, METH_O,
     "gradient_elems(first_block)\n--\n\nThe length of the prefix of `gradients` that belongs to blocks from this one "
     "on."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef model_getset[] = {
    {"layers", (getter)get_layers, NULL,
     "List of (name, kind, node, block, trained, shape, offset, elems) in the order of the buffers.", NULL},
    {"statistics", (getter)get_statistics, NULL,
     "List of (name, node, block, mean offset, variance offset, channels) of `running`.", NULL},
    {"parameters", (getter)get_parameters, NULL, "All parameters: float32, one dimension, a view.", NULL},
    {"gradients", (getter)get_gradients, NULL, "Gradients of the trained parameters: float32, a view.", NULL},
    {"running", (getter)get_running, NULL, "Running means and variances: float32, a view.", NULL},
    {"precision", (getter)get_precision, NULL, "\"float32\", \"bfloat16\" or \"float16\".", NULL},
    {"backend", (getter)get_backend, NULL, "\"cpu\" or \"cuda\".", NULL},
    {"threads", (getter)get_threads, NULL, "Threads that a step uses.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot model_slots[] = {
    {Py_tp_new, model_new},
    {Py_tp_dealloc, model_dealloc},
    {Py_tp_methods, model_methods},
    {Py_tp_getset, model_getset},
    {Py_tp_doc, "Model(nodes, image_channels=3, backend='cpu', precision='auto', convolution='auto', threads=0, "
                "deterministic=False)\n\n"
                "A network's parameters. cgxffcv.nn.Network is the public face."},
    {0, NULL},
};

static PyType_Spec model_spec = {
    .name = "_cgxffcv.Model",
    .basicsize = sizeof(ModelObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = model_slots,
};

int nn_add(PyObject *module) {
    ModuleState *state = module_state(module);
    state->model_type = PyType_FromModuleAndSpec(module, &model_spec, NULL);
    if (state->model_type == NULL) return -1;
    return PyModule_AddType(module, (PyTypeObject *)state->model_type);
}
