/* The options of an allreduce as arguments of several bindings. */
#ifndef CGXFFCV_PYTHON_ALLREDUCE_H
#define CGXFFCV_PYTHON_ALLREDUCE_H

#include "allreduce/allreduce.h"
#include "python/module.h"

typedef struct AllreduceSettings {
    AllreduceOptions options;
    AllreduceCosts costs; /* options.costs, unless that is NULL */
} AllreduceSettings;

/* From keyword arguments, all of them; *out starts with allreduce_defaults and stays where it is. 0, or -1 with an
 * exception set. */
int py_allreduce_parse(PyObject *kwargs, AllreduceSettings *out);

#endif
