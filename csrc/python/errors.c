/* The one place that turns status codes into Python exceptions. Their attributes carry what the record knows: path,
 * offset, field, sample, reason (BetonError); rank, operation (CommError and its children). */
#include "python/module.h"

static int add_exception(PyObject *module, const char *name, const char *doc, PyObject *bases, PyObject **out) {
    char full[64];
    PyOS_snprintf(full, sizeof full, "cgxffcv.%s", name);
    *out = PyErr_NewExceptionWithDoc(full, doc, bases, NULL);
    return *out == NULL ? -1 : PyModule_AddObjectRef(module, name, *out);
}

int py_errors_add(PyObject *module) {
    ModuleState *s = py_module_state(module);
    if (add_exception(module, "BetonError",
                      "A .beton file, or a sample of it, violates the format. Attributes: path, offset (bytes), "
                      "field, sample, reason; None where unknown.",
                      PyExc_ValueError, &s->beton_error) < 0) {
        return -1;
    }
    if (add_exception(module, "CudaError", "CUDA or one of its libraries failed.", PyExc_RuntimeError, &s->cuda_error) <
        0) {
        return -1;
    }
    if (add_exception(module, "CommError",
                      "Communication failed, or the ranks disagree on a call. Attributes: rank (the peer), operation.",
                      PyExc_RuntimeError, &s->comm_error) < 0) {
        return -1;
    }
    if (add_exception(module, "CommTimeout", "A peer did not answer before the deadline.", s->comm_error,
                      &s->comm_timeout) < 0) {
        return -1;
    }
    if (add_exception(module, "PeerLost", "A peer died.", s->comm_error, &s->peer_lost) < 0) return -1;
    return add_exception(module, "NotBuiltError", "This build lacks the requested part; the message names the remedy.",
                         PyExc_ImportError, &s->not_built_error);
}

static PyObject *exception_of(ModuleState *s, Status code) {
    switch (code) {
    case STATUS_TYPE:
        return PyExc_TypeError;
    case STATUS_INDEX:
        return PyExc_IndexError;
    case STATUS_FORMAT:
        return s->beton_error;
    case STATUS_IO:
        return PyExc_OSError;
    case STATUS_MEMORY:
        return PyExc_MemoryError;
    case STATUS_CUDA:
        return s->cuda_error;
    case STATUS_LIBRARY:
        return PyExc_RuntimeError;
    case STATUS_TRANSPORT:
        return s->comm_error;
    case STATUS_TIMEOUT:
        return s->comm_timeout;
    case STATUS_PEER_LOST:
        return s->peer_lost;
    case STATUS_NOT_BUILT:
        return s->not_built_error;
    default:
        return PyExc_ValueError;
    }
}

/* Steals `value`; a failure to set it leaves its exception set. */
static void set(PyObject *exception, const char *name, PyObject *value) {
    if (value == NULL) return;
    (void)PyObject_SetAttrString(exception, name, value);
    Py_DECREF(value);
}

static PyObject *number_or_none(int64_t value) { return value < 0 ? Py_NewRef(Py_None) : PyLong_FromLongLong(value); }

static PyObject *text_or_none(const char *text) {
    return text[0] == '\0' ? Py_NewRef(Py_None) : PyUnicode_DecodeFSDefault(text);
}

/* "path: offset 24, field 'image', sample 3: reason", with the parts that are known. */
static PyObject *record_describe(const ErrorRecord *r) {
    char where[STATUS_PATH_BYTES + 160] = "";
    size_t used = 0;
#define ADD(...)                                                                                                       \
    do {                                                                                                               \
        if (used < sizeof where) {                                                                                     \
            used += (size_t)PyOS_snprintf(where + used, sizeof where - used, __VA_ARGS__);                             \
        }                                                                                                              \
    } while (0)
    if (r->path[0] != '\0') ADD("%s: ", r->path);
    if (r->operation[0] != '\0') ADD("%s: ", r->operation);
    if (r->sample >= 0) ADD("sample %lld: ", (long long)r->sample);
    if (r->field[0] != '\0') ADD("field '%s': ", r->field);
    if (r->offset >= 0) ADD("byte %lld: ", (long long)r->offset);
#undef ADD
    PyObject *prefix = PyUnicode_DecodeFSDefault(where), *text = PyUnicode_DecodeFSDefault(r->message);
    PyObject *both = prefix != NULL && text != NULL ? PyUnicode_Concat(prefix, text) : NULL;
    Py_XDECREF(prefix);
    Py_XDECREF(text);
    return both;
}

static PyObject *raise_os_error(const ErrorRecord *r) {
    PyObject *message = PyUnicode_DecodeFSDefault(r->message);
    if (message == NULL) return NULL;
    PyObject *path = text_or_none(r->path);
    PyObject *exception = path == NULL ? NULL
                          : r->errno_value != 0
                              ? PyObject_CallFunction(PyExc_OSError, "iOO", r->errno_value, message, path)
                              : PyObject_CallFunction(PyExc_OSError, "O", message);
    Py_XDECREF(path);
    Py_DECREF(message);
    if (exception != NULL) PyErr_SetObject((PyObject *)Py_TYPE(exception), exception);
    Py_XDECREF(exception);
    return NULL;
}

PyObject *py_errors_raise(ModuleState *state, Status status) {
    if (status == STATUS_INTERRUPTED && PyErr_Occurred()) return NULL;
    if (status == STATUS_INTERRUPTED) {
        PyErr_SetNone(PyExc_KeyboardInterrupt);
        return NULL;
    }
    const ErrorRecord *r = error_record();
    if (status == STATUS_IO) return raise_os_error(r);
    PyObject *message = record_describe(r);
    if (message == NULL) return NULL;
    PyObject *type = exception_of(state, status);
    PyObject *exception = PyObject_CallOneArg(type, message);
    Py_DECREF(message);
    if (exception == NULL) return NULL;
    if (status == STATUS_FORMAT) {
        set(exception, "path", text_or_none(r->path));
        set(exception, "offset", number_or_none(r->offset));
        set(exception, "field", text_or_none(r->field));
        set(exception, "sample", number_or_none(r->sample));
        set(exception, "reason", PyUnicode_DecodeFSDefault(r->message));
    } else if (status >= STATUS_TRANSPORT && status < STATUS_NOT_BUILT) {
        set(exception, "rank", number_or_none(r->rank));
        set(exception, "operation", text_or_none(r->operation));
    }
    if (!PyErr_Occurred()) PyErr_SetObject(type, exception);
    Py_DECREF(exception);
    return NULL;
}

Status py_errors_check_signals(void *Py_UNUSED(context)) {
    PyGILState_STATE gil = PyGILState_Ensure();
    int failed = PyErr_CheckSignals();
    PyGILState_Release(gil);
    return failed < 0 ? error_fail(STATUS_INTERRUPTED, "interrupted by a signal") : STATUS_OK;
}

PyObject *py_errors_result(ModuleState *state, Status status, PyObject *result) {
    if (status == STATUS_OK) return result;
    Py_XDECREF(result);
    return py_errors_raise(state, status);
}

PyObject *py_errors_none(ModuleState *state, Status status) {
    return status == STATUS_OK ? Py_NewRef(Py_None) : py_errors_raise(state, status);
}

int py_errors_check(ModuleState *state, Status status) {
    if (status != STATUS_OK) py_errors_raise(state, status);
    return status == STATUS_OK ? 0 : -1;
}
