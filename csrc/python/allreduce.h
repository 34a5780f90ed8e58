/* Plans of the compressed allreduce, made by allreduce.c and run over arrays by allreduce_arrays.c; and an allreduce's
 * options as arguments of several bindings. */
#ifndef CGXFFCV_PYTHON_ALLREDUCE_H
#define CGXFFCV_PYTHON_ALLREDUCE_H

#include "python/comm.h"
#include "python/tensor.h"

/* What runs over several arrays, or in the background, need; made when first needed. */
typedef struct AllreduceScratch {
    void *flat;               /* owned: where arrays are copied one after another; on the plan's device */
    DeviceEvent *free;        /* owned: `flat` has been read */
    DeviceEvent *begin;       /* owned: what a run alongside other work comes after */
    DeviceStream *background; /* owned: for runs in the background */
} AllreduceScratch;

/* The communicator belongs to the object `comm`: each use acquires it, and fails if it has been closed. */
typedef struct AllreduceObject {
    PyObject_HEAD Allreduce *allreduce; /* owned; NULL once the communicator of a plan on a GPU is closed */
    PyObject *comm;                     /* owned */
    AllreduceType type;
    int device;              /* -1: buffers are in host memory */
    CommDependent dependent; /* of plans on a GPU */
    AllreduceScratch scratch;
    PyObject *message_tensors; /* owned: the Tensors of its messages, if the caller moves those; or NULL */
} AllreduceObject;

typedef struct AllreduceSettings {
    AllreduceOptions options;
    AllreduceCosts costs; /* options.costs, unless that is NULL */
} AllreduceSettings;

/* Parses {algorithm: (latency, seconds per element, seconds per byte)}, as allreduce_measure returns it, or None.
 * Returns 1 or 0, or -1 with an exception set. */
int py_allreduce_parse_costs(PyObject *object, AllreduceCosts *out);

/* Parses True for float32, False, or a name; for a table of options. */
int py_allreduce_parse_feedback(PyObject *value, void *out);

/* Parses keyword arguments, all of them. *out starts as allreduce_defaults and must not move afterwards: it points into
 * itself. 0, or -1 with an exception set. */
int py_allreduce_parse(PyObject *kwargs, AllreduceSettings *out);

void py_allreduce_scratch_free(AllreduceScratch *scratch, int device);

/* Methods of a plan. */
PyObject *py_allreduce_put(PyObject *plan, PyObject *args, PyObject *kwargs);
PyObject *py_allreduce_enqueue_on_lane(PyObject *plan, PyObject *args);
PyObject *py_allreduce_wait(PyObject *plan, PyObject *args, PyObject *kwargs);

#endif
