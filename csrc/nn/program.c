/* Turns a description into a program for one image size: operators, tensors, and the phases of a step (or of an
 * evaluation) between their barriers. Then assigns memory to each tensor. Independent of the backend. */
#include <limits.h>
#include <string.h>

#include "base/checked.h"
#include "base/memory.h"
#include "nn/private.h"

#define PASSES_PER_NODE 8
#define TENSORS_PER_NODE 8
#define TENSOR_ALIGNMENT 64

typedef struct Builder {
    Program *program; /* borrowed */
    const NnModel *model;
    const NnPlanOptions *options;
    const NnModelDesc *desc;
    int trainable_block[NN_MAX_NODES + 1]; /* at i + 1: the highest trained block of nodes up to i, or -1 */
    NnUsers users[NN_MAX_NODES];
    Pass closing[2 * NN_MAX_NODES]; /* of the phase under construction */
    int closing_count;
    bool backward;
    size_t gradient_end;
} Builder;

static size_t element_bytes(const Builder *b, TensorType type) {
    if (type == TENSOR_BYTE) return 1;
    return type == TENSOR_STORAGE && b->program->precision != PRECISION_FLOAT32 ? 2 : 4;
}

static int add_tensor(Builder *b, TensorType type, int height, int width, int channels, bool held) {
    Tensor *tensor = &b->program->tensors[b->program->tensor_count];
    *tensor = (Tensor){.type = type,
                       .height = height,
                       .width = width,
                       .channels = channels,
                       .held = held || b->options->keep_all,
                       .first_pass = INT_MAX,
                       .last_pass = -1};
    tensor->image_bytes = (size_t)height * (size_t)width * (size_t)channels * element_bytes(b, type);
    return b->program->tensor_count++;
}

static int add_like(Builder *b, int like, TensorType type, bool held) {
    const Tensor *tensor = &b->program->tensors[like];
    return add_tensor(b, type, tensor->height, tensor->width, tensor->channels, held);
}

static void extend_lifetime(Builder *b, int tensor) {
    if (tensor < 0) return;
    Tensor *used = &b->program->tensors[tensor];
    int pass = b->program->pass_count;
    if (pass < used->first_pass) used->first_pass = pass;
    if (pass > used->last_pass) used->last_pass = pass;
}

/* The tensors that each pass reads or writes: members of Op. */
enum {
    USES_INPUT = 1,
    USES_OUTPUT = 2,
    USES_RESIDUAL = 4,
    USES_SAVED = 8,
    USES_INDEX = 16,
    USES_OUTPUT_GRADIENT = 32,
    USES_INPUT_GRADIENT = 64,
    USES_SKIP_GRADIENT = 128,
    USES_ACTIVATION_GRADIENT = 256
};

static const int pass_uses[PASS_KINDS] = {
    [PASS_LOAD] = USES_INPUT,
    [PASS_CONV_FORWARD] = USES_INPUT | USES_OUTPUT,
    [PASS_CONV_FILTER] = USES_INPUT | USES_OUTPUT_GRADIENT,
    [PASS_CONV_DATA] = USES_OUTPUT_GRADIENT | USES_INPUT_GRADIENT,
    [PASS_NORM_STATISTICS] = USES_INPUT | USES_SAVED | USES_INDEX,
    [PASS_NORM_APPLY] = USES_SAVED | USES_OUTPUT | USES_RESIDUAL | USES_INDEX,
    [PASS_NORM_REDUCE] =
        USES_OUTPUT_GRADIENT | USES_SKIP_GRADIENT | USES_ACTIVATION_GRADIENT | USES_SAVED | USES_INDEX | USES_RESIDUAL,
    [PASS_NORM_BACKWARD] = USES_ACTIVATION_GRADIENT | USES_SAVED | USES_INDEX | USES_INPUT_GRADIENT,
    [PASS_NORM_EVALUATE] = USES_INPUT | USES_OUTPUT | USES_RESIDUAL,
    [PASS_HEAD_EVALUATE] = USES_INPUT,
    [PASS_HEAD_TRAIN] = USES_INPUT | USES_INPUT_GRADIENT,
};

const char *nn_pass_name(PassKind kind) {
    static const char *const names[PASS_KINDS] = {
        [PASS_LOAD] = "load",
        [PASS_CONV_FORWARD] = "conv forward",
        [PASS_CONV_FILTER] = "conv filter gradient",
        [PASS_CONV_DATA] = "conv data gradient",
        [PASS_CONV_CLOSE] = "conv filter sums",
        [PASS_NORM_STATISTICS] = "pool, statistics",
        [PASS_NORM_CLOSE] = "statistics sums",
        [PASS_NORM_APPLY] = "norm, activation",
        [PASS_NORM_REDUCE] = "activation gradient, sums",
        [PASS_NORM_BACKWARD_CLOSE] = "norm gradient sums",
        [PASS_NORM_BACKWARD] = "norm gradient, unpool",
        [PASS_NORM_RUNNING] = "running statistics",
        [PASS_NORM_EVALUATE] = "pool, norm, activation",
        [PASS_HEAD_EVALUATE] = "head",
        [PASS_HEAD_TRAIN] = "head, loss",
        [PASS_HEAD_CLOSE] = "head sums",
    };
    return names[kind];
}

/* Without a tensor for the gradient before the activation, it is recomputed from the output's gradient. */
static int uses_of(const Op *op, PassKind kind) {
    bool again = kind == PASS_NORM_BACKWARD && op->activation_gradient < 0;
    return pass_uses[kind] | (again ? USES_OUTPUT_GRADIENT : 0);
}

int nn_program_tensors_of(const Program *program, const Pass *pass, int tensors[PASS_MAX_TENSORS]) {
    const Op *o = &program->ops[pass->op];
    const int all[PASS_MAX_TENSORS] = {o->input,          o->output,        o->residual,
                                       o->saved,          o->index,         o->output_gradient,
                                       o->input_gradient, o->skip_gradient, o->activation_gradient};
    int count = 0;
    for (int i = 0; i < PASS_MAX_TENSORS; i++) {
        bool known = (uses_of(o, pass->kind) & (1 << i)) == 0 || all[i] < 0;
        for (int j = 0; j < count && !known; j++) known = tensors[j] == all[i];
        if (!known) tensors[count++] = all[i];
    }
    return count;
}

static void add_ranged(Builder *b, PassKind kind, int op, int block) {
    Pass *pass = &b->program->passes[b->program->pass_count];
    int tensors[PASS_MAX_TENSORS];
    *pass = (Pass){kind, op, block};
    int count = nn_program_tensors_of(b->program, pass, tensors);
    for (int i = 0; i < count; i++) extend_lifetime(b, tensors[i]);
    bool first_of_norm = kind == PASS_NORM_STATISTICS || kind == PASS_NORM_EVALUATE;
    if (first_of_norm && b->model->table->fuses) extend_lifetime(b, b->program->ops[op - 1].input);
    b->program->pass_count++;
}

static void add_closing(Builder *b, PassKind kind, int op, int block) {
    b->closing[b->closing_count++] = (Pass){kind, op, block};
}

/* Ends the phase whose ranged passes begin at `first`; returns where the next one's begin. */
static int end_phase(Builder *b, int first) {
    Program *program = b->program;
    if (program->pass_count == first && b->closing_count == 0) return first;
    Phase *phase = &program->phases[program->phase_count++];
    *phase = (Phase){.ranged = first,
                     .ranged_count = program->pass_count - first,
                     .closing = program->pass_count,
                     .closing_count = b->closing_count,
                     .backward = b->backward,
                     .gradient_end = b->gradient_end};
    for (int i = 0; i < b->closing_count; i++) program->passes[program->pass_count++] = b->closing[i];
    b->closing_count = 0;
    b->gradient_end = 0;
    return program->pass_count;
}

static size_t layer_offset(const Builder *b, int node, NnLayerKind kind) {
    const NnLayer *layer = nn_model_find_layer(b->model, node, kind);
    return layer == NULL ? SIZE_MAX : layer->offset;
}

static void finish_layers(Builder *b, int node) {
    for (int i = 0; i < b->model->layer_count; i++) {
        const NnLayer *layer = &b->model->layers[i];
        size_t end = layer->offset + layer->elems;
        end = round_up(end, NN_LAYER_ALIGNMENT);
        if (layer->trained && layer->node == node && end > b->gradient_end) b->gradient_end = end;
    }
}

static Status refuse_size(const Builder *b, int index) {
    FAIL(STATUS_ARGUMENT, "images of %d x %d are too small: nothing is left of them at node \"%s\"", b->options->height,
         b->options->width, b->desc->nodes[index].name);
}

/* In training, the convolution's output is held if it is the tensor that its norm normalises. */
static Status make_conv(Builder *b, int index) {
    Op *op = &b->program->ops[index];
    const NnNodeDesc *node = &op->node;
    bool training = b->program->training, first = index == 0;
    int border = first ? 2 * node->padding : 0;
    if (first) {
        bool backward = training && b->trainable_block[index + 1] >= 0;
        op->input = add_tensor(b, TENSOR_FLOAT32, b->options->height + border, b->options->width + border,
                               b->desc->image_channels, backward);
    } else {
        op->input = b->program->ops[nn_desc_source(b->desc, index)].output;
    }
    const Tensor *input = &b->program->tensors[op->input];
    int rows = input->height + 2 * node->padding - border, columns = input->width + 2 * node->padding - border;
    if (rows < node->kernel || columns < node->kernel) return refuse_size(b, index);
    const NnNodeDesc *reader = index + 1 < b->desc->count ? &b->desc->nodes[index + 1] : NULL;
    bool normalised = reader != NULL && reader->kind == NODE_NORM && reader->pool_place != POOL_BEFORE_NORM;
    bool read_by_conv = reader != NULL && reader->kind == NODE_CONV;
    op->output = add_tensor(b, TENSOR_STORAGE, (rows - node->kernel) / node->stride + 1,
                            (columns - node->kernel) / node->stride + 1, node->out_channels,
                            training && (normalised || read_by_conv));
    op->train_filters = !node->frozen_filters;
    op->train_bias = node->bias;
    op->weight = layer_offset(b, index, LAYER_FILTERS);
    op->bias = layer_offset(b, index, LAYER_BIAS);
    return STATUS_OK;
}

static Status make_norm(Builder *b, int index) {
    Op *op = &b->program->ops[index];
    const NnNodeDesc *node = &op->node;
    bool training = b->program->training;
    op->input = op->saved = b->program->ops[index - 1].output;
    Tensor pooled = b->program->tensors[op->input];
    if (node->pool_place != POOL_NONE) {
        pooled.height /= node->pool;
        pooled.width /= node->pool;
        if (pooled.height < 1 || pooled.width < 1) return refuse_size(b, index);
        if (training) op->index = add_tensor(b, TENSOR_BYTE, pooled.height, pooled.width, pooled.channels, true);
        if (training && node->pool_place == POOL_BEFORE_NORM) {
            op->saved = add_tensor(b, TENSOR_STORAGE, pooled.height, pooled.width, pooled.channels, true);
        }
    }
    op->output = add_tensor(b, TENSOR_STORAGE, pooled.height, pooled.width, pooled.channels, training);
    if (node->residual_place != RESIDUAL_NONE) {
        op->residual = b->program->ops[node->residual].output;
        const Tensor *residual = &b->program->tensors[op->residual];
        if (residual->height != pooled.height || residual->width != pooled.width) {
            FAIL(STATUS_ARGUMENT, "node \"%s\" has maps of %d x %d, but adds those of \"%s\" of %d x %d", node->name,
                 pooled.height, pooled.width, b->desc->nodes[node->residual].name, residual->height, residual->width);
        }
    }
    for (int i = 0; i < b->model->statistic_count; i++) {
        if (b->model->statistics[i].node != index) continue;
        op->mean = b->model->statistics[i].mean_offset;
        op->variance = b->model->statistics[i].variance_offset;
    }
    op->scale = layer_offset(b, index, LAYER_NORM_SCALE);
    op->bias = layer_offset(b, index, LAYER_NORM_BIAS);
    return STATUS_OK;
}

static Status make_op(Builder *b, int index) {
    Op *op = &b->program->ops[index];
    *op = (Op){.node = b->desc->nodes[index], .weight = SIZE_MAX, .bias = SIZE_MAX, .scale = SIZE_MAX};
    op->input = op->output = op->residual = op->saved = op->index = -1;
    op->output_gradient = op->input_gradient = op->skip_gradient = op->activation_gradient = -1;
    b->program->op_count = index + 1;
    if (op->node.kind == NODE_CONV) return make_conv(b, index);
    if (op->node.kind == NODE_NORM) return make_norm(b, index);
    op->input = b->program->ops[index - 1].output;
    op->weight = layer_offset(b, index, LAYER_LINEAR);
    op->bias = layer_offset(b, index, LAYER_BIAS);
    return STATUS_OK;
}

/* Whether the gradient of this node's output is needed. */
static bool wants_gradient(const Builder *b, int index) {
    return index >= 0 && (b->trainable_block[index + 1] >= 0 || b->options->keep_all);
}

/* The gradient of a node's output is computed by its first reader or, if nothing reads it, passed on by its adder. The
 * second reader's or the adder's is the skip gradient. */
static void make_output_gradients(Builder *b, int index) {
    Op *op = &b->program->ops[index];
    const NnUsers *users = &b->users[index];
    bool residual_after = op->node.residual_place == RESIDUAL_AFTER_ACTIVATION;
    if (op->output < 0 || !wants_gradient(b, index)) return;
    if (users->reader >= 0 || users->adder < 0) {
        bool later = users->reader > index + 1;
        op->output_gradient = add_like(b, op->output, TENSOR_STORAGE, residual_after || later);
    }
    if (users->second_reader >= 0) op->skip_gradient = add_like(b, op->output, TENSOR_STORAGE, true);
    bool twice = users->reader >= 0 && (users->second_reader >= 0 || users->adder >= 0);
    op->add_skip_in_place = twice && (residual_after || b->options->keep_all);
}

static void make_gradients(Builder *b, int index) {
    Op *op = &b->program->ops[index];
    make_output_gradients(b, index);
    /* A residual before the activation passes this gradient on. */
    bool kept = !b->model->table->recomputes || op->node.residual_place == RESIDUAL_BEFORE_ACTIVATION;
    if (op->node.kind == NODE_NORM && wants_gradient(b, index) && kept) {
        op->activation_gradient = add_like(b, op->saved, TENSOR_STORAGE, true);
    }
    if (index == 0) return;
    int source = nn_desc_source(b->desc, index);
    const Op *read = &b->program->ops[source];
    op->input_gradient = b->users[source].second_reader == index ? read->skip_gradient : read->output_gradient;
}

static void link_residuals(Builder *b) {
    for (int i = b->desc->count - 1; i >= 0; i--) {
        const NnUsers *users = &b->users[i];
        if (users->adder < 0) continue;
        const Op *adder = &b->program->ops[users->adder];
        bool after = adder->node.residual_place == RESIDUAL_AFTER_ACTIVATION;
        int handed = after ? adder->output_gradient : adder->activation_gradient;
        if (users->reader >= 0) {
            b->program->ops[i].skip_gradient = handed;
        } else if (wants_gradient(b, i)) {
            b->program->ops[i].output_gradient = handed;
        }
    }
}

static int forward_phases(Builder *b) {
    int first = 0;
    for (int i = 0; i < b->desc->count; i++) {
        const NnNodeDesc *node = &b->desc->nodes[i];
        if (node->kind == NODE_CONV) {
            if (i == 0) add_ranged(b, PASS_LOAD, i, INT_MAX);
            add_ranged(b, PASS_CONV_FORWARD, i, INT_MAX);
        } else if (node->kind == NODE_NORM) {
            add_ranged(b, PASS_NORM_STATISTICS, i, INT_MAX);
            add_closing(b, PASS_NORM_CLOSE, i, INT_MAX);
            first = end_phase(b, first);
            add_ranged(b, PASS_NORM_APPLY, i, INT_MAX);
        } else {
            add_ranged(b, PASS_HEAD_TRAIN, i, INT_MAX);
            add_closing(b, PASS_HEAD_CLOSE, i, INT_MAX);
            finish_layers(b, i);
        }
    }
    return first;
}

static void training_phases(Builder *b) {
    int first = forward_phases(b), last = b->desc->count - 1;
    if (b->desc->nodes[last].kind != NODE_HEAD) first = end_phase(b, first);
    b->backward = true;
    for (int i = last; i >= 0; i--) {
        const Op *op = &b->program->ops[i];
        if (!wants_gradient(b, i)) break;
        if (op->node.kind == NODE_NORM) {
            add_ranged(b, PASS_NORM_REDUCE, i, op->node.block);
            add_closing(b, PASS_NORM_BACKWARD_CLOSE, i, op->node.block);
            finish_layers(b, i);
            first = end_phase(b, first);
            add_ranged(b, PASS_NORM_BACKWARD, i, op->node.block);
        } else if (op->node.kind == NODE_CONV) {
            if (op->train_filters || op->train_bias) {
                add_ranged(b, PASS_CONV_FILTER, i, op->node.block);
                add_closing(b, PASS_CONV_CLOSE, i, op->node.block);
                finish_layers(b, i);
            }
            int source = nn_desc_source(b->desc, i);
            if (wants_gradient(b, source)) {
                int block = b->trainable_block[source + 1];
                add_ranged(b, PASS_CONV_DATA, i, block < 0 ? INT_MAX : block);
            }
        }
    }
    end_phase(b, first);
}

static void evaluation_phases(Builder *b) {
    for (int i = 0; i < b->desc->count; i++) {
        if (b->desc->nodes[i].kind == NODE_NORM) add_closing(b, PASS_NORM_RUNNING, i, INT_MAX);
    }
    int first = end_phase(b, 0);
    for (int i = 0; i < b->desc->count; i++) {
        const NnNodeDesc *node = &b->desc->nodes[i];
        if (i == 0) add_ranged(b, PASS_LOAD, i, INT_MAX);
        PassKind kind = node->kind == NODE_CONV   ? PASS_CONV_FORWARD
                        : node->kind == NODE_NORM ? PASS_NORM_EVALUATE
                                                  : PASS_HEAD_EVALUATE;
        add_ranged(b, kind, i, INT_MAX);
    }
    end_phase(b, first);
}

/* The gradient before a norm's activation reuses the memory of its output, which is last read by the filter gradient
 * just before, and so is still in cache. */
static int place_shared_with(const Builder *b, int tensor) {
    if (b->options->keep_all) return -1;
    for (int i = 0; i < b->desc->count; i++) {
        const Op *op = &b->program->ops[i];
        if (op->activation_gradient != tensor || b->users[i].adder >= 0) continue;
        if (op->node.pool_place == POOL_AFTER_ACTIVATION) return -1;
        return i + 1 < b->desc->count ? op->output : -1;
    }
    return -1;
}

static Status place_held(Builder *b) {
    uint64_t end = 0, bytes;
    for (int i = 0; i < b->program->tensor_count; i++) {
        Tensor *tensor = &b->program->tensors[i];
        if (!tensor->held) continue;
        int shared = place_shared_with(b, i);
        if (shared >= 0) {
            tensor->offset = b->program->tensors[shared].offset;
            continue;
        }
        tensor->offset = end;
        if (!checked_mul(tensor->image_bytes, (uint64_t)b->options->batch, &bytes) || !checked_add(end, bytes, &end) ||
            !checked_round_up(end, TENSOR_ALIGNMENT, &end) || end > SIZE_MAX / 2) {
            FAIL(STATUS_ARGUMENT, "a batch of %d images of %d x %d is too large", b->options->batch, b->options->height,
                 b->options->width);
        }
    }
    b->program->arena_bytes = end;
    return STATUS_OK;
}

static bool lifetimes_overlap(const Tensor *a, const Tensor *b) {
    return a->first_pass <= b->last_pass && b->first_pass <= a->last_pass;
}

/* Assigns the lowest offset that overlaps no tensor with an overlapping lifetime. */
static void place_scratch(Program *program, int index) {
    Tensor *tensor = &program->tensors[index];
    size_t room = round_up(tensor->image_bytes, TENSOR_ALIGNMENT);
    size_t offset = 0;
    for (bool moved = true; moved;) {
        moved = false;
        for (int i = 0; i < index; i++) {
            const Tensor *other = &program->tensors[i];
            if (other->held || !lifetimes_overlap(tensor, other)) continue;
            size_t end = (other->offset + other->image_bytes + TENSOR_ALIGNMENT - 1) / TENSOR_ALIGNMENT;
            end *= TENSOR_ALIGNMENT;
            if (offset < end && other->offset < offset + room) {
                offset = end;
                moved = true;
            }
        }
    }
    tensor->offset = offset;
}

static void describe_training(Builder *b) {
    int block = -1;
    b->trainable_block[0] = -1;
    for (int i = 0; i < b->desc->count; i++) {
        const NnNodeDesc *node = &b->desc->nodes[i];
        bool trains = node->kind != NODE_CONV || !node->frozen_filters || node->bias;
        if (trains) block = node->block;
        b->trainable_block[i + 1] = block;
        b->users[i] = nn_desc_users(b->desc, i);
    }
}

static Status check_sizes(const NnPlanOptions *options) {
    if (options->batch < 1 || options->batch > 1 << 20) {
        FAIL(STATUS_ARGUMENT, "the batch is %d, but must be within 1..%d", options->batch, 1 << 20);
    }
    if (options->height < 1 || options->height > 4096 || options->width < 1 || options->width > 4096) {
        FAIL(STATUS_ARGUMENT, "images are %d x %d, but height and width must be within 1..4096", options->height,
             options->width);
    }
    return STATUS_OK;
}

Status nn_program_init(Program *program, const NnModel *model, const NnPlanOptions *options, bool training) {
    Status status = STATUS_OK;
    size_t nodes = (size_t)model->desc.count;
    Builder builder = {.program = program, .model = model, .options = options, .desc = &model->desc};
    TRY(check_sizes(options));
    *program = (Program){.training = training, .batch = options->batch, .precision = model->precision};
    TRY_GOTO(memory_calloc(nodes, sizeof *program->ops, &program->ops));
    TRY_GOTO(memory_calloc(nodes * TENSORS_PER_NODE, sizeof *program->tensors, &program->tensors));
    TRY_GOTO(memory_calloc(nodes * PASSES_PER_NODE, sizeof *program->passes, &program->passes));
    TRY_GOTO(memory_calloc(2 * nodes + 2, sizeof *program->phases, &program->phases));
    describe_training(&builder);
    for (int i = 0; i < model->desc.count; i++) TRY_GOTO(make_op(&builder, i));
    if (training) {
        for (int i = 0; i < model->desc.count; i++) make_gradients(&builder, i);
        link_residuals(&builder);
        training_phases(&builder);
    } else {
        evaluation_phases(&builder);
    }
    TRY_GOTO(place_held(&builder));
    for (int i = 0; i < program->tensor_count; i++) {
        if (!program->tensors[i].held) place_scratch(program, i);
    }
done:
    if (status != STATUS_OK) nn_program_fini(program);
    return status;
}

void nn_program_fini(Program *program) {
    memory_free(program->phases);
    memory_free(program->passes);
    memory_free(program->tensors);
    memory_free(program->ops);
    *program = (Program){0};
}
