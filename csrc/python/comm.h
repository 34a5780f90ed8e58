/* The communicator as an argument of other bindings. */
#ifndef CGXFFCV_PYTHON_COMM_H
#define CGXFFCV_PYTHON_COMM_H

#include "comm/comm.h"
#include "python/module.h"

/* The communicator behind a Comm object, protected from close() until py_comm_object_release; NULL with an exception
 * set that names `argument`. Waits in its functions take the GIL to check for Ctrl-C: call them without the GIL. */
Comm *py_comm_object_acquire(ModuleState *state, PyObject *object, const char *argument);
void py_comm_object_release(PyObject *object);

/* Something that uses the communicator and has to end before it: `end` is called, with the GIL held, when the
 * communicator is about to be closed. */
typedef struct CommDependent {
    void (*end)(struct CommDependent *self);
    struct CommDependent *before, *after; /* borrowed; private */
} CommDependent;
void py_comm_object_add(PyObject *object, CommDependent *dependent);
void py_comm_object_remove(PyObject *object, CommDependent *dependent);

/* comm_collective.c: methods of the type. */
PyObject *py_comm_barrier(PyObject *self, PyObject *args, PyObject *kwargs);
PyObject *py_comm_broadcast(PyObject *self, PyObject *args, PyObject *kwargs);
PyObject *py_comm_allgather(PyObject *self, PyObject *args, PyObject *kwargs);
PyObject *py_comm_allreduce(PyObject *self, PyObject *args, PyObject *kwargs);
PyObject *py_comm_allreduce_async(PyObject *self, PyObject *args, PyObject *kwargs);
PyObject *py_comm_allreduce_plans(PyObject *self, PyObject *args, PyObject *kwargs);

/* Wraps a communicator, and takes it over even on failure: NULL with an exception set. */
PyObject *py_comm_object_wrap(ModuleState *state, Comm *comm);

/* A timeout argument: None gives 0, the communicator's own; -1 with an exception set for anything but a number of
 * seconds above 0. */
int py_comm_parse_timeout(PyObject *object, const char *argument, double *seconds);

#endif
