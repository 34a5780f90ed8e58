/* The model and plan types, for other binding files. */
#ifndef CGXFFCV_PYTHON_NN_H
#define CGXFFCV_PYTHON_NN_H

#include "nn/model.h"
#include "python/module.h"

typedef struct ModelObject {
    PyObject_HEAD Model *model; /* owned */
    bool busy;                  /* one of its plans runs without the GIL */
} ModelObject;

typedef struct PlanObject {
    PyObject_HEAD Plan *plan; /* owned */
    ModelObject *model;       /* owned reference */
    PlanOptions options;
    int channels, classes; /* of the images; of the head, or 0 */
} PlanObject;

/* The C object of an argument that must be a _cgxffcv.Model; NULL with TypeError set if it is not. Borrowed. */
ModelObject *nn_take_model(ModuleState *state, PyObject *object);
PlanObject *nn_take_plan(ModuleState *state, PyObject *object);

/* Marks the model as running; -1 with RuntimeError set if it is already. Both under the GIL. */
int nn_enter(ModelObject *model);
void nn_leave(ModelObject *model);

#endif
