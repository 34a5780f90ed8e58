/* A model: the table of layers, the flat buffers that all its plans share, and their threads. */
#include "nn/model.h"

#include <stdio.h>
#include <string.h>

#include "base/checked.h"
#include "base/cpu.h"
#include "base/memory.h"
#include "nn/private.h"

const NnLayer *nn_model_find_layer(const NnModel *model, int node, NnLayerKind kind) {
    for (int i = 0; i < model->layer_count; i++) {
        if (model->layers[i].node == node && model->layers[i].kind == kind) return &model->layers[i];
    }
    return NULL;
}

static Status add_layer(NnModel *model, int index, NnLayerKind kind, const char *suffix, bool trained, int ndim,
                        const int64_t *shape) {
    NnLayer *layer = &model->layers[model->layer_count++];
    const NnNodeDesc *node = &model->desc.nodes[index];
    *layer = (NnLayer){.kind = kind, .node = index, .block = node->block, .trained = trained, .ndim = ndim};
    char name[sizeof layer->name];
    snprintf(name, sizeof name, "%.*s.%s", NN_NAME_BYTES - 1, node->name, suffix);
    memcpy(layer->name, name, sizeof name);
    uint64_t elems = 1, end;
    for (int i = 0; i < ndim; i++) {
        layer->shape[i] = shape[i];
        if (!checked_mul(elems, (uint64_t)shape[i], &elems)) elems = UINT64_MAX / 2;
    }
    layer->offset = model->parameter_elems;
    layer->elems = elems;
    if (!checked_add(layer->offset, elems, &end) || !checked_round_up(end, NN_LAYER_ALIGNMENT, &end) ||
        end > SIZE_MAX / 64) {
        FAIL(STATUS_ARGUMENT, "layer \"%s\" is too large", layer->name);
    }
    model->parameter_elems = end;
    if (trained) model->gradient_elems = end;
    return STATUS_OK;
}

static Status add_conv_layers(NnModel *model, int index, bool trained) {
    const NnNodeDesc *node = &model->desc.nodes[index];
    int64_t in = nn_desc_channels(&model->desc, nn_desc_source(&model->desc, index));
    if (node->frozen_filters != trained) {
        TRY(add_layer(model, index, LAYER_FILTERS, "weight", trained, 4,
                      (int64_t[]){node->out_channels, node->kernel, node->kernel, in}));
    }
    if (node->bias && trained) {
        TRY(add_layer(model, index, LAYER_BIAS, "bias", true, 1, (int64_t[]){node->out_channels}));
    }
    return STATUS_OK;
}

static Status add_norm_layers(NnModel *model, int index) {
    int64_t channels = nn_desc_channels(&model->desc, index);
    if (model->desc.nodes[index].scale_trained) {
        TRY(add_layer(model, index, LAYER_NORM_SCALE, "scale", true, 1, &channels));
    }
    return add_layer(model, index, LAYER_NORM_BIAS, "bias", true, 1, &channels);
}

static Status add_head_layers(NnModel *model, int index) {
    const NnNodeDesc *node = &model->desc.nodes[index];
    int64_t classes = node->out_channels, in = nn_desc_channels(&model->desc, index - 1);
    TRY(add_layer(model, index, LAYER_LINEAR, "weight", true, 2, (int64_t[]){classes, in}));
    return node->bias ? add_layer(model, index, LAYER_BIAS, "bias", true, 1, &classes) : STATUS_OK;
}

/* Lays the layers out in the order in which the backward pass finishes them; then the frozen ones. */
static Status lay_out(NnModel *model) {
    for (int i = model->desc.count - 1; i >= 0; i--) {
        const NnNodeDesc *node = &model->desc.nodes[i];
        if (node->kind == NODE_CONV) {
            TRY(add_conv_layers(model, i, true));
        } else if (node->kind == NODE_NORM) {
            TRY(add_norm_layers(model, i));
        } else {
            TRY(add_head_layers(model, i));
        }
    }
    for (int i = 0; i < model->desc.count; i++) {
        if (model->desc.nodes[i].kind == NODE_CONV) TRY(add_conv_layers(model, i, false));
    }
    return STATUS_OK;
}

static void lay_out_statistics(NnModel *model) {
    for (int i = 0; i < model->desc.count; i++) {
        const NnNodeDesc *node = &model->desc.nodes[i];
        if (node->kind != NODE_NORM) continue;
        size_t channels = (size_t)nn_desc_channels(&model->desc, i);
        size_t room = round_up(channels, NN_LAYER_ALIGNMENT);
        NnStatistic *statistic = &model->statistics[model->statistic_count++];
        *statistic = (NnStatistic){.node = i,
                                   .block = node->block,
                                   .mean_offset = model->statistic_elems,
                                   .variance_offset = model->statistic_elems + room,
                                   .channels = channels};
        memcpy(statistic->name, node->name, sizeof statistic->name);
        model->statistic_elems += 2 * room;
    }
}

static Status allocate_buffers(NnModel *model) {
    TRY(model->table->buffer_create(model->parameter_elems, &model->parameters));
    TRY(model->table->buffer_create(model->gradient_elems, &model->gradients));
    return model->table->buffer_create(model->statistic_elems, &model->statistic_data);
}

static Status check_model_options(const NnModelOptions *options) {
    if (options->threads < 0 || options->threads > 1024) {
        FAIL(STATUS_ARGUMENT, "threads is %d, but must be within 0 (all) .. 1024", options->threads);
    }
    if (options->precision < PRECISION_AUTO || options->precision > PRECISION_FLOAT16) {
        FAIL(STATUS_ARGUMENT, "precision %d is not one of auto, float32, bfloat16, float16", (int)options->precision);
    }
    if (options->convolution < CONVOLUTION_AUTO || options->convolution > CONVOLUTION_WINOGRAD4) {
        FAIL(STATUS_ARGUMENT, "convolution %d is not one of auto, direct, winograd2, winograd4",
             (int)options->convolution);
    }
    return STATUS_OK;
}

Status nn_model_create(const NnModelDesc *desc, const NnModelOptions *options, NnModel **out) {
    Status status = STATUS_OK;
    NnModel *model = NULL;
    const OpsTable *table = NULL;
    Precision precision;
    TRY(check_model_options(options));
    TRY(nn_desc_check(desc));
    TRY(options->backend == BACKEND_CUDA ? nn_ops_cuda(&table) : nn_ops_cpu(&table));
    TRY(table->precision(options->precision, &precision));
    TRY(memory_calloc(1, sizeof *model, &model));
    model->desc = *desc;
    model->table = table;
    model->precision = precision;
    model->convolution = options->convolution;
    model->deterministic = options->deterministic;
    if (options->backend == BACKEND_CUDA) TRY_GOTO(device_stream_create(&model->stream));
    TRY_GOTO(lay_out(model));
    lay_out_statistics(model);
    TRY_GOTO(allocate_buffers(model));
    TRY_GOTO(pool_create(options->threads > 0 ? options->threads : cpu_count(), &model->pool));
    *out = model;
    model = NULL;
done:
    nn_model_destroy(model);
    return status;
}

void nn_model_destroy(NnModel *model) {
    if (model == NULL) return;
    pool_destroy(model->pool);
    model->table->buffer_destroy(model->statistic_data);
    model->table->buffer_destroy(model->gradients);
    model->table->buffer_destroy(model->parameters);
    device_stream_destroy(model->stream);
    memory_free(model);
}

const NnModelDesc *nn_model_desc(const NnModel *model) { return &model->desc; }
Precision nn_model_precision(const NnModel *model) { return model->precision; }
Convolution nn_model_convolution(const NnModel *model) { return model->convolution; }
const char *nn_model_backend(const NnModel *model) { return model->table->name; }
Pool *nn_model_pool(const NnModel *model) { return model->pool; }
DeviceStream *nn_model_stream(const NnModel *model) { return model->stream; }
bool nn_model_deterministic(const NnModel *model) { return model->deterministic; }

const NnLayer *nn_model_layers(const NnModel *model, int *count) {
    *count = model->layer_count;
    return model->layers;
}

const NnStatistic *nn_model_statistics(const NnModel *model, int *count) {
    *count = model->statistic_count;
    return model->statistics;
}

float *nn_model_parameter_data(NnModel *model) { return model->parameters; }
float *nn_model_gradient_data(NnModel *model) { return model->gradients; }
float *nn_model_statistic_data(NnModel *model) { return model->statistic_data; }
size_t nn_model_parameter_elems(const NnModel *model) { return model->parameter_elems; }
size_t nn_model_statistic_elems(const NnModel *model) { return model->statistic_elems; }

size_t nn_model_gradient_elems(const NnModel *model, int first_block) {
    size_t end = 0;
    for (int i = 0; i < model->layer_count; i++) {
        const NnLayer *layer = &model->layers[i];
        if (!layer->trained || layer->block < first_block) continue;
        end = layer->offset + layer->elems;
    }
    return round_up(end, NN_LAYER_ALIGNMENT);
}

Status nn_model_write(NnModel *model, float *buffer, size_t offset, const float *from, size_t elems) {
    return model->table->copy(buffer + offset, from, elems * sizeof *from);
}

Status nn_model_read(NnModel *model, const float *buffer, size_t offset, float *to, size_t elems) {
    return model->table->copy(to, buffer + offset, elems * sizeof *to);
}
