/* What engines work on: checked options, copied layers, and every extent divided for the wire. */
#include <string.h>

#include "allreduce/engine.h"
#include "base/memory.h"

AllreduceOptions allreduce_defaults(void) {
    return (AllreduceOptions){.type = ALLREDUCE_F32,
                              .op = ALLREDUCE_AVERAGE,
                              .bits = 4,
                              .bucket_size = 1024,
                              .layer_min_size = 1024,
                              .codec = QUANT_MAXMIN,
                              .rounding = QUANT_NEAREST,
                              .algorithm = ALLREDUCE_AUTO,
                              .threads = 1};
}

static Status check_options(const AllreduceOptions *o) {
    if ((unsigned)o->type >= ALLREDUCE_TYPES) FAIL(STATUS_ARGUMENT, "no element type has the number %d", (int)o->type);
    if ((unsigned)o->op >= ALLREDUCE_OPS) FAIL(STATUS_ARGUMENT, "no operation has the number %d", (int)o->op);
    if ((unsigned)o->algorithm >= ALLREDUCE_ALGORITHMS) {
        FAIL(STATUS_ARGUMENT, "no algorithm has the number %d", (int)o->algorithm);
    }
    if ((unsigned)o->error_feedback >= ALLREDUCE_FEEDBACKS) {
        FAIL(STATUS_ARGUMENT, "no error feedback has the number %d", (int)o->error_feedback);
    }
    if (o->bits != ALLREDUCE_UNCOMPRESSED && (o->bits < 1 || o->bits > QUANTIZE_MAX_BITS)) {
        FAIL(STATUS_ARGUMENT, "bits must be between 1 and %d, or %d for no quantisation, not %d", QUANTIZE_MAX_BITS,
             ALLREDUCE_UNCOMPRESSED, o->bits);
    }
    if (o->bucket_size < 1)
        FAIL(STATUS_ARGUMENT, "bucket_size must be at least 1, not %lld", (long long)o->bucket_size);
    if (o->layer_min_size < 0) {
        FAIL(STATUS_ARGUMENT, "layer_min_size must be at least 0, not %lld", (long long)o->layer_min_size);
    }
    if (o->spikes != 0 && o->codec != QUANT_SPIKES) {
        FAIL(STATUS_ARGUMENT, "spikes must be 0 without the codec maxmin_spikes, not %d", o->spikes);
    }
    if (o->scale != QUANT_SCALE_AUTO && o->codec != QUANT_ROTATED) {
        FAIL(STATUS_ARGUMENT, "scale must be auto without the codec rotated");
    }
    if (o->threads < 1 || o->threads > 256) {
        FAIL(STATUS_ARGUMENT, "threads must be between 1 and 256, not %d", o->threads);
    }
    if (o->op == ALLREDUCE_AVERAGE && o->type > ALLREDUCE_F64) {
        FAIL(STATUS_ARGUMENT, "an average of %s is not of type %s: use a sum", allreduce_type_name((int)o->type),
             allreduce_type_name((int)o->type));
    }
    return STATUS_OK;
}

static size_t text_bytes(const char *text) { return text == NULL ? 0 : strlen(text) + 1; }

/* Moves *at past the copy. */
static const char *copy_text(const char *text, char **at) {
    size_t bytes = text_bytes(text);
    char *copy = *at;
    if (text == NULL) return NULL;
    memcpy(copy, text, bytes);
    *at += bytes;
    return copy;
}

/* How many layers an extent has. */
static Status count_layers(const AllreduceBuffer *buffer, int64_t elems, int *out) {
    int count = 0;
    int64_t end = 0;
    while (count < buffer->layer_count && end < elems) end += buffer->layers[count++].elems;
    if (end != elems) FAIL(STATUS_ARGUMENT, "%lld elements do not end at the end of a layer", (long long)elems);
    *out = count;
    return STATUS_OK;
}

const AllreduceExtent *allreduce_find_extent(const AllreduceSetup *setup, int64_t elems) {
    for (int i = 0; i < setup->extent_count; i++) {
        if (setup->extents[i].elems == elems) return &setup->extents[i];
    }
    return NULL;
}

const AllreduceExtent *allreduce_fed_extent(const AllreduceSetup *setup) {
    const AllreduceExtent *longest = NULL;
    for (int i = 0; i < setup->extent_count; i++) {
        const AllreduceExtent *extent = &setup->extents[i];
        if (extent->feedback && (longest == NULL || extent->elems > longest->elems)) longest = extent;
    }
    return longest;
}

/* The map for the algorithm that is chosen: with "exact" every layer travels unquantised. */
static Status make_map(const AllreduceSetup *setup, AllreduceExtent *extent, int layer_count) {
    Status status = STATUS_OK;
    const AllreduceOptions *options = &setup->options;
    WireTable table = {0};
    TRY(allreduce_table_create(setup->layers, layer_count, options, options->algorithm, &table));
    TRY_GOTO(allreduce_choose(setup, &table, extent));
    if (extent->algorithm == ALLREDUCE_EXACT && table.any_quantized) {
        allreduce_table_destroy(&table);
        TRY_GOTO(allreduce_table_create(setup->layers, layer_count, options, extent->algorithm, &table));
    }
    TRY_GOTO(allreduce_map_create(setup->comm, &table, options, extent->algorithm, &extent->map));
done:
    allreduce_table_destroy(&table);
    return status;
}

static Status add_extent(AllreduceSetup *setup, int layer_count) {
    AllreduceExtent *extent = &setup->extents[setup->extent_count++];
    TRY(make_map(setup, extent, layer_count));
    extent->elems = extent->map->elems;
    extent->feedback = extent->map->any_quantized ? setup->options.error_feedback : ALLREDUCE_NO_FEEDBACK;
    TRY(allreduce_count_bytes(setup, extent));
    return allreduce_number(setup, extent);
}

static Status add_extents(AllreduceSetup *setup, const AllreduceBuffer *buffer) {
    if (buffer->extents == NULL) return add_extent(setup, buffer->layer_count);
    if (buffer->extent_count < 1 || buffer->extent_count > ALLREDUCE_MAX_EXTENTS) {
        FAIL(STATUS_ARGUMENT, "a buffer can be reduced over 1 to %d different lengths, not %d", ALLREDUCE_MAX_EXTENTS,
             buffer->extent_count);
    }
    for (int i = 0; i < buffer->extent_count; i++) {
        int layer_count = 0;
        if (allreduce_find_extent(setup, buffer->extents[i]) != NULL) continue;
        TRY(count_layers(buffer, buffer->extents[i], &layer_count));
        TRY(add_extent(setup, layer_count));
    }
    return STATUS_OK;
}

Status allreduce_settle(AllreduceSetup *setup, AllreduceLink link) {
    bool asked = setup->options.algorithm != ALLREDUCE_AUTO || setup->options.costs != NULL;
    if (asked || setup->link == link) return STATUS_OK;
    setup->link = link;
    for (int i = 0; i < setup->extent_count; i++) {
        AllreduceExtent *extent = &setup->extents[i];
        AllreduceAlgorithm before = extent->algorithm;
        int layer_count = extent->map->layers;
        memory_free(extent->map);
        extent->map = NULL;
        TRY(make_map(setup, extent, layer_count));
        TRY(allreduce_count_bytes(setup, extent));
        if (extent->algorithm == before) continue;
        extent->number = 0; /* it is equal to different ones now */
        TRY(allreduce_number(setup, extent));
    }
    return STATUS_OK;
}

/* Whether "exact" was chosen for all lengths, whatever was requested. */
static bool became_exact(const AllreduceSetup *setup) {
    bool exact = true;
    for (int i = 0; i < setup->extent_count; i++) {
        exact = exact && setup->extents[i].algorithm == ALLREDUCE_EXACT;
    }
    return exact;
}

static bool is_exact(const AllreduceBuffer *buffer, const AllreduceOptions *options) {
    bool exact = options->bits == ALLREDUCE_UNCOMPRESSED;
    for (int i = 0; i < buffer->layer_count; i++) {
        exact = exact && (buffer->layers[i].bits == 0 || buffer->layers[i].bits == ALLREDUCE_UNCOMPRESSED);
    }
    return exact || options->algorithm == ALLREDUCE_EXACT;
}

/* Copies of the layers, with their texts. */
static Status copy_layers(AllreduceSetup *setup, const AllreduceBuffer *buffer) {
    size_t bytes = 0, count = (size_t)buffer->layer_count;
    for (size_t i = 0; i < count; i++)
        bytes += text_bytes(buffer->layers[i].name) + text_bytes(buffer->layers[i].shape);
    TRY(memory_calloc(count, sizeof *setup->layers, &setup->layers));
    TRY(memory_alloc(bytes, 1, &setup->texts));
    char *at = setup->texts;
    for (size_t i = 0; i < count; i++) {
        setup->layers[i] = buffer->layers[i];
        setup->layers[i].name = copy_text(buffer->layers[i].name, &at);
        setup->layers[i].shape = copy_text(buffer->layers[i].shape, &at);
    }
    return STATUS_OK;
}

Status allreduce_setup_fill(AllreduceSetup *setup, Comm *comm, const AllreduceBuffer *buffer,
                            const AllreduceOptions *options) {
    if (buffer->layer_count < 0) FAIL(STATUS_ARGUMENT, "a plan cannot have %d layers", buffer->layer_count);
    TRY(check_options(options));
    setup->comm = comm;
    setup->options = *options;
    if (options->costs != NULL) {
        setup->costs = *options->costs;
        setup->options.costs = &setup->costs;
    }
    setup->exact = is_exact(buffer, options);
    setup->on_device = buffer->on_device;
    setup->compares = buffer->compares;
    setup->data = buffer->data;
    setup->stream = buffer->stream;
    if (!setup->on_device) {
        TRY(memory_calloc(1, sizeof *setup->run, &setup->run));
    } else {
        TRY(device_host_alloc(sizeof *setup->run, &setup->run));
        *setup->run = (AllreduceRun){0};
    }
    TRY(copy_layers(setup, buffer));
    TRY(add_extents(setup, buffer));
    setup->exact = setup->exact || became_exact(setup);
    return STATUS_OK;
}

void allreduce_setup_free(AllreduceSetup *setup) {
    for (int i = 0; i < setup->extent_count; i++) memory_free(setup->extents[i].map);
    memory_free(setup->layers);
    memory_free(setup->texts);
    if (!setup->on_device) {
        memory_free(setup->run);
    } else {
        device_host_free(setup->run);
    }
}
