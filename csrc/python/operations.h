/* The Python form of image operations. */
#ifndef CGXFFCV_PYTHON_OPERATIONS_H
#define CGXFFCV_PYTHON_OPERATIONS_H

#include "augment/augment.h"
#include "python/module.h"

/* Items of a list of operations, at most: those of a pipeline are fewer. A sequence that is longer is refused before it
 * is copied, since it may be a range without end. */
#define PY_OPERATIONS_MAX 1024

/* Parses a sequence of at most `room` operations of `where` ("one pipeline"): each is a dict of operation (its name),
 * draws (the number of its list of draws), normalized, and values, one for each parameter, in the order of
 * image_operations(). Views appended to the list `keep` hold the arrays that the operations borrow from, whatever
 * happens to the dicts and lists. 0, or -1 with an exception set. */
int py_operations_parse(PyObject *sequence, PyObject *keep, const char *where, int room, AugmentOp *ops, int *count);

/* `values` has room for AUGMENT_MAX_CHANNELS, of which `given` were given. Returns their number; or 0 if all are the
 * same, after filling the rest with that value. */
int py_operations_spread(double *values, int given);

/* operations_batch.c: augment_images; 0 or -1. */
int py_operations_batch_add(PyObject *module);

#endif
