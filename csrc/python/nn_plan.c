/* _cgxffcv.Plan: steps and evaluations of a model for one image size. */
#include "python/arguments.h"
#include "python/array.h"
#include "python/nn.h"
#include "python/results.h"
#include "python/spec.h"

static PyObject *plan_new(PyTypeObject *type, PyObject *args, PyObject *keywords) {
    static char *names[] = {"model", "batch", "height", "width", "training", "keep_all", NULL};
    PyObject *model_in;
    NnPlanOptions options = {0};
    int training = 1, keep_all = 0;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "Oiii|pp", names, &model_in, &options.batch, &options.height,
                                     &options.width, &training, &keep_all)) {
        return NULL;
    }
    options.training = training != 0;
    options.keep_all = keep_all != 0;
    ModelObject *model = py_nn_take_model(py_module_state_of_type(type), model_in);
    if (model == NULL) return NULL;
    PlanObject *self = (PlanObject *)type->tp_alloc(type, 0);
    if (self == NULL) return NULL;
    self->model = (ModelObject *)Py_NewRef(model);
    self->options = options;
    const NnModelDesc *desc = nn_model_desc(model->model);
    const NnNodeDesc *last = &desc->nodes[desc->count - 1];
    self->channels = desc->image_channels;
    self->classes = last->kind == NODE_HEAD ? last->out_channels : 0;
    Status status;
    Py_BEGIN_ALLOW_THREADS;
    status = nn_plan_create(model->model, &options, &self->plan);
    Py_END_ALLOW_THREADS;
    return py_errors_result(py_module_state_of_type(type), status, (PyObject *)self);
}

static void plan_dealloc(PlanObject *self) {
    nn_plan_destroy(self->plan);
    Py_XDECREF(self->model);
    py_module_free_object(self);
}

static int check_image_shape(const PlanObject *self, const ArrayView *view) {
    const int64_t *s = view->shape;
    bool planar = s[1] == self->channels && s[2] == self->options.height && s[3] == self->options.width;
    bool dense = s[3] == self->channels && s[1] == self->options.height && s[2] == self->options.width;
    if (planar || dense) return planar && !dense;
    return PY_REFUSE(
        PyExc_ValueError,
        "images have the shape (%lld, %lld, %lld, %lld), but this plan takes (n, %d, %d, %d) or (n, %d, %d, "
        "%d)",
        (long long)s[0], (long long)s[1], (long long)s[2], (long long)s[3], self->options.height, self->options.width,
        self->channels, self->channels, self->options.height, self->options.width);
}

/* Fills `images` from the arguments; `view` must be released after use. */
static int plan_take_images(const PlanObject *self, PyObject *array, PyObject *mean, PyObject *std, ArrayView *view,
                            NnImages *images) {
    const unsigned types = 1u << ARRAY_U8 | 1u << ARRAY_F32 | 1u << ARRAY_U16;
    if (py_array_acquire(array, "images", types, 4, false, view) < 0) return -1;
    int planar = check_image_shape(self, view);
    if (planar < 0) goto fail;
    images->data = view->data;
    images->type = view->type == ARRAY_U8 ? PIXELS_U8 : view->type == ARRAY_F32 ? PIXELS_F32 : PIXELS_BF16;
    images->layout = planar ? PIXELS_NCHW : PIXELS_NHWC;
    for (int c = 0; c < NN_MAX_IMAGE_CHANNELS; c++) images->std[c] = 1.0f;
    if (images->type != PIXELS_U8) return 0;
    if (mean == Py_None || std == Py_None) {
        PyErr_SetString(PyExc_ValueError, "images of uint8 need mean and std, in units of 0..255");
        goto fail;
    }
    if (py_arguments_floats(mean, "values of mean", self->channels, images->mean) < 0 ||
        py_arguments_floats(std, "values of std", self->channels, images->std) < 0) {
        goto fail;
    }
    return 0;
fail:
    py_array_release(view);
    return -1;
}

/* A call on the model with what Python wrote to it, without the GIL. */
#define PLAN_CALL(self, status, call)                                                                                  \
    do {                                                                                                               \
        Py_BEGIN_ALLOW_THREADS;                                                                                        \
        (status) = py_nn_upload((self)->model);                                                                        \
        if ((status) == STATUS_OK) (status) = (call);                                                                  \
        if ((status) == STATUS_OK) (status) = py_nn_download((self)->model);                                           \
        Py_END_ALLOW_THREADS;                                                                                          \
    } while (0)

static PyObject *plan_step_method(PlanObject *self, PyObject *args, PyObject *keywords) {
    static char *names[] = {"images", "labels", "label_smoothing", "reduction", "first_block", "mean", "std", NULL};
    PyObject *images_in, *labels_in, *mean = Py_None, *std = Py_None, *result = NULL;
    PyObject *reduction = NULL;
    NnStepOptions options = {0};
    NnImages images = {0};
    ArrayView image_view, label_view;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "OO|dOiOO", names, &images_in, &labels_in,
                                     &options.label_smoothing, &reduction, &options.first_block, &mean, &std)) {
        return NULL;
    }
    int reduces = reduction == NULL ? LOSS_MEAN : py_spec_name(reduction, "reduction", nn_reduction_name);
    if (reduces < 0) return NULL;
    options.reduction = (LossReduction)reduces;
    if (plan_take_images(self, images_in, mean, std, &image_view, &images) < 0) return NULL;
    if (py_array_acquire(labels_in, "labels", 1u << ARRAY_I64, 1, false, &label_view) < 0) goto done;
    if (label_view.elems != image_view.shape[0]) {
        PyErr_Format(PyExc_ValueError, "%lld images, but %lld labels", (long long)image_view.shape[0],
                     (long long)label_view.elems);
    } else if (py_nn_enter(self->model) == 0) {
        Status status;
        PLAN_CALL(self, status, nn_plan_step(self->plan, &images, label_view.data, (int)image_view.shape[0], &options));
        py_nn_leave(self->model);
        result = py_errors_none(py_module_state_of(self), status);
    }
    py_array_release(&label_view);
done:
    py_array_release(&image_view);
    return result;
}

static PyObject *plan_take_totals_method(PlanObject *self, PyObject *Py_UNUSED(unused)) {
    NnStepTotals totals;
    if (py_nn_enter(self->model) < 0) return NULL;
    Status status = nn_plan_take_totals(self->plan, &totals);
    py_nn_leave(self->model);
    if (status != STATUS_OK) return py_errors_raise(py_module_state_of(self), status);
    return Py_BuildValue("(dLL)", totals.loss, (long long)totals.correct, (long long)totals.images);
}

static PyObject *plan_evaluate_method(PlanObject *self, PyObject *args, PyObject *keywords) {
    static char *names[] = {"images", "mirror", "shift_y", "shift_x", "mean", "std", NULL};
    PyObject *images_in, *mean = Py_None, *std = Py_None, *logits = NULL;
    NnImages images = {0};
    ArrayView view;
    int mirror = 0;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "O|piiOO", names, &images_in, &mirror, &images.shift_y,
                                     &images.shift_x, &mean, &std)) {
        return NULL;
    }
    images.mirror = mirror != 0;
    if (plan_take_images(self, images_in, mean, std, &view, &images) < 0) return NULL;
    int64_t shape[2] = {view.shape[0], self->classes};
    if (py_nn_enter(self->model) < 0) goto done;
    logits = py_array_new(ARRAY_F32, 2, shape);
    if (logits != NULL) {
        float *to = py_array_data(logits);
        int count = view.shape[0] > INT32_MAX ? INT32_MAX : (int)view.shape[0];
        Status status;
        PLAN_CALL(self, status, nn_plan_evaluate(self->plan, &images, count, to));
        if (status != STATUS_OK) {
            Py_CLEAR(logits);
            py_errors_raise(py_module_state_of(self), status);
        }
    }
    py_nn_leave(self->model);
done:
    py_array_release(&view);
    return logits;
}

static PyObject *plan_forward_method(PlanObject *self, PyObject *args, PyObject *keywords) {
    static char *names[] = {"images", "mean", "std", NULL};
    PyObject *images_in, *mean = Py_None, *std = Py_None, *result = NULL;
    NnImages images = {0};
    ArrayView view;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "O|OO", names, &images_in, &mean, &std)) return NULL;
    if (plan_take_images(self, images_in, mean, std, &view, &images) < 0) return NULL;
    if (py_nn_enter(self->model) == 0) {
        Status status;
        PLAN_CALL(self, status, nn_plan_forward(self->plan, &images, (int)view.shape[0]));
        py_nn_leave(self->model);
        result = py_errors_none(py_module_state_of(self), status);
    }
    py_array_release(&view);
    return result;
}

static PyObject *plan_backward_method(PlanObject *self, PyObject *args, PyObject *keywords) {
    static char *names[] = {"output_gradient", "first_block", NULL};
    PyObject *gradient, *result = NULL;
    ArrayView view;
    int first_block = 0;
    int64_t shape[3];
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "O|i", names, &gradient, &first_block)) return NULL;
    Status status = nn_plan_shape(self->plan, nn_model_desc(self->model->model)->count - 1, shape);
    if (status != STATUS_OK) return py_errors_raise(py_module_state_of(self), status);
    if (py_array_acquire(gradient, "output_gradient", 1u << ARRAY_F32, 4, false, &view) < 0) return NULL;
    if (view.shape[1] != shape[0] || view.shape[2] != shape[1] || view.shape[3] != shape[2]) {
        PyErr_Format(PyExc_ValueError, "output_gradient must have the shape (n, %lld, %lld, %lld)", (long long)shape[0],
                     (long long)shape[1], (long long)shape[2]);
    } else if (py_nn_enter(self->model) == 0) {
        PLAN_CALL(self, status, nn_plan_backward(self->plan, view.data, (int)view.shape[0], first_block));
        py_nn_leave(self->model);
        result = py_errors_none(py_module_state_of(self), status);
    }
    py_array_release(&view);
    return result;
}

static PyObject *plan_read_method(PlanObject *self, PyObject *args) {
    int node, gradient = 0;
    int64_t shape[4];
    if (!PyArg_ParseTuple(args, "i|p", &node, &gradient)) return NULL;
    Status status = nn_plan_shape(self->plan, node, shape + 1);
    if (status != STATUS_OK) return py_errors_raise(py_module_state_of(self), status);
    if (py_nn_enter(self->model) < 0) return NULL;
    shape[0] = nn_plan_count(self->plan);
    PyObject *array = py_array_new(ARRAY_F32, 4, shape);
    if (array != NULL) {
        status =
            nn_plan_read(self->plan, node, gradient ? TENSOR_OUTPUT_GRADIENT : TENSOR_OUTPUT, py_array_data(array));
    }
    py_nn_leave(self->model);
    return py_errors_result(py_module_state_of(self), status, array);
}

static PyObject *plan_shape_method(PlanObject *self, PyObject *node) {
    int64_t shape[3];
    uint64_t index;
    if (py_arguments_whole(node, "node", INT64_MIN, INT64_MAX, &index) < 0) return NULL;
    Status status = nn_plan_shape(self->plan, index < NN_MAX_NODES ? (int)index : NN_MAX_NODES, shape);
    if (status != STATUS_OK) return py_errors_raise(py_module_state_of(self), status);
    return Py_BuildValue("(LLL)", (long long)shape[0], (long long)shape[1], (long long)shape[2]);
}

static PyObject *plan_profile_begin_method(PlanObject *self, PyObject *Py_UNUSED(unused)) {
    if (py_nn_enter(self->model) < 0) return NULL;
    Status status = nn_plan_profile_begin(self->plan);
    py_nn_leave(self->model);
    return py_errors_none(py_module_state_of(self), status);
}

static PyObject *plan_profile_end_method(PlanObject *self, PyObject *Py_UNUSED(unused)) {
    static const size_t room = NN_MAX_PASSES;
    int count = 0;
    if (py_nn_enter(self->model) < 0) return NULL;
    NnPassTime *times = PyMem_Calloc(room, sizeof *times);
    PyObject *list = times == NULL ? PyErr_NoMemory() : NULL;
    Status status = times == NULL ? STATUS_OK : nn_plan_profile_end(self->plan, times, &count);
    py_nn_leave(self->model);
    if (status != STATUS_OK) py_errors_raise(py_module_state_of(self), status);
    if (times != NULL && status == STATUS_OK) list = PyList_New(0);
    for (int i = 0; list != NULL && i < count; i++) {
        list = py_results_append(list, Py_BuildValue("(sid)", times[i].pass, times[i].node, times[i].seconds));
    }
    PyMem_Free(times);
    return list;
}

static PyObject *get_bytes(PlanObject *self, void *Py_UNUSED(closure)) {
    return PyLong_FromSize_t(nn_plan_arena_bytes(self->plan));
}

static PyObject *get_algorithms(PlanObject *self, void *Py_UNUSED(closure)) {
    int count = 0;
    NnPassAlgorithm *algorithms = PyMem_Calloc(NN_MAX_PASSES, sizeof *algorithms);
    if (algorithms == NULL) return PyErr_NoMemory();
    nn_plan_algorithms(self->plan, algorithms, &count);
    PyObject *list = PyList_New(0);
    for (int i = 0; list != NULL && i < count; i++) {
        const NnPassAlgorithm *a = &algorithms[i];
        list = py_results_append(list, Py_BuildValue("(sis)", a->pass, a->node, a->algorithm.text));
    }
    PyMem_Free(algorithms);
    return list;
}

static PyMethodDef plan_methods[] = {
    {"step", PY_KEYWORDS(plan_step_method),
     "step(images, labels, label_smoothing=0, reduction='mean', first_block=0, mean=None, std=None)\n--\n\n"
     "Forward with batch statistics, loss, backward: overwrites the model's gradients, updates its running "
     "statistics.\n"
     "images: (n, height, width, channels) or (n, channels, height, width), float32 or bfloat16 (as uint16), "
     "normalised,\nor uint8 with mean and std; labels: int64 (n)."},
    {"take_totals", PY_METHOD(plan_take_totals_method), METH_NOARGS,
     "take_totals()\n--\n\nReturns (summed loss, correct, images) of the steps since the last call."},
    {"evaluate", PY_KEYWORDS(plan_evaluate_method),
     "evaluate(images, mirror=False, shift_y=0, shift_x=0, mean=None, std=None)\n--\n\n"
     "Returns logits, float32 (n, classes), using the running statistics."},
    {"forward", PY_KEYWORDS(plan_forward_method),
     "forward(images, mean=None, std=None)\n--\n\nOnly for networks without a head and plans with keep_all."},
    {"backward", PY_KEYWORDS(plan_backward_method),
     "backward(output_gradient, first_block=0)\n--\n\nFrom the gradient of the last node's output, float32 (n, h, w, "
     "c)."},
    {"read", PY_METHOD(plan_read_method), METH_VARARGS,
     "read(node, gradient=False)\n--\n\nA copy of a node's output, or of its gradient: float32 (n, h, w, c); keep_all "
     "only."},
    {"shape", PY_METHOD(plan_shape_method), METH_O, "shape(node)\n--\n\n(h, w, c) of a node's output."},
    {"profile_begin", PY_METHOD(plan_profile_begin_method), METH_NOARGS,
     "profile_begin()\n--\n\nStarts measuring the processor (or GPU) time of each pass."},
    {"profile_end", PY_METHOD(plan_profile_end_method), METH_NOARGS,
     "profile_end()\n--\n\nReturns a list of (pass, node, seconds summed over threads), training passes first."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef plan_getset[] = {
    {"bytes", (getter)get_bytes, NULL, "Bytes of memory that the plan has allocated.", NULL},
    {"algorithms", (getter)get_algorithms, NULL,
     "List of (pass, node, text): what was chosen for each pass that has a choice, and its time; empty on a CPU.",
     NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot plan_slots[] = {
    {Py_tp_new, plan_new},
    {Py_tp_dealloc, plan_dealloc},
    {Py_tp_methods, plan_methods},
    {Py_tp_getset, plan_getset},
    {Py_tp_doc, "Plan(model, batch, height, width, training=True, keep_all=False)\n\n"
                "Runs a Model on up to `batch` images of one size."},
    {0, NULL},
};

int py_nn_plan_add(PyObject *module) {
    return py_module_add_type(module, "_cgxffcv.Plan", sizeof(PlanObject), 0, plan_slots, NULL);
}
