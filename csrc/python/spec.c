#include "python/spec.h"

#include <string.h>

#include "python/arguments.h"

#define ARGUMENT_BYTES 160 /* of what a message begins with */

/* ---- one value ---- */

int spec_name(PyObject *value, const char *argument, NamesOf names) {
    char allowed[512] = "";
    const char *name;
    for (int i = 0; (name = names(i)) != NULL; i++) {
        if (PyUnicode_Check(value) && PyUnicode_CompareWithASCIIString(value, name) == 0) return i;
        size_t used = strlen(allowed);
        PyOS_snprintf(allowed + used, sizeof allowed - used, "%s'%s'", i == 0 ? "" : ", ", name);
    }
    PyErr_Format(PyExc_ValueError, "%s must be one of %s, not %.200R", argument, allowed, value);
    return -1;
}

static int fill_name(const SpecMember *member, const char *argument, PyObject *value, void *to) {
    int number = spec_name(value, argument, member->names);
    if (number < 0) return -1;
    memcpy(to, &number, sizeof number); /* an enum is as large */
    return 0;
}

static int fill_whole(const SpecMember *member, const char *argument, PyObject *value, void *to) {
    static const struct {
        int64_t least;
        uint64_t most;
    } natural[] = {[SPEC_INT] = {INT32_MIN, INT32_MAX},
                   [SPEC_U32] = {0, UINT32_MAX},
                   [SPEC_I64] = {INT64_MIN, INT64_MAX},
                   [SPEC_U64] = {0, UINT64_MAX}};
    bool any = member->least == 0 && member->most == 0;
    uint64_t number;
    if (arguments_whole(value, argument, any ? natural[member->type].least : member->least,
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

static int fill_number(const SpecMember *member, const char *argument, PyObject *value, void *to) {
    double number = PyFloat_AsDouble(value);
    if (number == -1.0 && PyErr_Occurred()) {
        if (PyErr_ExceptionMatches(PyExc_TypeError)) {
            PyErr_Format(PyExc_TypeError, "%s must be a number, not %.100s", argument, Py_TYPE(value)->tp_name);
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
    PyErr_Format(PyExc_ValueError, "%s must not have a NUL character in it", argument);
    return NULL;
}

static int fill_chars(const SpecMember *member, const char *argument, PyObject *value, void *to) {
    const char *text = take_text(argument, value);
    if (text == NULL) return -1;
    if (strlen(text) < member->bytes) {
        strcpy(to, text);
        return 0;
    }
    PyErr_Format(PyExc_ValueError, "%s must not be longer than %zu bytes: %.200R has %zu", argument, member->bytes - 1,
                 value, strlen(text));
    return -1;
}

static int fill_text(const char *argument, PyObject *value, PyObject *keep, void *to) {
    const char *text = NULL;
    if (value != Py_None && (text = take_text(argument, value)) == NULL) return -1;
    memcpy(to, &text, sizeof text);
    return PyList_Append(keep, value);
}

static int fill_member(const SpecMember *member, const char *argument, PyObject *value, PyObject *keep, void *to) {
    int truth;
    switch (member->type) {
    case SPEC_BOOL:
        truth = PyObject_IsTrue(value);
        *(bool *)to = truth > 0;
        return truth < 0 ? -1 : 0;
    case SPEC_FLOAT:
    case SPEC_DOUBLE:
        return fill_number(member, argument, value, to);
    case SPEC_CHARS:
        return fill_chars(member, argument, value, to);
    case SPEC_TEXT:
        return fill_text(argument, value, keep, to);
    case SPEC_NAME:
        return fill_name(member, argument, value, to);
    case SPEC_PARSED:
        return member->parse(value, to);
    default:
        return fill_whole(member, argument, value, to);
    }
}

/* ---- the dict ---- */

/* How messages call it. */
static void write_where(const SpecTable *table, PyObject *dict, char where[ARGUMENT_BYTES]) {
    PyObject *name = PyDict_GetItemString(dict, "name");
    const char *text = name != NULL && PyUnicode_Check(name) ? PyUnicode_AsUTF8(name) : NULL;
    PyErr_Clear(); /* of a name that is no text: its own key says so */
    PyOS_snprintf(where, ARGUMENT_BYTES, "%s", table->what);
    if (text != NULL) PyOS_snprintf(where, ARGUMENT_BYTES, "%s '%.60s'", table->what, text);
}

static const SpecMember *find_member(const SpecTable *table, PyObject *key) {
    const SpecMember *member = table->members;
    if (!PyUnicode_Check(key)) return NULL;
    while (member->key != NULL && PyUnicode_CompareWithASCIIString(key, member->key) != 0) member++;
    return member->key == NULL ? NULL : member;
}

static int refuse_unknown_keys(const SpecTable *table, const char *where, PyObject *dict) {
    PyObject *key, *value;
    Py_ssize_t position = 0;
    char known[512] = "";
    for (const SpecMember *member = table->members; member->key != NULL; member++) {
        size_t used = strlen(known);
        PyOS_snprintf(known + used, sizeof known - used, "%s%s", used == 0 ? "" : ", ", member->key);
    }
    while (PyDict_Next(dict, &position, &key, &value)) {
        if (find_member(table, key) != NULL) continue;
        PyErr_Format(PyExc_TypeError, "%s has no %.200R; there are %s", where, key, known);
        return -1;
    }
    return 0;
}

/* `dict` is a copy that nobody else knows: converting its values may run Python code. */
static int fill_all(const SpecTable *table, PyObject *dict, PyObject *keep, void *out) {
    char where[ARGUMENT_BYTES], argument[ARGUMENT_BYTES + 64];
    write_where(table, dict, where);
    if (refuse_unknown_keys(table, where, dict) < 0) return -1;
    for (const SpecMember *member = table->members; member->key != NULL; member++) {
        PyObject *value = PyDict_GetItemString(dict, member->key);
        PyOS_snprintf(argument, sizeof argument, "%s: %s", where, member->key);
        if (value == NULL) {
            PyErr_Format(PyExc_TypeError, "%s is missing", argument);
            return -1;
        }
        if (fill_member(member, argument, value, keep, (char *)out + member->offset) < 0) return -1;
    }
    return 0;
}

int spec_fill(const SpecTable *table, PyObject *dict, PyObject *keep, void *out) {
    if (dict != NULL && !PyDict_Check(dict)) {
        PyErr_Format(PyExc_TypeError, "%s must be a dict, not %.100s", table->what, Py_TYPE(dict)->tp_name);
        return -1;
    }
    PyObject *copy = dict == NULL ? PyDict_New() : PyDict_Copy(dict);
    if (copy == NULL) return -1;
    int result = fill_all(table, copy, keep, out);
    Py_DECREF(copy);
    return result;
}

int spec_kind(PyObject *dict, const char *what, const char *key, NamesOf names) {
    char argument[ARGUMENT_BYTES];
    PyObject *value = PyDict_Check(dict) ? PyDict_GetItemString(dict, key) : NULL;
    if (value == NULL) {
        PyErr_Format(PyExc_TypeError, "%s must be a dict with a %s, not %.200R", what, key, dict);
        return -1;
    }
    PyOS_snprintf(argument, sizeof argument, "%s: %s", what, key);
    Py_INCREF(value); /* what a message says of it may run Python code */
    int number = spec_name(value, argument, names);
    Py_DECREF(value);
    return number;
}
