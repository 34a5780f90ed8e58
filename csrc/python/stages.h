/* Runs of a plan in stages: methods of AllreducePlan, which allreduce.c lists. */
#ifndef CGXFFCV_PYTHON_STAGES_H
#define CGXFFCV_PYTHON_STAGES_H

#include "allreduce/allreduce.h"
#include "python/module.h"

/* allreduce.c: the allreduce of a plan, whose communicator cannot be closed until py_allreduce_release; NULL with an
 * exception set. *types: the array types that may hold its elements. */
Allreduce *py_allreduce_acquire(PyObject *plan, unsigned *types);
void py_allreduce_release(PyObject *plan);

PyObject *py_stages_messages(PyObject *plan, PyObject *args);
PyObject *py_stages_encode(PyObject *plan, PyObject *args);
PyObject *py_stages_reduce(PyObject *plan, PyObject *args);
PyObject *py_stages_finish(PyObject *plan, PyObject *args);
PyObject *py_stages_space(PyObject *plan, PyObject *unused);
PyObject *py_stages_bind(PyObject *plan, PyObject *args);
PyObject *py_stages_step(PyObject *plan, PyObject *args);

#endif
