#include "python/spec.h"

#include <string.h>

#include "python/arguments.h"

#define WHERE_BYTES 128 /* of the beginning of a message */

/* ---- one value ---- */

static int refuse_name(PyObject *value, const char *argument, NamesOf names) {
    char allowed[512] = "";
    const char *name;
    for (int i = 0; (name = names(i)) != NULL; i++) {
        size_t used = strlen(allowed);
        PyOS_snprintf(allowed + used, sizeof allowed - used, "%s'%s'", i == 0 ? "" : ", ", name);
    }
    return PY_REFUSE(PyExc_ValueError, "%s must be one of %s, not %.200R", argument, allowed, value);
}

int py_spec_name(PyObject *value, const char *argument, NamesOf names) {
    const char *name;
    for (int i = 0; PyUnicode_Check(value) && (name = names(i)) != NULL; i++) {
        if (PyUnicode_CompareWithASCIIString(value, name) == 0) return i;
    }
    return refuse_name(value, argument, names);
}

static int fill_name(const SpecMember *member, PyObject *value, void *to) {
    int number = py_spec_name(value, member->key, member->names);
    if (number < 0) return -1;
    memcpy(to, &number, sizeof number); /* an enum is as large */
    return 0;
}

static int fill_whole(const SpecMember *member, PyObject *value, void *to) {
    static const struct {
        int64_t least;
        uint64_t most;
    } natural[] = {[SPEC_INT] = {INT32_MIN, INT32_MAX},
                   [SPEC_U32] = {0, UINT32_MAX},
                   [SPEC_I64] = {INT64_MIN, INT64_MAX},
                   [SPEC_U64] = {0, UINT64_MAX}};
    bool any = member->least == 0 && member->most == 0;
    uint64_t number;
    if (py_arguments_whole(value, member->key, any ? natural[member->type].least : member->least,
                           any ? natural[member->type].most : member->most, &number) < 0) {
        return -1;
    }
    if (member->bytes == sizeof(uint32_t)) {
        uint32_t half = (uint32_t)number;
        memcpy(to, &half, sizeof half);
    } else {
        memcpy(to, &number, sizeof number);
    }
    return 0;
}

static int fill_number(const SpecMember *member, PyObject *value, void *to) {
    double number = PyFloat_AsDouble(value);
    if (number == -1.0 && PyErr_Occurred()) {
        if (PyErr_ExceptionMatches(PyExc_TypeError)) {
            PyErr_Format(PyExc_TypeError, "%s must be a number, not %.100s", member->key, Py_TYPE(value)->tp_name);
        }
        return -1;
    }
    float single = (float)number;
    if (member->type == SPEC_FLOAT) {
        memcpy(to, &single, sizeof single);
    } else {
        memcpy(to, &number, sizeof number);
    }
    return 0;
}

/* Text without a NUL inside; NULL with an exception. Borrowed from the value. */
static const char *take_text(const char *argument, PyObject *value) {
    Py_ssize_t length;
    if (!PyUnicode_Check(value)) {
        PyErr_Format(PyExc_TypeError, "%s must be text, not %.100s", argument, Py_TYPE(value)->tp_name);
        return NULL;
    }
    const char *text = PyUnicode_AsUTF8AndSize(value, &length);
    if (text == NULL || strlen(text) == (size_t)length) return text;
    PyErr_Format(PyExc_ValueError, "%s must not contain a NUL character", argument);
    return NULL;
}

static int fill_chars(const SpecMember *member, PyObject *value, void *to) {
    const char *text = take_text(member->key, value);
    if (text == NULL) return -1;
    if (strlen(text) < member->bytes) {
        strcpy(to, text);
        return 0;
    }
    return PY_REFUSE(PyExc_ValueError, "%s must not be longer than %zu bytes: %.200R has %zu", member->key,
                     member->bytes - 1, value, strlen(text));
}

static int fill_text(const char *argument, PyObject *value, PyObject *keep, void *to) {
    const char *text = NULL;
    if (value != Py_None && (text = take_text(argument, value)) == NULL) return -1;
    memcpy(to, &text, sizeof text);
    return PyList_Append(keep, value);
}

static int fill_member(const SpecMember *member, PyObject *value, PyObject *keep, void *to) {
    int truth;
    switch (member->type) {
    case SPEC_BOOL:
        truth = PyObject_IsTrue(value);
        *(bool *)to = truth > 0;
        return truth < 0 ? -1 : 0;
    case SPEC_FLOAT:
    case SPEC_DOUBLE:
        return fill_number(member, value, to);
    case SPEC_CHARS:
        return fill_chars(member, value, to);
    case SPEC_TEXT:
        return fill_text(member->key, value, keep, to);
    case SPEC_NAME:
        return fill_name(member, value, to);
    case SPEC_PARSED:
        return member->parse(value, to);
    default:
        return fill_whole(member, value, to);
    }
}

/* ---- the dict ---- */

/* Writes how messages refer to the dict. */
static void write_where(const SpecTable *table, PyObject *dict, char where[WHERE_BYTES]) {
    PyObject *name = PyDict_GetItemString(dict, "name");
    const char *text = name != NULL && PyUnicode_Check(name) ? PyUnicode_AsUTF8(name) : NULL;
    PyErr_Clear(); /* for a name that is not text; its own key reports that */
    PyOS_snprintf(where, WHERE_BYTES, "%s", table->what);
    if (text != NULL) PyOS_snprintf(where, WHERE_BYTES, "%s '%.60s'", table->what, text);
}

/* Puts it in front of the error message of a value's conversion; other types of exceptions are left alone. */
static void add_where(const SpecTable *table, PyObject *dict) {
    char where[WHERE_BYTES];
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    if (value == NULL || (type != PyExc_TypeError && type != PyExc_ValueError)) {
        PyErr_Restore(type, value, traceback);
        return;
    }
    write_where(table, dict, where);
    PyErr_Format(type, "%s: %S", where, value);
    Py_DECREF(type);
    Py_DECREF(value);
    Py_XDECREF(traceback);
}

static const SpecMember *find_member(const SpecTable *table, PyObject *key) {
    const SpecMember *member = table->members;
    if (!PyUnicode_Check(key)) return NULL;
    while (member->key != NULL && PyUnicode_CompareWithASCIIString(key, member->key) != 0) member++;
    return member->key == NULL ? NULL : member;
}

static int refuse_unknown_keys(const SpecTable *table, PyObject *dict) {
    PyObject *key, *value;
    Py_ssize_t position = 0;
    char where[WHERE_BYTES], known[512] = "";
    write_where(table, dict, where);
    for (const SpecMember *member = table->members; member->key != NULL; member++) {
        size_t used = strlen(known);
        PyOS_snprintf(known + used, sizeof known - used, "%s%s", used == 0 ? "" : ", ", member->key);
    }
    while (PyDict_Next(dict, &position, &key, &value)) {
        if (find_member(table, key) != NULL) continue;
        Py_INCREF(key); /* formatting it may run Python code */
        PyErr_Format(PyExc_TypeError, "%s has no %.200R; there are %s", where, key, known);
        Py_DECREF(key);
        return -1;
    }
    return 0;
}

/* Takes references to each member's value, or NULL: converting one may run Python code, which may change the dict.
 * Looking up each key in the dict would make a string of it. Returns whether all keys are members'. */
static bool find_values(const SpecTable *table, PyObject *dict, PyObject *values[SPEC_MAX_MEMBERS]) {
    PyObject *key, *value;
    Py_ssize_t position = 0;
    bool known = true;
    while (PyDict_Next(dict, &position, &key, &value)) {
        const SpecMember *member = find_member(table, key);
        known = known && member != NULL;
        if (member != NULL) Py_XSETREF(values[member - table->members], Py_NewRef(value));
    }
    return known;
}

static int fill_all(const SpecTable *table, PyObject *dict, PyObject *const *values, PyObject *keep, void *out) {
    for (const SpecMember *member = table->members; member->key != NULL; member++) {
        PyObject *value = values[member - table->members];
        if (value == NULL && refuse_unknown_keys(table, dict) < 0) return -1; /* perhaps misspelt */
        if (value == NULL) PyErr_Format(PyExc_TypeError, "%s is missing", member->key);
        if (value == NULL || fill_member(member, value, keep, (char *)out + member->offset) < 0) {
            add_where(table, dict);
            return -1;
        }
    }
    return 0;
}

int py_spec_fill(const SpecTable *table, PyObject *dict, PyObject *keep, void *out) {
    if (dict != NULL && !PyDict_Check(dict)) {
        return PY_REFUSE(PyExc_TypeError, "%s must be a dict, not %.100s", table->what, Py_TYPE(dict)->tp_name);
    }
    PyObject *values[SPEC_MAX_MEMBERS] = {NULL}, *held = dict == NULL ? PyDict_New() : Py_NewRef(dict);
    if (held == NULL) return -1;
    const bool known = find_values(table, held, values);
    int result = fill_all(table, held, values, keep, out);
    if (result == 0 && !known) result = refuse_unknown_keys(table, held);
    for (int i = 0; i < SPEC_MAX_MEMBERS && table->members[i].key != NULL; i++) Py_XDECREF(values[i]);
    Py_DECREF(held);
    return result;
}

int py_spec_kind(PyObject *dict, const char *what, const char *key, NamesOf names) {
    PyObject *value = PyDict_Check(dict) ? PyDict_GetItemString(dict, key) : NULL;
    if (value == NULL) return PY_REFUSE(PyExc_TypeError, "%s must be a dict with a %s, not %.200R", what, key, dict);
    Py_INCREF(value); /* formatting it may run Python code */
    int number = py_spec_name(value, key, names);
    Py_DECREF(value);
    if (number < 0) add_where(&(SpecTable){what, {{0}}}, dict);
    return number;
}
