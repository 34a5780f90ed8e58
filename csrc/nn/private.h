/* What the files of nn/ share among themselves. */
#ifndef CGXFFCV_NN_PRIVATE_H
#define CGXFFCV_NN_PRIVATE_H

#include "nn/ops.h"

#define MODEL_MAX_LAYERS (2 * MODEL_MAX_NODES)

struct Model {
    ModelDesc desc;
    Precision precision;
    Convolution convolution;
    bool deterministic;
    const OpsTable *table; /* static */
    Pool *pool;            /* owned */
    DeviceStream *stream;  /* owned; NULL on the CPU */
    Layer layers[MODEL_MAX_LAYERS];
    int layer_count;
    Statistic statistics[MODEL_MAX_NODES];
    int statistic_count;
    float *parameters, *gradients, *statistic_data; /* owned, backend memory */
    size_t parameter_elems, gradient_elems, statistic_elems;
};

/* Channels that come out of node `index`; of the images for -1. */
int desc_channels(const ModelDesc *desc, int index);

/* Refuses a description that cannot be built; the message names the node. */
Status desc_check(const ModelDesc *desc);

/* The layer of this kind of a node, or NULL. */
const Layer *model_find_layer(const Model *model, int node, LayerKind kind);

/* Operators, tensors and phases for one image size; program_fini frees what they own. */
Status program_init(Program *program, const Model *model, const PlanOptions *options, bool training);
void program_fini(Program *program);

#endif
