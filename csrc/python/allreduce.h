/* Plans of the compressed allreduce, as allreduce.c makes them and allreduce_arrays.c runs them over arrays; and the
 * options of an allreduce as arguments of several bindings. */
#ifndef CGXFFCV_PYTHON_ALLREDUCE_H
#define CGXFFCV_PYTHON_ALLREDUCE_H

#include "python/comm.h"
#include "python/tensor.h"

/* What runs over several arrays, or in the background, need; made when they come. */
typedef struct AllreduceRoom {
    void *flat;          /* owned: where arrays are put one behind the other; on the plan's device */
    DeviceEvent *free;   /* owned: `flat` has been read */
    DeviceEvent *begin;  /* owned: what a run beside others' work comes after */
    DeviceStream *aside; /* owned: of runs in the background */
} AllreduceRoom;

/* Its communicator is the object's: each use takes it, and fails if it was closed. */
typedef struct AllreduceObject {
    PyObject_HEAD Allreduce *allreduce; /* owned; NULL once the communicator of a plan on a GPU is closed */
    PyObject *comm;                     /* owned */
    AllreduceType type;
    int device;              /* -1: buffers lie in host memory */
    CommDependent dependent; /* of plans on a GPU */
    AllreduceRoom room;
    PyObject *carried; /* owned: the Tensors of its messages that the caller moves; NULL */
} AllreduceObject;

typedef struct AllreduceSettings {
    AllreduceOptions options;
    AllreduceCosts costs; /* options.costs, unless that is NULL */
} AllreduceSettings;

/* {algorithm: (latency, seconds an element, seconds a byte)}, as allreduce_measure gives it, or None: 1 or 0, and -1
 * with an exception set. */
int py_allreduce_parse_costs(PyObject *object, AllreduceCosts *out);

/* True for float32, False, or a name: for a table of options. */
int py_allreduce_parse_feedback(PyObject *value, void *out);

/* From keyword arguments, all of them; *out starts with allreduce_defaults and stays where it is. 0, or -1 with an
 * exception set. */
int py_allreduce_parse(PyObject *kwargs, AllreduceSettings *out);

void py_allreduce_room_free(AllreduceRoom *room, int device);

/* Methods of a plan. */
PyObject *py_allreduce_put(PyObject *plan, PyObject *args, PyObject *kwargs);
PyObject *py_allreduce_put_beside(PyObject *plan, PyObject *args);
PyObject *py_allreduce_wait(PyObject *plan, PyObject *args, PyObject *kwargs);

#endif
