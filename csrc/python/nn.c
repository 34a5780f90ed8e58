/* _cgxffcv.Model: a network's parameters, gradients and running statistics as NumPy views. */
#include "python/nn.h"

#include "python/arguments.h"
#include "python/array.h"
#include "python/results.h"
#include "python/spec.h"

ModelObject *py_nn_take_model(ModuleState *state, PyObject *object) {
    if (PyObject_TypeCheck(object, (PyTypeObject *)state->model_type)) return (ModelObject *)object;
    PyErr_Format(PyExc_TypeError, "expected a Model, not %.100s", Py_TYPE(object)->tp_name);
    return NULL;
}

int py_nn_enter(ModelObject *model) {
    if (model->busy) return PY_REFUSE(PyExc_RuntimeError, "this model is in use by another thread");
    model->busy = true;
    return 0;
}

void py_nn_leave(ModelObject *model) { model->busy = false; }

#define NODE_MEMBERS                                                                                                   \
    SPEC_ENUM(NnNodeDesc, kind, nn_node_kind_name), SPEC_MEMBER(NnNodeDesc, name), SPEC_MEMBER(NnNodeDesc, block)
#define NODE_CHANNELS(key) SPEC_KEY(NnNodeDesc, out_channels, key), SPEC_ENUM(NnNodeDesc, init, nn_initialisation_name)
#define NODE_ACTIVATION SPEC_ENUM(NnNodeDesc, activation, nn_activation_name)

static const SpecTable node_tables[] = {
    [NODE_CONV] = {"node",
                   {NODE_MEMBERS, NODE_CHANNELS("channels"), NODE_ACTIVATION, SPEC_MEMBER(NnNodeDesc, reads),
                    SPEC_MEMBER(NnNodeDesc, kernel), SPEC_MEMBER(NnNodeDesc, stride), SPEC_MEMBER(NnNodeDesc, padding),
                    SPEC_KEY(NnNodeDesc, frozen_filters, "frozen"), SPEC_MEMBER(NnNodeDesc, bias),
                    SPEC_ENUM(NnNodeDesc, bias_init, nn_initialisation_name)}},
    [NODE_NORM] = {"node",
                   {NODE_MEMBERS, NODE_ACTIVATION, SPEC_ENUM(NnNodeDesc, pool_place, nn_pool_place_name),
                    SPEC_MEMBER(NnNodeDesc, pool), SPEC_ENUM(NnNodeDesc, residual_place, nn_residual_place_name),
                    SPEC_MEMBER(NnNodeDesc, residual), SPEC_KEY(NnNodeDesc, scale_trained, "scale"),
                    SPEC_MEMBER(NnNodeDesc, eps), SPEC_MEMBER(NnNodeDesc, keep)}},
    [NODE_HEAD] = {"node",
                   {NODE_MEMBERS, NODE_CHANNELS("classes"), SPEC_ENUM(NnNodeDesc, head_pool, nn_head_pool_name),
                    SPEC_MEMBER(NnNodeDesc, bias), SPEC_ENUM(NnNodeDesc, bias_init, nn_initialisation_name),
                    SPEC_MEMBER(NnNodeDesc, scale)}},
};

static int parse_node(PyObject *item, void *out) {
    NnNodeDesc *node = out;
    int kind = py_spec_kind(item, "node", "kind", nn_node_kind_name);
    if (kind < 0 || py_spec_fill(&node_tables[kind], item, NULL, node) < 0) return -1;
    if (node->pool == 0) node->pool_place = POOL_NONE;
    if (node->residual >= 0) return 0;
    node->residual = 0; /* none */
    node->residual_place = RESIDUAL_NONE;
    return 0;
}

static const SpecTable options_table = {
    "Model",
    {SPEC_ENUM(NnModelOptions, backend, nn_backend_name), SPEC_ENUM(NnModelOptions, precision, nn_precision_name),
     SPEC_ENUM(NnModelOptions, convolution, nn_convolution_name), SPEC_MEMBER(NnModelOptions, threads),
     SPEC_MEMBER(NnModelOptions, deterministic)}};

static PyObject *model_new(PyTypeObject *type, PyObject *args, PyObject *keywords) {
    PyObject *nodes;
    NnModelDesc desc = {0};
    NnModelOptions options = {0};
    if (!PyArg_ParseTuple(args, "Oi:Model", &nodes, &desc.image_channels)) return NULL;
    if (py_spec_fill(&options_table, keywords, NULL, &options) < 0) return NULL;
    desc.count = py_arguments_fill(nodes, "nodes", 1, NN_MAX_NODES, parse_node, desc.nodes, sizeof *desc.nodes);
    if (desc.count < 0) return NULL;
    ModelObject *self = (ModelObject *)type->tp_alloc(type, 0);
    if (self == NULL) return NULL;
    Status status = nn_model_create(&desc, &options, &self->model);
    if (status == STATUS_OK) status = py_nn_mirrors_init(self);
    return py_errors_result(py_module_state_of_type(type), status, (PyObject *)self);
}

static void model_dealloc(ModelObject *self) {
    py_nn_mirrors_fini(self);
    nn_model_destroy(self->model);
    py_module_free_object(self);
}

static PyObject *model_initialise_method(ModelObject *self, PyObject *seed) {
    uint64_t value;
    if (py_arguments_whole(seed, "seed", 0, UINT64_MAX, &value) < 0 || py_nn_enter(self) < 0) return NULL;
    Status status;
    Py_BEGIN_ALLOW_THREADS;
    status = py_nn_upload(self);
    if (status == STATUS_OK) status = nn_model_initialise(self->model, value);
    if (status == STATUS_OK) status = py_nn_download(self);
    Py_END_ALLOW_THREADS;
    py_nn_leave(self);
    return py_errors_none(py_module_state_of(self), status);
}

int py_nn_parse_block(PyObject *object, int *out) {
    static const int64_t most = 1 << 20;
    uint64_t number;
    if (py_arguments_whole(object, "first_block", INT64_MIN, INT64_MAX, &number) < 0) return -1;
    int64_t block = (int64_t)number;
    *out = block < 0 ? 0 : block > most ? (int)most : (int)block;
    return 0;
}

static PyObject *model_gradient_elems_method(ModelObject *self, PyObject *first_block) {
    int block;
    if (py_nn_parse_block(first_block, &block) < 0) return NULL;
    return PyLong_FromSize_t(nn_model_gradient_elems(self->model, block));
}

static PyObject *model_layer_tuple(const NnLayer *layer) {
    PyObject *shape = py_results_shape(layer->shape, layer->ndim);
    if (shape == NULL) return NULL;
    return Py_BuildValue("(ssiiNNnn)", layer->name, nn_layer_kind_name((int)layer->kind), layer->node, layer->block,
                         PyBool_FromLong(layer->trained), shape, (Py_ssize_t)layer->offset, (Py_ssize_t)layer->elems);
}

static PyObject *get_layers(ModelObject *self, void *Py_UNUSED(closure)) {
    int count;
    const NnLayer *layers = nn_model_layers(self->model, &count);
    PyObject *list = PyList_New(0);
    for (int i = 0; list != NULL && i < count; i++) list = py_results_append(list, model_layer_tuple(&layers[i]));
    return list;
}

static PyObject *get_statistics(ModelObject *self, void *Py_UNUSED(closure)) {
    int count;
    const NnStatistic *statistics = nn_model_statistics(self->model, &count);
    PyObject *list = PyList_New(0);
    for (int i = 0; list != NULL && i < count; i++) {
        const NnStatistic *s = &statistics[i];
        list = py_results_append(list, Py_BuildValue("(siinnn)", s->name, s->node, s->block, (Py_ssize_t)s->mean_offset,
                                                     (Py_ssize_t)s->variance_offset, (Py_ssize_t)s->channels));
    }
    return list;
}

static PyObject *get_buffer(ModelObject *self, void *which) {
    const ModelBuffer buffer = *(const ModelBuffer *)which;
    int64_t shape = (int64_t)py_nn_buffer_elems(self, buffer);
    return py_array_wrap(ARRAY_F32, 1, &shape, NULL, py_nn_buffer_data(self, buffer), (PyObject *)self, true);
}

static PyObject *get_precision(ModelObject *self, void *Py_UNUSED(closure)) {
    return PyUnicode_FromString(nn_precision_name((int)nn_model_precision(self->model)));
}

static PyObject *get_backend(ModelObject *self, void *Py_UNUSED(closure)) {
    return PyUnicode_FromString(nn_model_backend(self->model));
}

static PyObject *get_threads(ModelObject *self, void *Py_UNUSED(closure)) {
    return PyLong_FromLong(pool_threads(nn_model_pool(self->model)));
}

static PyMethodDef model_methods[] = {
    {"initialise", PY_METHOD(model_initialise_method), METH_O,
     "initialise(seed)\n--\n\n"
     "Initialises every trained layer by its description, as a pure function of the seed and the layer's name;\n"
     "sets running means to 0, variances to 1."},
    {"gradient_elems", PY_METHOD(model_gradient_elems_method), METH_O,
     "gradient_elems(first_block)\n--\n\nThe length of the prefix of `gradients` that belongs to blocks from this one "
     "on."},
    {NULL, NULL, 0, NULL},
};

static ModelBuffer buffers[] = {MODEL_PARAMETERS, MODEL_GRADIENTS, MODEL_RUNNING};

static PyGetSetDef model_getset[] = {
    {"layers", (getter)get_layers, NULL,
     "List of (name, kind, node, block, trained, shape, offset, elems) in the order of the buffers.", NULL},
    {"statistics", (getter)get_statistics, NULL,
     "List of (name, node, block, mean offset, variance offset, channels) of `running`.", NULL},
    {"parameters", (getter)get_buffer, NULL, "All parameters: float32, one dimension, a view.", &buffers[0]},
    {"gradients", (getter)get_buffer, NULL, "Gradients of the trained parameters: float32, a view.", &buffers[1]},
    {"running", (getter)get_buffer, NULL, "Running means and variances: float32, a view.", &buffers[2]},
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
    {Py_tp_doc, "Model(nodes, image_channels, *, backend, precision, convolution, threads, deterministic)\n\n"
                "A network's parameters. cgxffcv.nn.Network is the public interface."},
    {0, NULL},
};

int py_nn_add(PyObject *module) {
    return py_module_add_type(module, "_cgxffcv.Model", sizeof(ModelObject), 0, model_slots,
                              &py_module_state(module)->model_type);
}
