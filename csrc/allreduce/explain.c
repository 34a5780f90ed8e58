/* The plan in words. */
#include <stdarg.h>
#include <stdio.h>

#include "allreduce/internal.h"

/* A text that grows to its limit and goes on counting. */
typedef struct Text {
    char *at;
    size_t limit, used;
} Text;

__attribute__((format(printf, 2, 3))) static void add(Text *text, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    size_t room = text->used < text->limit ? text->limit - text->used : 0;
    int length = vsnprintf(room > 0 ? text->at + text->used : NULL, room, format, arguments);
    va_end(arguments);
    if (length > 0) text->used += (size_t)length;
}

static void add_layers(Text *text, const AllreducePlan *plan) {
    int64_t quantised_layers = 0, quantised = 0;
    for (int i = 0; i < plan->count; i++) {
        if (plan->layers[i].raw) continue;
        quantised_layers++;
        quantised += plan->layers[i].elems;
    }
    add(text, "layers: %d, %lld elements of %s; quantised: %lld layers, %lld elements", plan->count,
        (long long)plan->elems, allreduce_type_name(plan->options.type), (long long)quantised_layers,
        (long long)quantised);
    if (quantised > 0) {
        add(text, " (%d bits, buckets of %lld, %s, %s%s)", plan->options.bits, (long long)plan->options.bucket_size,
            quantize_codec_name(plan->options.codec), quantize_rounding_name(plan->options.rounding),
            plan->options.error_feedback ? ", error feedback" : "");
    }
    add(text, "\n");
    for (int i = 0; i < plan->count; i++) {
        const Layer *layer = &plan->layers[i];
        if (layer->raw ||
            (layer->spec.bits == plan->options.bits && layer->spec.bucket_size == plan->options.bucket_size)) {
            continue;
        }
        add(text, "  layer %d%s%s: %d bits, buckets of %lld\n", i, layer->name == NULL ? "" : " ",
            layer->name == NULL ? "" : layer->name, layer->spec.bits, (long long)layer->spec.bucket_size);
    }
}

static void add_topology(Text *text, const AllreducePlan *plan) {
    const Comm *comm = plan->comm;
    int shared = 0;
    for (int r = 0; r < comm_size(comm); r++) shared += comm_shares_memory(comm, r);
    add(text, "ranks: %d on %d node%s; from rank %d, %d through shared memory and %d through MPI\n", comm_size(comm),
        comm_nodes(comm), comm_nodes(comm) == 1 ? "" : "s", comm_rank(comm), shared - 1, comm_size(comm) - shared);
}

static void add_costs(Text *text, const AllreducePlan *plan) {
    double elems = (double)plan->elems * (double)plan_item_bytes(plan) / 4.0;
    for (int a = 0; plan->has_costs && a < ALLREDUCE_ALGORITHMS; a++) {
        double seconds = cost_predict(&plan->costs, (AllreduceAlgorithm)a, elems);
        if (seconds > 0) add(text, "predicted: %-9s %10.1f us\n", allreduce_algorithm_name(a), seconds * 1e6);
    }
}

size_t allreduce_plan_explain(const AllreducePlan *plan, char *out, size_t bytes) {
    Text text = {out, bytes, 0};
    add(&text, "algorithm: %s (%s)\n", allreduce_algorithm_name(plan->algorithm), plan->reason);
    if (plan->algorithm == ALLREDUCE_RING && comm_size(plan->comm) > 4) {
        add(&text, "warning: a ring of %d ranks quantises %d times on the way; sra quantises twice\n",
            comm_size(plan->comm), comm_size(plan->comm));
    }
    add_topology(&text, plan);
    add_layers(&text, plan);
    add(&text, "sent by this rank: %llu bytes, %llu without quantisation; at most %u in a slice\n",
        (unsigned long long)plan->wire_bytes, (unsigned long long)plan->plain_bytes, plan->partition.max_slice_bytes);
    add_costs(&text, plan);
    return text.used;
}
