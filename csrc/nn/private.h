/* What the files of nn/ share. */
#ifndef CGXFFCV_NN_PRIVATE_H
#define CGXFFCV_NN_PRIVATE_H

#include "nn/ops.h"

#define NN_MAX_LAYERS (2 * NN_MAX_NODES)

struct NnModel {
    NnModelDesc desc;
    Precision precision;
    Convolution convolution;
    bool deterministic;
    const OpsTable *table; /* static */
    Pool *pool;            /* owned */
    DeviceStream *stream;  /* owned; NULL on the CPU */
    NnLayer layers[NN_MAX_LAYERS];
    int layer_count;
    NnStatistic statistics[NN_MAX_NODES];
    int statistic_count;
    float *parameters, *gradients, *statistic_data; /* owned, backend memory */
    size_t parameter_elems, gradient_elems, statistic_elems;
};

/* The node that node `index` reads; -1: the images. */
int nn_desc_source(const NnModelDesc *desc, int index);

/* The users of a node's output: the first and the second convolution, norm or head that reads it, and the norm that
 * adds it; -1: none. At most two of the three exist. */
typedef struct NnUsers {
    int reader, second_reader, adder;
} NnUsers;
NnUsers nn_desc_users(const NnModelDesc *desc, int index);

/* The number of channels of the output of node `index`; of the images for -1. */
int nn_desc_channels(const NnModelDesc *desc, int index);

/* Fails for a description that cannot be built; the message names the node. */
Status nn_desc_check(const NnModelDesc *desc);

/* The layer of this kind of a node, or NULL. */
const NnLayer *nn_model_find_layer(const NnModel *model, int node, NnLayerKind kind);

/* Creates the operators, tensors and phases for one image size; nn_program_fini frees them. */
Status nn_program_init(Program *program, const NnModel *model, const NnPlanOptions *options, bool training);
void nn_program_fini(Program *program);

#endif
