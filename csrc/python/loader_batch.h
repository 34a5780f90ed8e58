/* The batches of a loader as arrays: _cgxffcv.LoaderBatch keeps their memory alive while any array refers to it. */
#ifndef CGXFFCV_PYTHON_LOADER_BATCH_H
#define CGXFFCV_PYTHON_LOADER_BATCH_H

#include "loader/loader.h"
#include "python/module.h"

/* (arrays, ids) of a batch of that loader, whose outputs that move are on GPU `device`: those are Tensors, the others
 * NumPy arrays. Takes over the caller's reference, even on an exception, when it returns NULL. */
PyObject *py_loader_batch_wrap(ModuleState *state, const Loader *loader, int device, LoaderBatch *batch);

/* The type; 0 or -1. */
int py_loader_batch_add(PyObject *module);

#endif
