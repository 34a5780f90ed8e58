/* Divides a table for the wire. Pure arithmetic; every rank gets the same result. */
#include "allreduce/map.h"

#include <string.h>

#include "base/checked.h"
#include "base/memory.h"

#define SLICE_ELEMS 65536 /* per thread: a float32 sum of a slice stays in a core's cache */
#define ALIGNMENT ((size_t)64)

static AllreduceType wide_type_of(AllreduceType type) { return type <= ALLREDUCE_BF16 ? ALLREDUCE_F32 : type; }

/* ---- chunks, slices, spans ---- */

/* The map in the making: the first pass only counts, the second writes. */
typedef struct Cut {
    const WireTable *table;
    AllreduceType raw_type;
    int outer, inner;    /* groups of equal size; chunks in each */
    int64_t max_elems;   /* of a slice */
    uint64_t slot_bytes; /* of a slice at most */
    /* the position of the walk over the buckets */
    int layer;
    int64_t slices, spans, values;
    WireSlice open; /* the slice being filled; no elements: none */
    /* NULL while counting */
    WireChunk *chunk;
    WireSlice *slice;
    WireSpan *span;
} Cut;

static uint64_t span_bytes(const Cut *cut, const WireLayer *layer, int64_t elems) {
    if (!layer->raw) return quantize_wire_bytes(&layer->spec, elems);
    uint64_t bytes = (uint64_t)elems * allreduce_type_bytes(cut->raw_type);
    return round_up(bytes, QUANTIZE_PIECE_ALIGNMENT);
}

static void close_slice(Cut *cut) {
    if (cut->open.elems == 0) return;
    if (cut->slice != NULL) cut->slice[cut->slices] = cut->open;
    cut->slices++;
    cut->open = (WireSlice){0};
}

/* Adds elements of one layer, from `first` on, to the open slice. */
static void add_span(Cut *cut, int layer, int64_t first, int64_t elems) {
    const WireLayer *of = &cut->table->layers[layer];
    WireSlice *open = &cut->open;
    if (open->elems == 0) {
        *open = (WireSlice){.first = first, .first_value = cut->values, .span = cut->spans};
    }
    int64_t bucket = (first - of->first) / of->spec.bucket_size;
    WireSpan span = {
        .layer = layer,
        .first = first,
        .elems = elems,
        .first_value = cut->values,
        .values = of->raw ? elems : quantize_values(&of->spec, elems),
        .quad = of->quad + (uint64_t)bucket * wire_bucket_quads(of),
        .offset = open->bytes,
        .bytes = (uint32_t)span_bytes(cut, of, elems),
    };
    if (cut->span != NULL) cut->span[cut->spans] = span;
    cut->spans++;
    open->spans++;
    open->elems += elems;
    open->values += span.values;
    cut->values += span.values;
    open->bytes += span.bytes;
}

/* How many buckets of a layer fit into `room` elements and `bytes` bytes; only the last of the `left` may be short. */
static int64_t buckets_that_fit(const Cut *cut, const WireLayer *layer, int64_t left, int64_t elems_left, int64_t room,
                                uint64_t bytes) {
    int64_t low = 0, high = left;
    while (low < high) {
        int64_t middle = low + (high - low + 1) / 2, elems = middle * layer->spec.bucket_size;
        if (elems > elems_left) elems = elems_left;
        bool fits = elems <= room && span_bytes(cut, layer, elems) <= bytes;
        if (fits) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    return low;
}

/* Adds buckets [from, to) of a layer, counted in the layer. A bucket larger than the usual slice gets its own one. */
static Status add_buckets(Cut *cut, int index, int64_t from, int64_t to) {
    const WireLayer *layer = &cut->table->layers[index];
    int64_t size = layer->spec.bucket_size;
    while (from < to) {
        int64_t at = from * size, end = to * size < layer->elems ? to * size : layer->elems;
        int64_t count = buckets_that_fit(cut, layer, to - from, end - at, cut->max_elems - cut->open.elems,
                                         cut->slot_bytes - cut->open.bytes);
        if (count == 0 && cut->open.elems > 0) {
            close_slice(cut);
            continue;
        }
        if (count == 0) {
            int64_t one = end - at < size ? end - at : size;
            uint64_t bytes = span_bytes(cut, layer, one);
            if (bytes > cut->slot_bytes) {
                FAIL(STATUS_ARGUMENT,
                     "a bucket of %lld elements takes %llu bytes, but a slot of this communicator holds %llu: use a "
                     "smaller bucket_size, or larger slots (slot_bytes)",
                     (long long)one, (unsigned long long)bytes, (unsigned long long)cut->slot_bytes);
            }
            count = 1;
        }
        int64_t stop = (from + count) * size < end ? (from + count) * size : end;
        add_span(cut, index, layer->first + at, stop - at);
        from += count;
    }
    return STATUS_OK;
}

/* Buckets [from, to) of the call as one chunk. */
static Status add_chunk(Cut *cut, int64_t from, int64_t to, int index) {
    int64_t slice = cut->slices;
    while (from < to) {
        const WireLayer *layer = &cut->table->layers[cut->layer];
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
    if (cut->chunk != NULL) cut->chunk[index] = (WireChunk){.slice = slice, .slices = cut->slices - slice};
    return STATUS_OK;
}

/* floor(i * count / parts) without overflow. */
static int64_t share(int64_t count, int i, int parts) { return count / parts * i + count % parts * i / parts; }

static Status cut_all(Cut *cut) {
    int64_t buckets = cut->table->buckets;
    cut->slices = cut->spans = cut->values = 0;
    cut->layer = 0;
    for (int o = 0; o < cut->outer; o++) {
        int64_t base = share(buckets, o, cut->outer), size = share(buckets, o + 1, cut->outer) - base;
        for (int i = 0; i < cut->inner; i++) {
            TRY(add_chunk(cut, base + share(size, i, cut->inner), base + share(size, i + 1, cut->inner),
                          o * cut->inner + i));
        }
    }
    return STATUS_OK;
}

/* Chunks as the algorithm owns them. */
static Cut cut_for(const Comm *comm, const WireTable *table, const AllreduceOptions *options,
                   AllreduceAlgorithm algorithm) {
    bool widens = algorithm == ALLREDUCE_RING || algorithm == ALLREDUCE_TWO_LEVEL;
    Cut cut = {.table = table,
               .raw_type = widens ? wide_type_of(options->type) : options->type,
               .outer = 1,
               .inner = algorithm == ALLREDUCE_ONE_SHOT ? 1 : comm_size(comm),
               .max_elems = (int64_t)SLICE_ELEMS * options->threads,
               .slot_bytes = comm_slot_bytes(comm)};
    if (algorithm == ALLREDUCE_TWO_LEVEL) {
        cut.outer = comm_local_size(comm);
        cut.inner = comm_nodes(comm);
    }
    return cut;
}

/* ---- the map ---- */

/* An average may be finite where the sum would overflow. So elements are scaled before they are added: by a power of
 * two, so that rounding does not change, and by enough that neither sums nor their quantiser leave the range of
 * float32. float16 has room enough in float32, and would lose its small numbers. */
static double choose_scale(const Comm *comm, const AllreduceOptions *options) {
    const int room = 4;
    int size = comm_size(comm), exponent = 0;
    if (options->op != ALLREDUCE_AVERAGE || options->type == ALLREDUCE_F16 || size == 1) return 1.0;
    while (1 << exponent < size) exponent++;
    return 1.0 / (double)(1 << (exponent + room));
}

/* Appends room for an array to a block of *bytes bytes so far; returns its offset. */
static size_t place_array(size_t *bytes, int64_t count, size_t item_bytes) {
    size_t at = *bytes;
    *bytes += round_up((size_t)count * item_bytes, ALIGNMENT);
    return at;
}

static WireMap measure_map(const Cut *cut, const AllreduceOptions *options, double scale) {
    WireMap map = {.bytes = round_up(sizeof map, ALIGNMENT),
                   .layers = cut->table->count,
                   .chunks = cut->outer * cut->inner,
                   .slices = cut->slices,
                   .spans = cut->spans,
                   .elems = cut->table->elems,
                   .buckets = cut->table->buckets,
                   .any_quantized = cut->table->any_quantized,
                   .any_domain = cut->table->any_domain,
                   .type = options->type,
                   .wide_type = wide_type_of(options->type),
                   .raw_type = cut->raw_type,
                   .scale = scale};
    map.layers_at = place_array(&map.bytes, map.layers, sizeof(WireLayer));
    map.chunks_at = place_array(&map.bytes, map.chunks, sizeof(WireChunk));
    map.slices_at = place_array(&map.bytes, map.slices, sizeof(WireSlice));
    map.spans_at = place_array(&map.bytes, map.spans, sizeof(WireSpan));
    return map;
}

/* Computes what the chunks hold, and the largest slice. */
static void sum_up(WireMap *map, const Cut *cut) {
    int64_t next = 0, next_value = 0;
    uint64_t bytes = 0;
    for (int c = 0; c < map->chunks; c++) {
        WireChunk *chunk = &cut->chunk[c];
        chunk->first = next;
        chunk->first_value = next_value;
        for (int64_t s = chunk->slice; s < chunk->slice + chunk->slices; s++) {
            WireSlice *slice = &cut->slice[s];
            slice->at = bytes;
            bytes += slice->bytes;
            chunk->elems += slice->elems;
            chunk->values += slice->values;
            chunk->bytes += slice->bytes;
            if (slice->elems > map->max_slice_elems) map->max_slice_elems = slice->elems;
            if (slice->values > map->max_slice_values) map->max_slice_values = slice->values;
            if (slice->bytes > map->max_slice_bytes) map->max_slice_bytes = slice->bytes;
        }
        next += chunk->elems;
        next_value += chunk->values;
    }
}

Status allreduce_map_create(const Comm *comm, const WireTable *table, const AllreduceOptions *options,
                            AllreduceAlgorithm algorithm, WireMap **out) {
    Status status = STATUS_OK;
    char *block = NULL;
    Cut cut = cut_for(comm, table, options, algorithm);
    TRY(cut_all(&cut));
    WireMap map = measure_map(&cut, options, choose_scale(comm, options));
    TRY(memory_calloc(map.bytes, 1, &block));
    memcpy(block + map.layers_at, table->layers, (size_t)table->count * sizeof *table->layers);
    cut.chunk = (WireChunk *)(block + map.chunks_at);
    cut.slice = (WireSlice *)(block + map.slices_at);
    cut.span = (WireSpan *)(block + map.spans_at);
    TRY_GOTO(cut_all(&cut));
    sum_up(&map, &cut);
    memcpy(block, &map, sizeof map);
    *out = (WireMap *)block;
    block = NULL;
done:
    memory_free(block);
    return status;
}

WireChunk allreduce_map_shard(const WireMap *map, int shard, int nodes) {
    const WireChunk *part = wire_chunk(map, shard * nodes);
    WireChunk whole = part[0];
    for (int m = 1; m < nodes; m++) {
        whole.slices += part[m].slices;
        whole.elems += part[m].elems;
        whole.values += part[m].values;
        whole.bytes += part[m].bytes;
    }
    return whole;
}
