/* What the training bindings share. */
#ifndef CGXFFCV_PYTHON_TRAIN_H
#define CGXFFCV_PYTHON_TRAIN_H

#include "optim/optim.h"
#include "python/module.h"

#define TRAIN_MAX_GROUPS 16

/* Reads a sequence of (rule, momentum, decay, iterations, a, b, c, epsilon); the count, or -1 with an exception. */
int train_parse_groups(PyObject *sequence, OptimGroup groups[TRAIN_MAX_GROUPS]);

/* Reads a sequence of (rate, active, project), one for each of `count` groups; 0, or -1 with an exception. */
int train_parse_rates(PyObject *sequence, int count, OptimRate rates[TRAIN_MAX_GROUPS]);

#endif
