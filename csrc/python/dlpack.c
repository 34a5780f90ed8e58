/* DLPack in and out. What comes in is another library's: every number is checked before it is used. The layout of the
 * structs is DLPack's, of versions 0 and 1. */
#include "python/dlpack.h"

#include <string.h>

#define CUDA_HOST 3 /* page-locked */
#define CUDA_MANAGED 13
#define VERSION_MAJOR 1
#define READ_ONLY UINT64_C(1)

typedef enum DlpackKind { KIND_INT = 0, KIND_UINT = 1, KIND_FLOAT = 2, KIND_BFLOAT = 4 } DlpackKind;

typedef struct DlpackTensor {
    void *data;
    int32_t device_type, device_id;
    int32_t ndim;
    uint8_t kind, bits;
    uint16_t lanes;
    int64_t *shape, *strides; /* strides in elements; NULL: C order */
    uint64_t byte_offset;
} DlpackTensor;

typedef struct DlpackOld {
    DlpackTensor tensor;
    void *context;
    void (*deleter)(struct DlpackOld *self);
} DlpackOld;

typedef struct DlpackVersioned {
    uint32_t major, minor;
    void *context;
    void (*deleter)(struct DlpackVersioned *self);
    uint64_t flags;
    DlpackTensor tensor;
} DlpackVersioned;

static const char *const capsule_names[] = {"dltensor", "dltensor_versioned"};
static const char *const used_names[] = {"used_dltensor", "used_dltensor_versioned"};

static const struct {
    DlpackKind kind;
    int bits;
} kinds[ALLREDUCE_TYPES] = {
    [ALLREDUCE_F32] = {KIND_FLOAT, 32}, [ALLREDUCE_F16] = {KIND_FLOAT, 16}, [ALLREDUCE_BF16] = {KIND_BFLOAT, 16},
    [ALLREDUCE_F64] = {KIND_FLOAT, 64}, [ALLREDUCE_I8] = {KIND_INT, 8},     [ALLREDUCE_U8] = {KIND_UINT, 8},
    [ALLREDUCE_I16] = {KIND_INT, 16},   [ALLREDUCE_U16] = {KIND_UINT, 16},  [ALLREDUCE_I32] = {KIND_INT, 32},
    [ALLREDUCE_U32] = {KIND_UINT, 32},  [ALLREDUCE_I64] = {KIND_INT, 64},   [ALLREDUCE_U64] = {KIND_UINT, 64},
};

/* ---- in ---- */

static int read_type(const DlpackTensor *from, PyTensor *out) {
    for (int i = 0; i < ALLREDUCE_TYPES; i++) {
        if (from->lanes != 1 || from->kind != kinds[i].kind || from->bits != kinds[i].bits) continue;
        out->type = (AllreduceType)i;
        return 0;
    }
    return PY_REFUSE(PyExc_TypeError,
                     "a DLPack array of %d lanes of %d bits of kind %d is not of a type that is summed", from->lanes,
                     from->bits, from->kind);
}

static int read_device(const DlpackTensor *from, PyTensor *out) {
    bool cuda = from->device_type == DLPACK_CUDA || from->device_type == CUDA_MANAGED;
    if (!cuda && from->device_type != DLPACK_CPU && from->device_type != CUDA_HOST) {
        return PY_REFUSE(PyExc_TypeError,
                         "a DLPack array on a device of type %d cannot be accessed: only host memory and CUDA memory "
                         "can",
                         from->device_type);
    }
    if (cuda && from->device_id < 0) {
        return PY_REFUSE(PyExc_ValueError, "a DLPack array claims to be on GPU %d", from->device_id);
    }
    out->device = cuda ? from->device_id : -1;
    return 0;
}

static int read_tensor(ModuleState *state, const DlpackTensor *from, PyTensor *out) {
    if (read_type(from, out) < 0 || read_device(from, out) < 0) return -1;
    if (from->ndim < 0 || from->ndim > ARRAY_MAX_DIMS || (from->ndim > 0 && from->shape == NULL)) {
        return PY_REFUSE(PyExc_ValueError, "a DLPack array has %d dimensions%s; 0 to %d are possible", from->ndim,
                         from->shape == NULL ? " and no shape" : "", ARRAY_MAX_DIMS);
    }
    out->ndim = from->ndim;
    for (int i = 0; i < out->ndim; i++) out->shape[i] = from->shape[i];
    uintptr_t address = (uintptr_t)from->data;
    if (from->byte_offset > UINTPTR_MAX - address) {
        return PY_REFUSE(PyExc_ValueError, "a DLPack array begins beyond the end of memory");
    }
    out->data = from->data == NULL ? NULL : (char *)from->data + from->byte_offset;
    return py_tensor_measure(state, out, from->strides, (int64_t)allreduce_type_bytes(out->type));
}

static int read_versioned(ModuleState *state, const DlpackVersioned *from, PyTensor *out) {
    if (from->major != VERSION_MAJOR) {
        return PY_REFUSE(PyExc_BufferError, "DLPack %u.%u has a different layout than version %d", from->major,
                         from->minor, VERSION_MAJOR);
    }
    out->writable = (from->flags & READ_ONLY) == 0;
    return read_tensor(state, &from->tensor, out);
}

int py_dlpack_import(ModuleState *state, PyObject *capsule, PyTensor *out, DlpackLoan *loan) {
    bool versioned = PyCapsule_IsValid(capsule, capsule_names[1]);
    if (!versioned && !PyCapsule_IsValid(capsule, capsule_names[0])) {
        return PY_REFUSE(PyExc_TypeError, "__dlpack__ must return an unused DLPack capsule, not %.100s",
                         Py_TYPE(capsule)->tp_name);
    }
    void *managed = PyCapsule_GetPointer(capsule, capsule_names[versioned]);
    if (managed == NULL || PyCapsule_SetName(capsule, used_names[versioned]) < 0) return -1;
    *loan = (DlpackLoan){managed, versioned};
    out->writable = true;
    int result =
        versioned ? read_versioned(state, managed, out) : read_tensor(state, &((DlpackOld *)managed)->tensor, out);
    if (result < 0) py_dlpack_release(loan);
    return result;
}

/* Keeps an exception that is set: a deleter may run Python code. */
void py_dlpack_release(DlpackLoan *loan) {
    DlpackLoan was = *loan;
    PyObject *type, *value, *traceback;
    *loan = (DlpackLoan){0};
    if (was.managed == NULL) return;
    PyErr_Fetch(&type, &value, &traceback);
    if (was.versioned) {
        DlpackVersioned *managed = was.managed;
        if (managed->deleter != NULL) managed->deleter(managed);
    } else {
        DlpackOld *managed = was.managed;
        if (managed->deleter != NULL) managed->deleter(managed);
    }
    PyErr_Restore(type, value, traceback);
}

/* ---- out ---- */

/* With room for its shape and strides. */
typedef struct DlpackGiven {
    union {
        DlpackOld old;
        DlpackVersioned versioned;
    } managed;
    PyObject *owner; /* owned */
    int64_t shape[ARRAY_MAX_DIMS], strides[ARRAY_MAX_DIMS];
} DlpackGiven;

/* Called from any thread. */
static void given_free(void *context) {
    DlpackGiven *given = context;
    PyGILState_STATE gil = PyGILState_Ensure();
    Py_DECREF(given->owner);
    PyMem_Free(given);
    PyGILState_Release(gil);
}

static void delete_old(DlpackOld *self) { given_free(self->context); }
static void delete_versioned(DlpackVersioned *self) { given_free(self->context); }

/* Frees a capsule that nobody has taken anything out of. */
static void capsule_free(PyObject *capsule) {
    for (int i = 0; i < 2; i++) {
        if (!PyCapsule_IsValid(capsule, capsule_names[i])) continue;
        DlpackGiven *given = PyCapsule_GetPointer(capsule, capsule_names[i]);
        given_free(given);
    }
}

PyObject *py_dlpack_export(PyObject *owner, const PyTensor *tensor, bool versioned) {
    DlpackGiven *given = PyMem_Calloc(1, sizeof *given);
    if (given == NULL) return PyErr_NoMemory();
    int64_t stride = 1;
    for (int i = tensor->ndim - 1; i >= 0; i--) {
        given->shape[i] = tensor->shape[i];
        given->strides[i] = stride;
        stride *= tensor->shape[i] == 0 ? 1 : tensor->shape[i];
    }
    DlpackTensor content = {.data = tensor->data,
                            .device_type = tensor->device < 0 ? DLPACK_CPU : DLPACK_CUDA,
                            .device_id = tensor->device < 0 ? 0 : tensor->device,
                            .ndim = tensor->ndim,
                            .kind = (uint8_t)kinds[tensor->type].kind,
                            .bits = (uint8_t)kinds[tensor->type].bits,
                            .lanes = 1,
                            .shape = given->shape,
                            .strides = given->strides};
    if (versioned) {
        given->managed.versioned = (DlpackVersioned){.major = VERSION_MAJOR,
                                                     .context = given,
                                                     .deleter = delete_versioned,
                                                     .flags = tensor->writable ? 0 : READ_ONLY,
                                                     .tensor = content};
    } else {
        given->managed.old = (DlpackOld){.tensor = content, .context = given, .deleter = delete_old};
    }
    given->owner = Py_NewRef(owner);
    PyObject *capsule = PyCapsule_New(given, capsule_names[versioned], capsule_free);
    if (capsule == NULL) given_free(given);
    return capsule;
}
