/* Checks a description of a network, so that later stages may rely on its structure. Knows nothing about memory or
 * image sizes. */
#include <string.h>

#include "nn/private.h"

int nn_desc_source(const NnModelDesc *desc, int index) {
    const NnNodeDesc *node = &desc->nodes[index];
    return node->kind == NODE_CONV && node->reads > 0 ? node->reads : index - 1;
}

NnUsers nn_desc_users(const NnModelDesc *desc, int index) {
    NnUsers users = {-1, -1, -1};
    for (int i = desc->count - 1; i > index; i--) {
        const NnNodeDesc *node = &desc->nodes[i];
        if (node->residual_place != RESIDUAL_NONE && node->residual == index) users.adder = i;
        if (nn_desc_source(desc, i) != index) continue;
        users.second_reader = users.reader;
        users.reader = i;
    }
    return users;
}

int nn_desc_channels(const NnModelDesc *desc, int index) {
    if (index < 0) return desc->image_channels;
    const NnNodeDesc *node = &desc->nodes[index];
    return node->kind == NODE_NORM ? nn_desc_channels(desc, index - 1) : node->out_channels;
}

static const char *kind_name(NnNodeKind kind) {
    return kind == NODE_CONV ? "a convolution" : kind == NODE_NORM ? "a norm" : "a head";
}

static Status check_range(const NnNodeDesc *node, const char *what, int value, int low, int high) {
    if (value >= low && value <= high) return STATUS_OK;
    FAIL(STATUS_ARGUMENT, "node \"%s\": %s is %d, but must be within %d..%d", node->name, what, value, low, high);
}

static Status check_conv(const NnModelDesc *desc, int index) {
    const NnNodeDesc *node = &desc->nodes[index];
    TRY(check_range(node, "the number of output channels", node->out_channels, 1, 65536));
    TRY(check_range(node, "the kernel size", node->kernel, 1, 15));
    TRY(check_range(node, "the stride", node->stride, 1, 8));
    TRY(check_range(node, "the padding", node->padding, 0, node->kernel - 1));
    TRY(check_range(node, "the node that it reads", node->reads, 0, index > 0 ? index - 1 : 0));
    if (index > 0) {
        const NnNodeDesc *source = &desc->nodes[nn_desc_source(desc, index)];
        if (node->bias || node->activation != ACTIVATION_NONE || node->frozen_filters) {
            FAIL(STATUS_ARGUMENT,
                 "node \"%s\": only a convolution that reads the images may have a bias, an activation or frozen "
                 "filters; put a norm after it for a bias and an activation",
                 node->name);
        }
        if (index > 1 && source->kind == NODE_CONV) {
            FAIL(STATUS_ARGUMENT, "node \"%s\" reads the convolution \"%s\": put a norm between them", node->name,
                 source->name);
        }
    }
    return STATUS_OK;
}

static Status check_residual(const NnModelDesc *desc, int index) {
    const NnNodeDesc *node = &desc->nodes[index];
    if (node->residual_place == RESIDUAL_NONE) return STATUS_OK;
    TRY(check_range(node, "the node whose output is added", node->residual, 0, index - 1));
    const NnNodeDesc *other = &desc->nodes[node->residual];
    if (other->kind != NODE_NORM) {
        FAIL(STATUS_ARGUMENT, "node \"%s\" adds the output of \"%s\", which is %s; only a norm's output can be added",
             node->name, other->name, kind_name(other->kind));
    }
    if (nn_desc_channels(desc, index) != nn_desc_channels(desc, node->residual)) {
        FAIL(STATUS_ARGUMENT, "node \"%s\" has %d channels, but adds the output of \"%s\" with %d", node->name,
             nn_desc_channels(desc, index), other->name, nn_desc_channels(desc, node->residual));
    }
    if (node->pool_place == POOL_AFTER_ACTIVATION) {
        FAIL(STATUS_ARGUMENT, "node \"%s\": a residual cannot be combined with a pool after the activation",
             node->name);
    }
    return STATUS_OK;
}

static Status check_norm(const NnModelDesc *desc, int index) {
    const NnNodeDesc *node = &desc->nodes[index];
    const NnNodeDesc *read = &desc->nodes[index - 1];
    if (read->kind != NODE_CONV) {
        FAIL(STATUS_ARGUMENT, "node \"%s\": a norm must read a convolution", node->name);
    }
    if (read->bias || read->activation != ACTIVATION_NONE) {
        FAIL(STATUS_ARGUMENT, "node \"%s\" reads \"%s\", which must have neither bias nor activation", node->name,
             read->name);
    }
    if (node->pool_place != POOL_NONE) TRY(check_range(node, "the pool's window", node->pool, 2, 3));
    if (!(node->eps >= 0 && node->eps < 1)) {
        FAIL(STATUS_ARGUMENT, "node \"%s\": eps is %g, but must be within 0..1", node->name, node->eps);
    }
    if (!(node->keep >= 0 && node->keep < 1)) {
        FAIL(STATUS_ARGUMENT, "node \"%s\": keep is %g, but must be at least 0 and below 1", node->name, node->keep);
    }
    return check_residual(desc, index);
}

static Status check_head(const NnModelDesc *desc, int index) {
    const NnNodeDesc *node = &desc->nodes[index];
    TRY(check_range(node, "the number of classes", node->out_channels, 1, NN_MAX_CLASSES));
    if (index != desc->count - 1) FAIL(STATUS_ARGUMENT, "node \"%s\": the head must be the last node", node->name);
    if (desc->nodes[index - 1].kind != NODE_NORM) {
        FAIL(STATUS_ARGUMENT, "node \"%s\": the head must read a norm", node->name);
    }
    return STATUS_OK;
}

/* The gradient of an output has at most two addends, and every output except the last is used. */
static Status check_users(const NnModelDesc *desc) {
    int uses[NN_MAX_NODES] = {0}, adds[NN_MAX_NODES] = {0};
    for (int i = 1; i < desc->count; i++) {
        const NnNodeDesc *node = &desc->nodes[i];
        uses[nn_desc_source(desc, i)]++;
        if (node->residual_place == RESIDUAL_NONE) continue;
        uses[node->residual]++;
        adds[node->residual]++;
    }
    for (int i = 0; i < desc->count - 1; i++) {
        const char *name = desc->nodes[i].name;
        if (uses[i] == 0) FAIL(STATUS_ARGUMENT, "no node uses the output of node \"%s\"", name);
        if (adds[i] > 1) {
            FAIL(STATUS_ARGUMENT, "the output of node \"%s\" is added by %d nodes; at most one may", name, adds[i]);
        }
        if (uses[i] > 2)
            FAIL(STATUS_ARGUMENT, "the output of node \"%s\" is used %d times; at most twice is allowed", name,
                 uses[i]);
    }
    return STATUS_OK;
}

static Status check_node(const NnModelDesc *desc, int index) {
    const NnNodeDesc *node = &desc->nodes[index];
    if (memchr(node->name, '\0', sizeof node->name) == NULL || node->name[0] == '\0') {
        FAIL(STATUS_ARGUMENT, "node %d needs a name of 1..%d bytes", index, NN_NAME_BYTES - 1);
    }
    for (int i = 0; i < index; i++) {
        if (strcmp(desc->nodes[i].name, node->name) == 0) {
            FAIL(STATUS_ARGUMENT, "two nodes have the name \"%s\"", node->name);
        }
    }
    TRY(check_range(node, "the activation", (int)node->activation, ACTIVATION_NONE, ACTIVATION_SILU));
    TRY(check_range(node, "the initialisation", (int)node->init, INIT_UNIFORM, INIT_ZERO));
    TRY(check_range(node, "the bias's initialisation", (int)node->bias_init, INIT_UNIFORM, INIT_ZERO));
    TRY(check_range(node, "the pool's place", (int)node->pool_place, POOL_NONE, POOL_AFTER_ACTIVATION));
    TRY(check_range(node, "the residual's place", (int)node->residual_place, RESIDUAL_NONE, RESIDUAL_AFTER_ACTIVATION));
    TRY(check_range(node, "the head's pool", (int)node->head_pool, HEAD_POOL_MAX, HEAD_POOL_AVERAGE));
    TRY(check_range(node, "the block", node->block, index == 0 ? 0 : desc->nodes[index - 1].block, 1000));
    switch (node->kind) {
    case NODE_CONV:
        return check_conv(desc, index);
    case NODE_NORM:
        return check_norm(desc, index);
    case NODE_HEAD:
        return check_head(desc, index);
    }
    FAIL(STATUS_ARGUMENT, "node \"%s\" is of an unknown kind (%d)", node->name, (int)node->kind);
}

Status nn_desc_check(const NnModelDesc *desc) {
    if (desc->count < 1 || desc->count > NN_MAX_NODES) {
        FAIL(STATUS_ARGUMENT, "a model has 1..%d nodes, not %d", NN_MAX_NODES, desc->count);
    }
    if (desc->image_channels < 1 || desc->image_channels > NN_MAX_IMAGE_CHANNELS) {
        FAIL(STATUS_ARGUMENT, "images have 1..%d channels, not %d", NN_MAX_IMAGE_CHANNELS, desc->image_channels);
    }
    if (desc->nodes[0].kind != NODE_CONV) {
        FAIL(STATUS_ARGUMENT, "the first node must be a convolution that reads the images");
    }
    for (int i = 0; i < desc->count; i++) TRY(check_node(desc, i));
    return check_users(desc);
}
