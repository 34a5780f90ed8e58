/* How a call is cut: layers into buckets, buckets into chunks, chunks into slices that fit a slot and a cache, slices
 * into segments of one layer. Pure arithmetic on the layer table; every rank comes to the same. */
#include <stdio.h>
#include <string.h>

#include "allreduce/internal.h"
#include "base/checked.h"
#include "base/hash.h"
#include "base/memory.h"

#define RAW_BUCKET 512    /* elements, of layers that travel as they are; in any type it fits the smallest slot */
#define SLICE_ELEMS 65536 /* of one thread: a float32 sum of a slice stays in a core's cache */
#define MAX_ELEMS (INT64_C(1) << 50)

/* ---- layers ---- */

static const char *label(const AllreduceLayer *layer, int index, char text[64]) {
    if (layer->name != NULL) {
        snprintf(text, 64, "layer %d (%.40s)", index, layer->name);
    } else {
        snprintf(text, 64, "layer %d", index);
    }
    return text;
}

static Status copy_text(const char *text, char **out) {
    if (text == NULL) return STATUS_OK;
    size_t bytes = strlen(text) + 1;
    TRY(memory_alloc(bytes, 1, out));
    memcpy(*out, text, bytes);
    return STATUS_OK;
}

static bool can_quantise(const AllreducePlan *plan) {
    return plan->options.type <= ALLREDUCE_BF16 && plan->options.op <= ALLREDUCE_AVERAGE &&
           plan->algorithm != ALLREDUCE_EXACT;
}

/* The bits of a layer: its own word, else the rules on small layers, else the plan's. */
static int layer_bits(const AllreducePlan *plan, const AllreduceLayer *layer) {
    const AllreduceOptions *options = &plan->options;
    if (!can_quantise(plan)) return ALLREDUCE_UNCOMPRESSED;
    if (layer->bits != 0) return layer->bits;
    int dims = layer->dims == 0 ? 2 : layer->dims;
    return dims < 2 || layer->elems < options->layer_min_size ? ALLREDUCE_UNCOMPRESSED : options->bits;
}

static Status decide_layer(const AllreducePlan *plan, const AllreduceLayer *from, Layer *layer) {
    const AllreduceOptions *options = &plan->options;
    int bits = layer_bits(plan, from);
    int64_t bucket = from->bucket_size == 0 ? options->bucket_size : from->bucket_size;
    layer->elems = from->elems;
    layer->own_bits = from->bits;
    layer->own_bucket = from->bucket_size;
    layer->raw = bits == ALLREDUCE_UNCOMPRESSED;
    if (layer->raw) {
        layer->spec.bucket_size = RAW_BUCKET;
        return STATUS_OK;
    }
    layer->spec = (QuantSpec){
        .bits = bits,
        .bucket_size = bucket,
        .type = (QuantType)options->type,
        .codec = options->codec,
        .rounding = options->rounding,
        .half_metadata = options->half_metadata,
        .spikes = options->codec != QUANT_SPIKES ? 0
                  : options->spikes != 0         ? options->spikes
                                                 : quantize_default_spikes(bucket),
    };
    return quantize_check(&layer->spec);
}

/* What both ends must agree on, field by field. */
static uint64_t hash_text(const char *text, uint64_t seed) {
    return text == NULL ? hash_bytes("", 0, seed) : hash_bytes(text, strlen(text) + 1, seed);
}

static uint64_t hash_layer(const Layer *layer, uint64_t seed) {
    int64_t fields[] = {layer->elems,      layer->raw,           layer->spec.bits,          layer->spec.bucket_size,
                        layer->spec.codec, layer->spec.rounding, layer->spec.half_metadata, layer->spec.spikes,
                        layer->own_bits,   layer->own_bucket};
    return hash_text(layer->shape, hash_text(layer->name, hash_bytes(fields, sizeof fields, seed)));
}

Status layout_layers(AllreducePlan *plan, const AllreduceLayer *layers, int count) {
    char text[64];
    TRY(memory_calloc((size_t)count, sizeof *plan->layers, &plan->layers));
    plan->count = count;
    plan->elems = plan->buckets = 0;
    plan->any_quantised = false;
    uint64_t quad = 0, hash = 0;
    for (int i = 0; i < count; i++) {
        Layer *layer = &plan->layers[i];
        if (layers[i].elems < 0 || layers[i].elems > MAX_ELEMS - plan->elems) {
            FAIL(STATUS_ARGUMENT, "%s has %lld elements: at least 0, and at most 2^50 in all",
                 label(&layers[i], i, text), (long long)layers[i].elems);
        }
        TRY(copy_text(layers[i].name, &layer->name));
        TRY(copy_text(layers[i].shape, &layer->shape));
        if (decide_layer(plan, &layers[i], layer) != STATUS_OK) {
            ErrorRecord why = *error_record();
            FAIL(why.code, "%s: %s", label(&layers[i], i, text), why.message);
        }
        layer->first = plan->elems;
        layer->first_bucket = plan->buckets;
        layer->buckets = quantize_buckets(&layer->spec, layer->elems);
        layer->quad = quad;
        quad += (uint64_t)layer->buckets * (uint64_t)((layer->spec.bucket_size + 3) / 4);
        plan->elems += layer->elems;
        plan->buckets += layer->buckets;
        plan->any_quantised |= !layer->raw && layer->elems > 0;
        layer->hash = hash = hash_layer(layer, hash);
    }
    return STATUS_OK;
}

void layout_layers_destroy(AllreducePlan *plan) {
    for (int i = 0; plan->layers != NULL && i < plan->count; i++) {
        memory_free(plan->layers[i].name);
        memory_free(plan->layers[i].shape);
    }
    memory_free(plan->layers);
    plan->layers = NULL;
}

/* ---- chunks, slices, segments ---- */

/* The partition in the making: the first pass only counts, the second writes. */
typedef struct Cut {
    const AllreducePlan *plan;
    Partition *out;
    bool write;
    int64_t slices, segments;
    int64_t max_elems;
    uint64_t capacity;
    Slice open; /* the slice being filled; no elements: none */
    int layer;  /* where the walk over the buckets stands */
} Cut;

static uint64_t segment_bytes(const AllreducePlan *plan, const Layer *layer, int64_t elems) {
    if (!layer->raw) return quantize_wire_bytes(&layer->spec, elems);
    uint64_t bytes = (uint64_t)elems * allreduce_type_bytes(plan->raw_type);
    return (bytes + QUANTIZE_PIECE_ALIGNMENT - 1) / QUANTIZE_PIECE_ALIGNMENT * QUANTIZE_PIECE_ALIGNMENT;
}

static void close_slice(Cut *cut) {
    if (cut->open.elems == 0) return;
    if (cut->write) cut->out->slice[cut->slices] = cut->open;
    cut->slices++;
    if (cut->open.elems > cut->out->max_slice_elems) cut->out->max_slice_elems = cut->open.elems;
    if (cut->open.bytes > cut->out->max_slice_bytes) cut->out->max_slice_bytes = cut->open.bytes;
    cut->open = (Slice){0};
}

/* Adds elements of one layer, from `first` on, to the open slice. */
static void add_segment(Cut *cut, int layer, int64_t first, int64_t elems) {
    const Layer *of = &cut->plan->layers[layer];
    Slice *open = &cut->open;
    if (open->elems == 0) *open = (Slice){.first = first, .segment = cut->segments};
    int64_t bucket = (first - of->first) / of->spec.bucket_size;
    Segment segment = {
        .layer = layer,
        .first = first,
        .elems = elems,
        .quad = of->quad + (uint64_t)bucket * (uint64_t)((of->spec.bucket_size + 3) / 4),
        .offset = open->bytes,
        .bytes = (uint32_t)segment_bytes(cut->plan, of, elems),
    };
    if (cut->write) cut->out->segment[cut->segments] = segment;
    cut->segments++;
    open->segments++;
    open->elems += elems;
    open->bytes += segment.bytes;
}

/* How many buckets of a layer fit into `room` elements and `bytes` bytes; each of `left` is whole but the last. */
static int64_t buckets_that_fit(const Cut *cut, const Layer *layer, int64_t left, int64_t elems_left, int64_t room,
                                uint64_t bytes) {
    int64_t low = 0, high = left;
    while (low < high) {
        int64_t middle = low + (high - low + 1) / 2, elems = middle * layer->spec.bucket_size;
        if (elems > elems_left) elems = elems_left;
        bool fits = elems <= room && segment_bytes(cut->plan, layer, elems) <= bytes;
        if (fits) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    return low;
}

/* Adds buckets [from, to) of a layer, counted in the layer. A bucket larger than the usual slice gets its own. */
static Status add_buckets(Cut *cut, int index, int64_t from, int64_t to) {
    const Layer *layer = &cut->plan->layers[index];
    int64_t size = layer->spec.bucket_size;
    while (from < to) {
        int64_t at = from * size, end = to * size < layer->elems ? to * size : layer->elems;
        int64_t count = buckets_that_fit(cut, layer, to - from, end - at, cut->max_elems - cut->open.elems,
                                         cut->capacity - cut->open.bytes);
        if (count == 0 && cut->open.elems > 0) {
            close_slice(cut);
            continue;
        }
        if (count == 0) {
            int64_t one = end - at < size ? end - at : size;
            uint64_t bytes = segment_bytes(cut->plan, layer, one);
            if (bytes > cut->capacity) {
                FAIL(STATUS_ARGUMENT,
                     "a bucket of %lld elements takes %llu bytes, and a slot of this communicator holds %llu: use a "
                     "smaller bucket_size, or larger slots (slot_bytes)",
                     (long long)one, (unsigned long long)bytes, (unsigned long long)cut->capacity);
            }
            count = 1;
        }
        int64_t stop = (from + count) * size < end ? (from + count) * size : end;
        add_segment(cut, index, layer->first + at, stop - at);
        from += count;
    }
    return STATUS_OK;
}

/* Buckets [from, to) of the call as one chunk. */
static Status add_chunk(Cut *cut, int64_t from, int64_t to, Chunk *chunk) {
    const AllreducePlan *plan = cut->plan;
    *chunk = (Chunk){.slice = cut->slices};
    while (from < to) {
        const Layer *layer = &plan->layers[cut->layer];
        int64_t end = layer->first_bucket + layer->buckets;
        if (from >= end) {
            cut->layer++;
            continue;
        }
        int64_t stop = to < end ? to : end;
        TRY(add_buckets(cut, cut->layer, from - layer->first_bucket, stop - layer->first_bucket));
        from = stop;
    }
    close_slice(cut);
    chunk->slices = cut->slices - chunk->slice;
    return STATUS_OK;
}

/* floor(i * count / parts) without overflow. */
static int64_t share(int64_t count, int i, int parts) { return count / parts * i + count % parts * i / parts; }

static Status cut_all(Cut *cut, int outer, int inner) {
    cut->slices = cut->segments = 0;
    cut->layer = 0;
    for (int o = 0; o < outer; o++) {
        int64_t base = share(cut->plan->buckets, o, outer), size = share(cut->plan->buckets, o + 1, outer) - base;
        for (int i = 0; i < inner; i++) {
            TRY(add_chunk(cut, base + share(size, i, inner), base + share(size, i + 1, inner),
                          &cut->out->chunk[o * inner + i]));
        }
    }
    return STATUS_OK;
}

static void measure_chunks(Partition *out) {
    int64_t next = 0;
    uint64_t bytes = 0;
    for (int c = 0; c < out->chunks; c++) {
        Chunk *chunk = &out->chunk[c];
        chunk->first = next;
        for (int64_t s = chunk->slice; s < chunk->slice + chunk->slices; s++) {
            out->slice[s].at = bytes;
            bytes += out->slice[s].bytes;
            chunk->elems += out->slice[s].elems;
            chunk->bytes += out->slice[s].bytes;
        }
        next += chunk->elems;
    }
}

Status layout_partition(const AllreducePlan *plan, int outer, int inner, Partition *out) {
    Status status = STATUS_OK;
    *out = (Partition){.chunks = outer * inner};
    Cut cut = {.plan = plan,
               .out = out,
               .max_elems = (int64_t)SLICE_ELEMS * plan->options.threads,
               .capacity = comm_slot_bytes(plan->comm)};
    TRY_GOTO(memory_calloc((size_t)out->chunks, sizeof *out->chunk, &out->chunk));
    TRY_GOTO(cut_all(&cut, outer, inner));
    TRY_GOTO(memory_calloc((size_t)cut.slices, sizeof *out->slice, &out->slice));
    TRY_GOTO(memory_calloc((size_t)cut.segments, sizeof *out->segment, &out->segment));
    cut.write = true;
    TRY_GOTO(cut_all(&cut, outer, inner));
    out->slices = cut.slices;
    out->segments = cut.segments;
    measure_chunks(out);
done:
    if (status != STATUS_OK) layout_partition_destroy(out);
    return status;
}

void layout_partition_destroy(Partition *partition) {
    memory_free(partition->segment);
    memory_free(partition->slice);
    memory_free(partition->chunk);
    *partition = (Partition){0};
}
