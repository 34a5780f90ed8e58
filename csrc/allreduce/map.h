/* How a run is cut for the wire: layers into buckets, buckets into chunks, chunks into slices that fit a slot and a
 * cache, slices into spans of one layer. Made once, the same on every rank; docs/WIRE.md. Private to this folder. */
#ifndef CGXFFCV_ALLREDUCE_MAP_H
#define CGXFFCV_ALLREDUCE_MAP_H

#include "allreduce/allreduce.h"

/* A layer of the table, with everything decided. */
typedef struct WireLayer {
    uint64_t hash;        /* of this and all layers before it */
    int64_t first, elems; /* in the flat buffer */
    int64_t first_bucket, buckets;
    uint64_t quad; /* the first group of random numbers */
    int own_bits;  /* what the table gives this layer itself; 0: nothing */
    int64_t own_bucket;
    bool raw;       /* travels unquantised */
    QuantSpec spec; /* for raw layers only bucket_size matters */
} WireLayer;

/* A range of slices that one rank owns, sums or passes on. */
typedef struct WireChunk {
    int64_t slice, slices; /* the first, and how many */
    int64_t first, elems;
    int64_t first_value, values;
    uint64_t bytes;
} WireChunk;

/* What travels in one slot: a contiguous range of the flat buffer. Its sums are values, of which codecs with a domain
 * of their own (docs/WIRE.md) may have more than elements. */
typedef struct WireSlice {
    int64_t first, elems;
    int64_t first_value, values; /* among the values of all slices */
    int64_t span;                /* the first of its spans */
    int spans;
    uint32_t bytes;
    uint64_t at; /* bytes of the slices before it */
} WireSlice;

/* A run of buckets of one layer inside a slice. */
typedef struct WireSpan {
    int layer;
    int64_t first, elems; /* in the flat buffer */
    int64_t first_value, values;
    uint64_t quad;
    uint32_t offset, bytes; /* in the slice */
} WireSpan;

/* One block of memory without pointers, which can be copied to wherever it is needed: this struct, followed by the
 * arrays, each at the offset from here that its `_at` gives. */
typedef struct WireMap {
    size_t bytes; /* of the block */
    size_t layers_at, chunks_at, slices_at, spans_at;
    int layers, chunks;
    int64_t slices, spans;
    int64_t elems, buckets;
    bool any_quantized, any_domain; /* of a layer's codec: then sums cannot be stored where the elements are */
    AllreduceType type, wide_type;  /* of the buffer; of sums: float32 for the three types that can be quantised, else
                                     * the type itself */
    AllreduceType raw_type;         /* of unquantised elements on the wire */
    double scale;                   /* by which elements are multiplied before they are added; a power of two */
    int64_t max_slice_elems, max_slice_values;
    uint32_t max_slice_bytes;
} WireMap;

static inline const WireLayer *wire_layer(const WireMap *map, int index) {
    return (const WireLayer *)((const char *)map + map->layers_at) + index;
}

static inline const WireChunk *wire_chunk(const WireMap *map, int index) {
    return (const WireChunk *)((const char *)map + map->chunks_at) + index;
}

static inline const WireSlice *wire_slice(const WireMap *map, int64_t index) {
    return (const WireSlice *)((const char *)map + map->slices_at) + index;
}

static inline const WireSpan *wire_span(const WireMap *map, int64_t index) {
    return (const WireSpan *)((const char *)map + map->spans_at) + index;
}

/* Whether sums can be stored where the elements are. */
static inline bool wire_sums_in_place(const WireMap *map) { return map->type == map->wide_type && !map->any_domain; }

/* The quads (groups of four) of random numbers that a bucket takes. */
static inline uint64_t wire_bucket_quads(const WireLayer *layer) {
    return (uint64_t)((layer->spec.bucket_size + 3) / 4);
}

/* A table with everything decided. */
typedef struct WireTable {
    WireLayer *layers; /* owned, [count] */
    int count;
    int64_t elems, buckets;
    bool any_quantized, any_domain;
} WireTable;

/* Decides everything about each layer, for an algorithm; AUTO if none is chosen yet. */
Status allreduce_table_create(const AllreduceLayer *layers, int count, const AllreduceOptions *options,
                              AllreduceAlgorithm algorithm, WireTable *out);
void allreduce_table_destroy(WireTable *table);

/* For two_level: all chunks of a local rank's shard, as one. */
WireChunk allreduce_map_shard(const WireMap *map, int shard, int nodes);

/* Freed with memory_free. */
Status allreduce_map_create(const Comm *comm, const WireTable *table, const AllreduceOptions *options,
                            AllreduceAlgorithm algorithm, WireMap **out);

#endif
