/* Counts the operations of a network from its description. */
#include "train/trainer.h"

typedef struct Size {
    int height, width, channels;
} Size;

/* The size of a node's output, and the operations of its forward pass. */
static Size node_forward(const NodeDesc *node, Size in, double *flops) {
    *flops = 0;
    if (node->kind == NODE_NORM) {
        int pool = node->pool_place == POOL_NONE ? 1 : node->pool;
        return (Size){in.height / pool, in.width / pool, in.channels};
    }
    if (node->kind == NODE_HEAD) {
        *flops = 2.0 * in.channels * node->out_channels;
        return (Size){1, 1, node->out_channels};
    }
    Size out = {(in.height + 2 * node->padding - node->kernel) / node->stride + 1,
                (in.width + 2 * node->padding - node->kernel) / node->stride + 1, node->out_channels};
    *flops = 2.0 * node->kernel * node->kernel * in.channels * out.channels * out.height * out.width;
    return out;
}

/* Whether a layer of block >= first_block is trained in nodes [0, node]: then node + 1 needs its data gradient. */
static bool trained_up_to(const Model *model, int node, int first_block) {
    int count;
    const Layer *layers = model_layers(model, &count);
    for (int i = 0; i < count; i++) {
        if (layers[i].trained && layers[i].block >= first_block && layers[i].node <= node) return true;
    }
    return false;
}

static bool filters_trained(const Model *model, int node, int first_block) {
    int count;
    const Layer *layers = model_layers(model, &count);
    for (int i = 0; i < count; i++) {
        bool matrix = layers[i].kind == LAYER_FILTERS || layers[i].kind == LAYER_LINEAR;
        if (matrix && layers[i].node == node) return layers[i].trained && layers[i].block >= first_block;
    }
    return false;
}

static double count_flops(const Model *model, int side, int first_block, bool backward) {
    const ModelDesc *desc = model_desc(model);
    Size size = {side, side, desc->image_channels};
    double total = 0;
    for (int i = 0; i < desc->count; i++) {
        double forward;
        size = node_forward(&desc->nodes[i], size, &forward);
        total += forward;
        if (!backward) continue;
        if (filters_trained(model, i, first_block)) total += forward;
        if (trained_up_to(model, i - 1, first_block)) total += forward;
    }
    return total;
}

double trainer_flops_forward(const Model *model, int side) { return count_flops(model, side, 0, false); }

double trainer_flops_step(const Model *model, int side, int first_block) {
    return count_flops(model, side, first_block, true);
}
