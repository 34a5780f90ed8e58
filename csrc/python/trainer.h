/* Shared by the files of the type Trainer. */
#ifndef CGXFFCV_PYTHON_TRAINER_H
#define CGXFFCV_PYTHON_TRAINER_H

#include "python/nn.h"
#include "train/gradients.h"
#include "train/runner.h"
#include "train/trainer.h"

#define TRAINER_MAX_VIEWS 16
#define TRAINER_MAX_KINDS 16
#define TRAINER_MAX_LAYER_BITS 64

typedef struct TrainerObject {
    PyObject_HEAD Trainer *trainer; /* owned */
    Allreduce *allreduce;           /* owned; NULL for one rank */
    ModelObject *model_object;      /* owned reference */
    NnModel *model;                 /* borrowed from model_object */
    PyObject *comm_object;          /* owned reference, taken until close; NULL for one rank */
    float mean[NN_MAX_IMAGE_CHANNELS], std[NN_MAX_IMAGE_CHANNELS];
    int side, classes, batch, groups;
    long long steps;
    int runners; /* Runner objects that use the trainer */
} TrainerObject;

/* The C object of an argument that must be a _cgxffcv.Trainer; NULL with TypeError set if it is not. Borrowed. */
TrainerObject *py_trainer_of_object(ModuleState *state, PyObject *object);

/* 0 if the trainer can be used now; otherwise -1 with an exception. What follows must not run Python code or release
 * the GIL; anything else belongs between enter and leave, with its arguments parsed before: meanwhile nobody can use or
 * close the trainer. */
int py_trainer_ready(const TrainerObject *self);
int py_trainer_enter(TrainerObject *self);
void py_trainer_leave(TrainerObject *self);

/* Reads a sequence of (dy, dx, mirror, weight); the count, or -1 with an exception. */
int py_trainer_parse_views(PyObject *sequence, TrainerView views[TRAINER_MAX_VIEWS]);

/* trainer_config.c. Parses the keyword arguments of a Trainer; 0, or -1 with an exception. */
typedef struct TrainerSettings {
    TrainerConfig config;
    float mean[NN_MAX_IMAGE_CHANNELS], std[NN_MAX_IMAGE_CHANNELS];
} TrainerSettings;
int py_trainer_parse_settings(PyObject *keywords, TrainerSettings *out);

/* How gradients are reduced, from a dict; `keep` is a list from the caller that holds the layers' names. */
typedef struct TrainerReduction {
    AllreduceOptions options;
    AllreduceCosts costs; /* options.costs, unless that is NULL */
    TrainerLayerBits layers[TRAINER_MAX_LAYER_BITS];
    int layer_count;
    PyObject *keep; /* borrowed */
} TrainerReduction;
int py_trainer_parse_reduction(PyObject *dict, TrainerReduction *out);

/* trainer_state.c: the methods that read and write what a checkpoint keeps. */
PyObject *py_trainer_read(TrainerObject *self, PyObject *name);
PyObject *py_trainer_write(TrainerObject *self, PyObject *args);
PyObject *py_trainer_layers(TrainerObject *self, PyObject *unused);
PyObject *py_trainer_norms(TrainerObject *self, PyObject *unused);

/* trainer_plans.c: how the passes of its plans are computed. */
PyObject *py_trainer_algorithms(TrainerObject *self, PyObject *unused);
PyObject *py_trainer_library(TrainerObject *self, PyObject *unused);

#endif
