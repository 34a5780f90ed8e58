/* Shared by the training bindings. */
#ifndef CGXFFCV_PYTHON_TRAIN_H
#define CGXFFCV_PYTHON_TRAIN_H

#include "optim/optim.h"
#include "python/module.h"

#define TRAIN_MAX_GROUPS 16

/* An OptimGroup from a dict of rule, momentum, decay and, for Muon, iterations, a, b, c, epsilon; 0, or -1 with an
 * exception. */
int py_train_parse_rule(PyObject *item, void *group);

#endif
