/* Describes a setup in words. */
#include <stdarg.h>
#include <stdio.h>

#include "allreduce/engine.h"
#include "allreduce/residual.h"

/* A text that grows to its limit; beyond it only the length is counted. */
typedef struct Text {
    char *at;
    size_t limit, used;
} Text;

__attribute__((format(printf, 2, 3))) static void explain_add(Text *text, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    size_t room = text->used < text->limit ? text->limit - text->used : 0;
    int length = vsnprintf(room > 0 ? text->at + text->used : NULL, room, format, arguments);
    va_end(arguments);
    if (length > 0) text->used += (size_t)length;
}

/* Layers that are quantised differently from what the options say. */
static void add_special_layers(Text *text, const AllreduceSetup *setup) {
    const WireMap *map = setup->extents[0].map;
    for (int i = 0; i < map->layers; i++) {
        const WireLayer *layer = wire_layer(map, i);
        const char *name = setup->layers[i].name;
        bool usual = layer->spec.bits == setup->options.bits && layer->spec.bucket_size == setup->options.bucket_size;
        if (layer->raw || usual) continue;
        explain_add(text, "  layer %d%s%s: %d bits, buckets of %lld\n", i, name == NULL ? "" : " ",
                    name == NULL ? "" : name, layer->spec.bits, (long long)layer->spec.bucket_size);
    }
}

static void add_layers(Text *text, const AllreduceSetup *setup) {
    const AllreduceOptions *options = &setup->options;
    const AllreduceExtent *extent = &setup->extents[0];
    int64_t quantized_layers = 0, quantized_elems = 0;
    for (int i = 0; i < extent->map->layers; i++) {
        const WireLayer *layer = wire_layer(extent->map, i);
        if (layer->raw) continue;
        quantized_layers++;
        quantized_elems += layer->elems;
    }
    explain_add(text, "layers: %d, %lld elements of %s; quantised: %lld layers, %lld elements", extent->map->layers,
                (long long)extent->elems, allreduce_type_name((int)options->type), (long long)quantized_layers,
                (long long)quantized_elems);
    if (quantized_elems > 0) {
        explain_add(text, " (%d bits, buckets of %lld, %s, %s%s)", options->bits, (long long)options->bucket_size,
                    quantize_codec_name((int)options->codec), quantize_rounding_name((int)options->rounding),
                    extent->feedback ? ", error feedback" : "");
    }
    explain_add(text, "\n");
    add_special_layers(text, setup);
}

/* The memory that error feedback takes. */
static void add_residual(Text *text, const AllreduceSetup *setup) {
    const AllreduceExtent *extent = allreduce_fed_extent(setup);
    if (extent == NULL) return;
    size_t whole = (size_t)extent->elems * sizeof(float);
    size_t bytes = extent->feedback == ALLREDUCE_FEEDBACK_I8 ? allreduce_residual_bytes(extent->map) : whole;
    explain_add(text, "residual: %s, %zu bytes\n", allreduce_feedback_name((int)extent->feedback), bytes);
}

static void add_topology(Text *text, const Comm *comm) {
    int shared = 0;
    for (int r = 0; r < comm_size(comm); r++) shared += comm_shares_memory(comm, r);
    explain_add(text, "ranks: %d on %d node%s; from rank %d, %d through shared memory and %d through MPI\n",
                comm_size(comm), comm_nodes(comm), comm_nodes(comm) == 1 ? "" : "s", comm_rank(comm), shared - 1,
                comm_size(comm) - shared);
}

static void add_costs(Text *text, const AllreduceSetup *setup) {
    for (int a = 0; setup->options.costs != NULL && a < ALLREDUCE_ALGORITHMS; a++) {
        double seconds = allreduce_predict(setup, (AllreduceAlgorithm)a, setup->extents[0].elems);
        if (seconds > 0) explain_add(text, "predicted: %-9s %10.1f us\n", allreduce_algorithm_name(a), seconds * 1e6);
    }
}

static void add_choice(Text *text, const AllreduceSetup *setup) {
    const AllreduceExtent *extent = &setup->extents[0];
    explain_add(text, "algorithm: %s (%s)\n", allreduce_algorithm_name((int)extent->algorithm), extent->reason);
}

size_t allreduce_describe_choice(const AllreduceSetup *setup, char *out, size_t bytes) {
    Text text = {out, bytes, 0};
    add_choice(&text, setup);
    add_costs(&text, setup);
    return text.used;
}

size_t allreduce_describe(const AllreduceSetup *setup, AllreduceBytes sent, char *out, size_t bytes) {
    Text text = {out, bytes, 0};
    const AllreduceExtent *extent = &setup->extents[0];
    int size = comm_size(setup->comm);
    add_choice(&text, setup);
    if (extent->algorithm == ALLREDUCE_RING && size > 4) {
        explain_add(&text, "warning: a ring of %d ranks quantises %d times on the way; sra quantises twice\n", size,
                    size);
    }
    add_topology(&text, setup->comm);
    add_layers(&text, setup);
    add_residual(&text, setup);
    explain_add(&text, "sent by this rank: %llu bytes, %llu without quantisation\n", (unsigned long long)sent.wire,
                (unsigned long long)sent.plain);
    add_costs(&text, setup);
    return text.used;
}
