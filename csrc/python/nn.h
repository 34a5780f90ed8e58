/* The model and plan types, for other binding files. */
#ifndef CGXFFCV_PYTHON_NN_H
#define CGXFFCV_PYTHON_NN_H

#include "nn/model.h"
#include "python/module.h"

/* The flat buffers of a model. */
typedef enum ModelBuffer { MODEL_PARAMETERS, MODEL_GRADIENTS, MODEL_RUNNING, MODEL_BUFFERS } ModelBuffer;

/* The host copy of one buffer of a model on a GPU; without data on the CPU, where Python sees the buffer itself. */
typedef struct Mirror {
    float *data;        /* owned */
    uint64_t exchanged; /* the hash of what both sides had after the last copy */
} Mirror;

typedef struct ModelObject {
    PyObject_HEAD NnModel *model; /* owned */
    bool busy;                    /* one of its plans runs without the GIL */
    Mirror mirrors[MODEL_BUFFERS];
} ModelObject;

typedef struct PlanObject {
    PyObject_HEAD NnPlan *plan; /* owned */
    ModelObject *model;         /* owned reference */
    NnPlanOptions options;
    int channels, classes; /* of the images; of the head, or 0 */
} PlanObject;

/* The C object of an argument that must be a _cgxffcv.Model; NULL with TypeError set if it is not. Borrowed. */
ModelObject *py_nn_take_model(ModuleState *state, PyObject *object);

/* A block's number, clamped to the numbers that a model can have; 0, or -1 with an exception. */
int py_nn_parse_block(PyObject *object, int *out);

/* Marks the model as running; -1 with RuntimeError set if it is already. Both under the GIL. */
int py_nn_enter(ModelObject *model);
void py_nn_leave(ModelObject *model);

/* nn_mirror.c. What Python sees of a buffer: float32, borrowed, never moved. */
float *py_nn_buffer_data(const ModelObject *model, ModelBuffer buffer);
size_t py_nn_buffer_elems(const ModelObject *model, ModelBuffer buffer);
Status py_nn_mirrors_init(ModelObject *model);
void py_nn_mirrors_fini(ModelObject *model);

/* Between enter and leave, without the GIL, around what runs the model: what Python wrote is copied to the device, and
 * what the device has is copied back. On the CPU there is nothing to do. */
Status py_nn_upload(ModelObject *model);
Status py_nn_download(ModelObject *model);

#endif
