/* Initial values: each layer is a pure function of the seed and its own name, so that neither adding a layer nor
 * changing the number of ranks affects the others. */
#include <math.h>
#include <string.h>

#include "base/hash.h"
#include "base/memory.h"
#include "base/philox.h"
#include "nn/private.h"

static void fill_uniform(const NnLayer *layer, uint64_t seed, double bound, float *to) {
    uint32_t stream = (uint32_t)hash_bytes(layer->name, strlen(layer->name), 0);
    for (size_t i = 0; i < layer->elems; i += 4) {
        Philox4 words = philox_at(seed, stream, i / 4, PHILOX_INIT, 0);
        for (size_t j = 0; j < 4 && i + j < layer->elems; j++) {
            to[i + j] = (float)((2.0 * (double)philox_uniform(words.word[j]) - 1.0) * bound);
        }
    }
}

/* Filters 0 .. min(out, in) - 1 copy the channel with their number. */
static void set_identity(const NnLayer *layer, float *to) {
    int64_t out = layer->shape[0], kernel = layer->shape[1], in = layer->shape[3];
    int64_t filter = kernel * kernel * in, centre = (kernel / 2 * kernel + kernel / 2) * in;
    for (int64_t o = 0; o < out && o < in; o++) {
        memset(to + o * filter, 0, (size_t)filter * sizeof *to);
        to[o * filter + centre + o] = 1.0f;
    }
}

static void set_unit_deviation(size_t elems, float *to) {
    double sum = 0, squares = 0;
    for (size_t i = 0; i < elems; i++) sum += (double)to[i];
    double mean = sum / (double)elems;
    for (size_t i = 0; i < elems; i++) squares += ((double)to[i] - mean) * ((double)to[i] - mean);
    double deviation = elems > 1 ? sqrt(squares / (double)(elems - 1)) : 0;
    for (size_t i = 0; i < elems && deviation > 0; i++) to[i] = (float)((double)to[i] / deviation);
}

static void fill_layer(const NnModelDesc *desc, const NnLayer *layer, uint64_t seed, float *to) {
    const NnNodeDesc *node = &desc->nodes[layer->node];
    Initialisation init = layer->kind == LAYER_BIAS ? node->bias_init : node->init;
    if (layer->kind == LAYER_NORM_SCALE) {
        for (size_t i = 0; i < layer->elems; i++) to[i] = 1.0f;
        return;
    }
    if (layer->kind == LAYER_NORM_BIAS || init == INIT_ZERO) {
        memset(to, 0, layer->elems * sizeof *to);
        return;
    }
    double fan_in = nn_desc_channels(desc, nn_desc_source(desc, layer->node));
    if (node->kind == NODE_CONV) fan_in *= (double)node->kernel * node->kernel;
    fill_uniform(layer, seed, 1.0 / sqrt(fan_in), to);
    if (layer->kind == LAYER_FILTERS && init == INIT_IDENTITY) set_identity(layer, to);
    if (init == INIT_UNIT_STD) set_unit_deviation(layer->elems, to);
}

static Status reset_statistics(NnModel *model, float *values) {
    for (int i = 0; i < model->statistic_count; i++) {
        const NnStatistic *statistic = &model->statistics[i];
        for (size_t c = 0; c < statistic->channels; c++) values[statistic->variance_offset + c] = 1.0f;
    }
    return nn_model_write(model, model->statistic_data, 0, values, model->statistic_elems);
}

Status nn_model_initialise(NnModel *model, uint64_t seed) {
    Status status = STATUS_OK;
    float *values = NULL;
    size_t most = model->statistic_elems + 1;
    for (int i = 0; i < model->layer_count; i++) {
        if (model->layers[i].elems > most) most = model->layers[i].elems;
    }
    TRY(memory_calloc(most, sizeof *values, &values));
    TRY_GOTO(reset_statistics(model, values));
    for (int i = 0; i < model->layer_count; i++) {
        const NnLayer *layer = &model->layers[i];
        if (!layer->trained) continue;
        fill_layer(&model->desc, layer, seed, values);
        TRY_GOTO(nn_model_write(model, model->parameters, layer->offset, values, layer->elems));
    }
done:
    memory_free(values);
    return status;
}
