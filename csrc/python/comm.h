/* The communicator as an argument of other bindings. */
#ifndef CGXFFCV_PYTHON_COMM_H
#define CGXFFCV_PYTHON_COMM_H

#include "comm/comm.h"
#include "python/module.h"

/* The communicator behind a Comm object, protected from close() until py_comm_object_give; NULL with an exception set
 * that names `argument`. Waits inside it take the GIL by themselves to look for Ctrl-C: call it without the GIL. */
Comm *py_comm_object_take(ModuleState *state, PyObject *object, const char *argument);
void py_comm_object_give(PyObject *object);

/* What works on the communicator and has to end before it: `end` is called, without the GIL's being let go, when that
 * is about to be closed. */
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

/* The object of a communicator, which it takes over, also where it fails: NULL with an exception set. */
PyObject *py_comm_object_wrap(ModuleState *state, Comm *comm);

/* A timeout argument: None gives 0, the communicator's own; -1 with an exception set for anything but a number of
 * seconds above 0. */
int py_comm_parse_timeout(PyObject *object, const char *argument, double *seconds);

#endif
