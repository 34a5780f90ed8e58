/* Image operations between Python and augment/: the table as Python sees it, and operations from plain values. */
#include "python/operations.h"

#include <stddef.h>
#include <string.h>

#include "python/arguments.h"
#include "python/array.h"
#include "python/results.h"
#include "python/spec.h"

/* ---- values ---- */

static int wrong(const AugmentParameter *p, const char *what, PyObject *value) {
    if (!PyErr_Occurred() || PyErr_ExceptionMatches(PyExc_TypeError)) {
        PyErr_Format(PyExc_TypeError, "%s must be %s, not %R", p->name, what, value);
    }
    return -1;
}

static int parse_number(const AugmentParameter *p, PyObject *value, double *out) {
    *out = PyFloat_AsDouble(value);
    return *out == -1 && PyErr_Occurred() ? wrong(p, "a number", value) : 0;
}

static int parse_whole(const AugmentParameter *p, PyObject *value, int32_t *out) {
    uint64_t whole;
    if (!PyIndex_Check(value)) return wrong(p, "a whole number", value);
    if (py_arguments_whole(value, p->name, INT32_MIN, INT32_MAX, &whole) < 0) return -1;
    *out = (int32_t)whole;
    return 0;
}

static int parse_size(const AugmentParameter *p, PyObject *value, AugmentSize *out) {
    if (!PyTuple_Check(value) || PyTuple_GET_SIZE(value) != 2) return wrong(p, "(height, width)", value);
    if (parse_whole(p, PyTuple_GET_ITEM(value, 0), &out->height) < 0) return -1;
    return parse_whole(p, PyTuple_GET_ITEM(value, 1), &out->width);
}

static int parse_limits(const AugmentParameter *p, PyObject *value, AugmentLimits *out) {
    if (!PyTuple_Check(value) || PyTuple_GET_SIZE(value) != 2) return wrong(p, "two numbers", value);
    if (parse_number(p, PyTuple_GET_ITEM(value, 0), &out->low) < 0) return -1;
    return parse_number(p, PyTuple_GET_ITEM(value, 1), &out->high);
}

int py_operations_spread(double *values, int given) {
    for (int c = 1; c < given; c++) {
        if (values[c] != values[0]) return given;
    }
    for (int c = given; c < AUGMENT_MAX_CHANNELS; c++) values[c] = values[0];
    return 0;
}

static int parse_fill(const AugmentParameter *p, PyObject *value, AugmentFill *out) {
    if (PyUnicode_Check(value) && p->type == AUGMENT_BORDER) {
        out->reflect = PyUnicode_CompareWithASCIIString(value, "reflect") == 0;
        if (out->reflect) return 0;
        return PY_REFUSE(PyExc_ValueError, "%s must be one to four numbers or 'reflect', not %R", p->name, value);
    }
    const Py_ssize_t given = PyTuple_Check(value) ? PyTuple_GET_SIZE(value) : 0;
    if (given < 1 || given > AUGMENT_MAX_CHANNELS) return wrong(p, "one to four numbers", value);
    for (Py_ssize_t c = 0; c < given; c++) {
        if (parse_number(p, PyTuple_GET_ITEM(value, c), &out->colour[c]) < 0) return -1;
    }
    out->count = py_operations_spread(out->colour, (int)given);
    return 0;
}

/* Borrows an array's data through a view of it in `keep`: while that exists, it can be neither freed nor resized. */
static int borrow(const AugmentParameter *p, PyObject *value, PyObject *keep, unsigned types, int ndim,
                  ArrayView *view) {
    PyObject *held = PyMemoryView_FromObject(value);
    if (held == NULL) PyErr_Clear(); /* acquiring reports what is wrong */
    int result = py_array_acquire(held == NULL ? value : held, p->name, types, ndim, false, view);
    if (result == 0) py_array_release(view);
    if (result == 0 && held == NULL) result = wrong(p, "an array", value);
    if (result == 0) result = PyList_Append(keep, held);
    Py_XDECREF(held);
    return result;
}

static int parse_samples(const AugmentParameter *p, PyObject *value, PyObject *keep, AugmentSamples *out) {
    ArrayView view;
    if (borrow(p, value, keep, 1u << ARRAY_I64, 1, &view) < 0) return -1;
    *out = (AugmentSamples){view.data, (size_t)view.elems};
    for (size_t i = 1; i < out->count; i++) {
        if (out->ids[i - 1] < out->ids[i]) continue;
        return PY_REFUSE(PyExc_ValueError, "%s must be strictly increasing", p->name);
    }
    return 0;
}

static int parse_plane(const AugmentParameter *p, PyObject *value, PyObject *keep, AugmentPlane *out) {
    const bool image = p->type == AUGMENT_IMAGE;
    ArrayView view;
    if (borrow(p, value, keep, 1u << ARRAY_F32, image ? 3 : 2, &view) < 0) return -1;
    const int64_t *shape = view.shape;
    const bool fits = shape[0] <= UINT16_MAX && shape[1] <= UINT16_MAX && (!image || shape[2] == AUGMENT_CHANNELS);
    if (fits) *out = (AugmentPlane){view.data, {(int32_t)shape[0], (int32_t)shape[1]}};
    if (fits) return 0;
    return PY_REFUSE(PyExc_ValueError, "%s must have shape (height, width%s)", p->name, image ? ", 3" : "");
}

static int parse_value(const AugmentParameter *p, PyObject *value, PyObject *keep, AugmentOp *op) {
    void *to = (unsigned char *)&op->as + p->offset;
    switch (p->type) {
    case AUGMENT_NUMBER:
        return parse_number(p, value, to);
    case AUGMENT_LIMITS:
        return parse_limits(p, value, to);
    case AUGMENT_ODD:
    case AUGMENT_COUNT:
    case AUGMENT_ROUNDS:
    case AUGMENT_PADDING:
        return parse_whole(p, value, to);
    case AUGMENT_SIZE:
        return parse_size(p, value, to);
    case AUGMENT_RGB:
    case AUGMENT_BORDER:
        return parse_fill(p, value, to);
    case AUGMENT_WHOLE:
        return py_arguments_whole(value, p->name, INT64_MIN, INT64_MAX, to);
    case AUGMENT_SAMPLES:
        return parse_samples(p, value, keep, to);
    case AUGMENT_PLANE:
    case AUGMENT_IMAGE:
        return parse_plane(p, value, keep, to);
    case AUGMENT_FLAG: {
        int flag = PyObject_IsTrue(value);
        *(bool *)to = flag > 0;
        return flag < 0 ? -1 : 0;
    }
    }
    return 0;
}

static int parse_name(PyObject *value, void *out) {
    AugmentOp *op = out;
    const char *name = PyUnicode_AsUTF8(value);
    if (name == NULL) return -1;
    *op = (AugmentOp){.kind = augment_find(name)};
    if (op->kind != AUGMENT_KINDS) return 0;
    return PY_REFUSE(PyExc_ValueError, "unknown image operation '%s'", name);
}

typedef struct Operation {
    AugmentOp op; /* first: a pointer to it is one to the whole */
    uint32_t draws;
    PyObject *keep; /* borrowed */
} Operation;

/* One for each parameter of the operation, whose name has been parsed. */
static int parse_values(PyObject *values, void *out) {
    const Operation *own = out;
    AugmentOp *op = out;
    const char *name = augment_entry(op->kind)->name;
    if (!PyTuple_Check(values)) {
        return PY_REFUSE(PyExc_TypeError, "the values of %s must be a tuple, not %.100s", name,
                         Py_TYPE(values)->tp_name);
    }
    Py_ssize_t count = 0;
    const AugmentParameter *parameters = augment_entry(op->kind)->parameters;
    while (parameters[count].name != NULL) count++;
    if (PyTuple_GET_SIZE(values) != count) {
        return PY_REFUSE(PyExc_TypeError, "%s has %zd parameters, not %zd", name, count, PyTuple_GET_SIZE(values));
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        if (parse_value(&parameters[i], PyTuple_GET_ITEM(values, i), own->keep, op) < 0) return -1;
    }
    return 0;
}

/* ---- operations ---- */

_Static_assert(offsetof(Operation, op) == 0, "parse_values converts one pointer to the other");

static const SpecTable operation_table = {
    "an image operation",
    {SPEC_PARSE_KEY(Operation, op, "operation", parse_name), SPEC_PARSE_KEY(Operation, op, "values", parse_values),
     SPEC_KEY(Operation, op.normalized, "normalized"), SPEC_MEMBER(Operation, draws)}};

/* A list of operations that is being filled. */
typedef struct Operations {
    const char *where;
    int room, count;
    PyObject *keep; /* borrowed */
    AugmentOp *ops; /* borrowed from the caller of py_operations_parse */
} Operations;

/* Appends the operation again, with draws of its own. */
static int add_op(Operations *list, const Operation *own, AugmentKind kind) {
    const AugmentEntry *entry = augment_entry(kind);
    unsigned occurrence = 0;
    if (list->count == list->room) {
        return PY_REFUSE(PyExc_ValueError,
                         "at most %d image operations are allowed in %s (a round of RandAugment counts as four)",
                         list->room, list->where);
    }
    for (int i = 0; i < list->count; i++) occurrence += list->ops[i].kind == kind;
    if (occurrence >= AUGMENT_MAX_OCCURRENCES) {
        return PY_REFUSE(PyExc_ValueError, "%s can occur at most %d times in %s", entry->name, AUGMENT_MAX_OCCURRENCES,
                         list->where);
    }
    AugmentOp *op = &list->ops[list->count++];
    *op = own->op;
    op->kind = kind;
    /* What mixes a batch draws the same for all of its outputs. */
    op->draw = augment_draw_index(entry->number, occurrence, entry->phase >= AUGMENT_MIX ? 0 : own->draws);
    return 0;
}

static int parse_op(PyObject *item, Operations *list) {
    Operation own = {.keep = list->keep};
    if (py_spec_fill(&operation_table, item, NULL, &own) < 0) return -1;
    const int32_t *rounds = augment_op_rounds(&own.op);
    for (int32_t round = 0; round == 0 || (rounds != NULL && round < *rounds); round++) {
        AugmentKind kind = own.op.kind;
        do {
            if (add_op(list, &own, kind) < 0) return -1;
            kind = augment_entry(kind)->then;
        } while (kind != 0);
    }
    return 0;
}

int py_operations_parse(PyObject *sequence, PyObject *keep, const char *where, int room, AugmentOp *ops, int *count) {
    Operations list = {where, room, 0, keep, ops};
    PyObject *tuple = py_arguments_tuple(sequence, "operations", 0, PY_OPERATIONS_MAX);
    int result = tuple == NULL ? -1 : 0;
    for (Py_ssize_t i = 0; result == 0 && i < PyTuple_GET_SIZE(tuple); i++) {
        result = parse_op(PyTuple_GET_ITEM(tuple, i), &list);
    }
    Py_XDECREF(tuple);
    if (result == 0) *count = list.count;
    return result;
}

/* ---- the table ---- */

static PyObject *parameter_tuple(const AugmentParameter *p) {
    static const char *const types[] = {
        [AUGMENT_NUMBER] = "number", [AUGMENT_LIMITS] = "limits", [AUGMENT_ODD] = "whole",
        [AUGMENT_COUNT] = "whole",   [AUGMENT_ROUNDS] = "whole",  [AUGMENT_PADDING] = "whole",
        [AUGMENT_SIZE] = "size",     [AUGMENT_FLAG] = "flag",     [AUGMENT_RGB] = "colour",
        [AUGMENT_BORDER] = "border", [AUGMENT_WHOLE] = "whole",   [AUGMENT_SAMPLES] = "samples",
        [AUGMENT_PLANE] = "plane",   [AUGMENT_IMAGE] = "plane"};
    const double value = p->value;
    if (p->required) return Py_BuildValue("(ss())", p->name, types[p->type]);
    if (p->type == AUGMENT_NUMBER) return Py_BuildValue("(ss(d))", p->name, types[p->type], value);
    if (p->type == AUGMENT_LIMITS) return Py_BuildValue("(ss((dd)))", p->name, types[p->type], value, p->other);
    if (p->type == AUGMENT_FLAG)
        return Py_BuildValue("(ss(O))", p->name, types[p->type], value != 0 ? Py_True : Py_False);
    if (p->type == AUGMENT_PADDING || p->type == AUGMENT_COUNT || p->type == AUGMENT_ROUNDS)
        return Py_BuildValue("(ss(i))", p->name, types[p->type], (int)value);
    return Py_BuildValue("(ss((iii)))", p->name, types[p->type], (int)value, (int)value, (int)value);
}

static PyObject *parameters_tuple(const AugmentEntry *entry) {
    PyObject *list = PyList_New(0);
    for (const AugmentParameter *p = entry->parameters; list != NULL && p->name != NULL; p++) {
        list = py_results_append(list, parameter_tuple(p));
    }
    return list;
}

static PyObject *image_operations(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(unused)) {
    static const char *const phases[] = {
        [AUGMENT_MOVE] = "move",         [AUGMENT_FILL] = "fill",         [AUGMENT_COLOUR] = "colour",
        [AUGMENT_POSITIONAL] = "placed", [AUGMENT_LOCAL] = "local",       [AUGMENT_WARP] = "warp",
        [AUGMENT_BOX] = "around",        [AUGMENT_HISTOGRAM] = "counted", [AUGMENT_MIX] = "mix",
        [AUGMENT_VALUE] = "value",       [AUGMENT_LABEL] = "label"};
    PyObject *list = PyList_New(0);
    for (int kind = 0; list != NULL && kind < AUGMENT_KINDS; kind++) {
        const AugmentEntry *entry = augment_entry((AugmentKind)kind);
        if (entry->doc == NULL) continue;
        list = py_results_append(list, Py_BuildValue("(ssIsN)", entry->name, phases[entry->phase],
                                                     (unsigned)entry->number, entry->doc, parameters_tuple(entry)));
    }
    return list;
}

static PyObject *check_operation(PyObject *module, PyObject *args) {
    PyObject *name, *values;
    Operation own = {.keep = PyList_New(0)};
    if (own.keep == NULL) return NULL;
    if (!PyArg_ParseTuple(args, "OO", &name, &values) || parse_name(name, &own.op) < 0 ||
        parse_values(values, &own) < 0) {
        Py_DECREF(own.keep);
        return NULL;
    }
    own.op.normalized = true; /* its place is not known yet: a fill in any units */
    Status status = augment_op_check(&own.op, (AugmentFormat){0});
    Py_DECREF(own.keep);
    return py_errors_none(py_module_state(module), status);
}

static PyMethodDef functions[] = {
    {"image_operations", image_operations, METH_NOARGS,
     "image_operations()\n--\n\nThe image operations: a list of (name, phase, number of its draws, description,\n"
     "[(parameter, type, (default,) or ())])."},
    {"check_operation", check_operation, METH_VARARGS,
     "check_operation(name, values)\n--\n\n"
     "Raises TypeError or ValueError if the values, one per parameter, are not valid for this\n"
     "operation."},
    {NULL, NULL, 0, NULL},
};

int py_operations_add(PyObject *module) {
    return PyModule_AddFunctions(module, functions) < 0 ? -1 : py_operations_batch_add(module);
}
