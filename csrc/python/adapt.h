/* Bits for each layer, chosen by its quantisation loss; cgxffcv/adaptive.py is the typed surface. */
#ifndef CGXFFCV_PYTHON_ADAPT_H
#define CGXFFCV_PYTHON_ADAPT_H

#include "python/module.h"

/* A method of a plan. */
PyObject *py_adapt_losses(PyObject *plan, PyObject *args);

#endif
