/* Builds the layer table of the flat gradient buffer. The gaps between layers are sent as layers of their own,
 * unquantised, so that they stay zero. */
#include "train/gradients.h"

#include <stdio.h>
#include <string.h>

#include "base/memory.h"

static const TrainerLayerBits *find_bits(const TrainerLayerBits *bits, int count, const char *name) {
    for (int i = 0; i < count; i++) {
        if (strcmp(bits[i].name, name) == 0) return &bits[i];
    }
    return NULL;
}

static Status check_names(const NnModel *model, const TrainerLayerBits *bits, int bits_count) {
    int count;
    const NnLayer *layers = nn_model_layers(model, &count);
    for (int b = 0; b < bits_count; b++) {
        bool known = false;
        for (int i = 0; i < count; i++) {
            known = known || (layers[i].trained && strcmp(layers[i].name, bits[b].name) == 0);
        }
        if (known) continue;
        FAIL(STATUS_ARGUMENT,
             "bits are given for layer \"%s\", but the network has no such layer; its first layer is \"%s\"",
             bits[b].name, layers[0].name);
    }
    return STATUS_OK;
}

typedef struct ShapeText {
    char text[96];
} ShapeText;

static AllreduceLayer gap_of(size_t elems) {
    return (AllreduceLayer){.name = "gap", .elems = (int64_t)elems, .dims = 1, .bits = ALLREDUCE_UNCOMPRESSED};
}

/* "(8, 3, 3, 3)" */
static const char *format_shape(const NnLayer *layer, ShapeText *text) {
    size_t used = 0;
    for (int i = 0; i < layer->ndim && used < sizeof text->text; i++) {
        used += (size_t)snprintf(text->text + used, sizeof text->text - used, "%s%lld%s", i == 0 ? "(" : ", ",
                                 (long long)layer->shape[i], i + 1 == layer->ndim ? ")" : "");
    }
    return text->text;
}

/* Fills `table` with the trained layers and the gaps before `end`, and `shapes` with their shapes; returns the number
 * of entries. */
static int make_table(const NnModel *model, size_t end, const TrainerLayerBits *bits, int bits_count,
                      AllreduceLayer *table, ShapeText *shapes) {
    int count, entries = 0;
    const NnLayer *layers = nn_model_layers(model, &count);
    size_t at = 0;
    for (int i = 0; i < count; i++) {
        const NnLayer *layer = &layers[i];
        if (!layer->trained || layer->offset >= end) continue;
        if (layer->offset > at) table[entries++] = gap_of(layer->offset - at);
        const TrainerLayerBits *own = find_bits(bits, bits_count, layer->name);
        table[entries++] = (AllreduceLayer){.name = layer->name,
                                            .shape = format_shape(layer, &shapes[i]),
                                            .elems = (int64_t)layer->elems,
                                            .dims = layer->ndim,
                                            .bits = own == NULL ? 0 : own->bits,
                                            .bucket_size = own == NULL ? 0 : own->bucket_size};
        at = layer->offset + layer->elems;
    }
    if (at < end) table[entries++] = gap_of(end - at);
    return entries;
}

Status trainer_allreduce_create(Comm *comm, NnModel *model, const AllreduceOptions *options,
                                const TrainerLayerBits *bits, int bits_count, const int *first_blocks, int count,
                                Allreduce **out) {
    Status status = STATUS_OK;
    AllreduceLayer *table = NULL;
    ShapeText *shapes = NULL;
    int64_t extents[ALLREDUCE_MAX_EXTENTS];
    int layer_count;
    (void)nn_model_layers(model, &layer_count);
    if (count < 1 || count > ALLREDUCE_MAX_EXTENTS) {
        FAIL(STATUS_ARGUMENT, "there must be 1 to %d sets of trained blocks, not %d", ALLREDUCE_MAX_EXTENTS, count);
    }
    TRY(check_names(model, bits, bits_count));
    TRY_GOTO(memory_calloc(2 * (size_t)layer_count + 1, sizeof *table, &table));
    TRY_GOTO(memory_calloc((size_t)layer_count + 1, sizeof *shapes, &shapes));
    for (int i = 0; i < count; i++) {
        extents[i] = (int64_t)nn_model_gradient_elems(model, first_blocks[i]);
        if (extents[i] <= extents[0]) continue;
        int64_t longest = extents[i];
        extents[i] = extents[0];
        extents[0] = longest;
    }
    AllreduceBuffer buffer = {.layers = table,
                              .layer_count = make_table(model, (size_t)extents[0], bits, bits_count, table, shapes),
                              .extents = extents,
                              .extent_count = count,
                              .on_device = nn_model_stream(model) != NULL,
                              .data = nn_model_stream(model) == NULL ? NULL : nn_model_gradient_data(model),
                              .stream = nn_model_stream(model)};
    TRY_GOTO(allreduce_create(comm, &buffer, options, out));
done:
    memory_free(shapes);
    memory_free(table);
    return status;
}
