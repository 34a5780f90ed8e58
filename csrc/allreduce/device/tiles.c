/* Walks a map's chunks and divides their spans into tiles, and the tiles into rounds. */
#include "allreduce/device/tiles.h"

#include "base/checked.h"
#include "base/memory.h"

#define RAW_ELEMS 1024 /* a warp's piece of what travels unquantised */

/* The walk: the first pass only counts, the second writes. */
typedef struct Walk {
    const WireMap *map;
    DeviceRoom room;
    DeviceTiles *to;
    bool one_shot, writes, too_large;
    int owner;
    int64_t *rounds_of; /* [owners]: the round that an owner's tiles have reached */
    DeviceRoom *used;   /* [owners]: of that round */
} Walk;

static DeviceTile describe_tile(const WireMap *map, const WireSpan *span, int64_t first, int64_t elems) {
    const WireLayer *layer = wire_layer(map, span->layer);
    DeviceTile tile = {.first = first, .elems = elems, .bucket_size = RAW_ELEMS};
    if (layer->raw) return tile;
    QuantLayout layout = quantize_layout(&layer->spec, elems);
    tile.bucket_size = layer->spec.bucket_size;
    tile.bucket = (uint64_t)(layer->first_bucket + (first - layer->first) / tile.bucket_size);
    tile.quad = span->quad + (uint64_t)((first - span->first) / tile.bucket_size) * wire_bucket_quads(layer);
    tile.spikes_at = (uint32_t)layout.spikes_at;
    tile.codes_at = (uint32_t)layout.codes_at;
    tile.metadata = (uint32_t)layout.metadata;
    tile.codes = (uint32_t)layout.codes;
    tile.bits = (int16_t)layer->spec.bits;
    tile.spikes = (int16_t)layer->spec.spikes;
    tile.scale = (uint16_t)layer->spec.scale;
    return tile;
}

static uint64_t tile_bytes(const WireMap *map, const WireSpan *span, int64_t elems) {
    const WireLayer *layer = wire_layer(map, span->layer);
    if (!layer->raw) return quantize_wire_bytes(&layer->spec, elems);
    return round_up((uint64_t)elems * allreduce_type_bytes(map->raw_type), QUANTIZE_PIECE_ALIGNMENT);
}

/* The place of the tile among those of its round and owner. */
static DeviceTile *find_tile(Walk *walk, int64_t round, uint32_t number) {
    return walk->to->tiles + walk->to->shares[round * walk->to->owners + walk->owner].tile + number;
}

static void add_tile(Walk *walk, const WireSpan *span, int64_t first, int64_t elems, uint16_t shift) {
    DeviceRoom *used = &walk->used[walk->owner];
    uint64_t bytes = tile_bytes(walk->map, span, elems);
    int64_t *round = &walk->rounds_of[walk->owner];
    if (bytes > walk->room.bytes) {
        walk->too_large = true;
        return;
    }
    if (used->bytes + bytes > walk->room.bytes || used->tiles == walk->room.tiles) {
        ++*round;
        *used = (DeviceRoom){0, 0};
    }
    if (walk->writes) {
        DeviceTile tile = describe_tile(walk->map, span, first, elems);
        tile.at = used->bytes;
        tile.bytes = (uint32_t)bytes;
        tile.owner = (uint16_t)walk->owner;
        tile.number = used->tiles;
        tile.shift = shift;
        *find_tile(walk, *round, used->tiles) = tile;
    } else if (walk->to->shares != NULL) {
        walk->to->shares[*round * walk->to->owners + walk->owner].tiles++;
    }
    used->bytes += (uint32_t)bytes;
    used->tiles++;
    if (!walk->writes && walk->to->shares == NULL) {
        walk->to->count++;
        walk->to->quick += shift != 0;
        walk->to->bytes += bytes;
        walk->to->owned[walk->owner] += bytes;
    }
}

/* The most elements in a tile of a span. */
static int64_t tile_elems(const Walk *walk, const WireSpan *span, int64_t bucket) {
    int64_t buckets = TILES_ELEMS / bucket;
    while (buckets > 1 && tile_bytes(walk->map, span, buckets * bucket) > walk->room.bytes) buckets /= 2;
    return buckets > 1 ? buckets * bucket : bucket;
}

static void cut_span(Walk *walk, const WireSpan *span) {
    const WireLayer *layer = wire_layer(walk->map, span->layer);
    int64_t step = tile_elems(walk, span, layer->raw ? RAW_ELEMS : layer->spec.bucket_size);
    uint16_t shift = layer->raw || step % QUANT_PIECE != 0 ? 0 : (uint16_t)quantize_quick_shift(&layer->spec);
    int64_t quick = shift == 0 ? 0 : span->elems / QUANT_PIECE * QUANT_PIECE;
    for (int64_t at = 0; at < span->elems;) {
        int64_t left = (at < quick ? quick : span->elems) - at, elems = left < step ? left : step;
        add_tile(walk, span, span->first + at, elems, at < quick ? shift : 0);
        at += elems;
    }
}

/* Walks over all chunks; returns how many rounds they take. */
static int64_t walk_all(Walk *walk) {
    int64_t rounds = 0;
    for (int c = 0; c < walk->map->chunks; c++) {
        const WireChunk *chunk = wire_chunk(walk->map, c);
        walk->owner = walk->one_shot ? 0 : c;
        if (c == 0 || !walk->one_shot) {
            walk->rounds_of[walk->owner] = 0;
            walk->used[walk->owner] = (DeviceRoom){0, 0};
        }
        for (int64_t s = chunk->slice; s < chunk->slice + chunk->slices; s++) {
            const WireSlice *slice = wire_slice(walk->map, s);
            for (int i = 0; i < slice->spans; i++) cut_span(walk, wire_span(walk->map, slice->span + i));
        }
        int64_t reached = walk->rounds_of[walk->owner] + (walk->used[walk->owner].tiles > 0);
        if (reached > rounds) rounds = reached;
    }
    return rounds;
}

static Status cut_map(Walk *walk) {
    DeviceTiles *to = walk->to;
    TRY(memory_calloc((size_t)to->owners, sizeof *to->owned, &to->owned));
    int64_t rounds = walk_all(walk);
    if (walk->too_large || rounds > INT32_MAX) {
        to->count = -1;
        return STATUS_OK;
    }
    to->rounds = (int)rounds;
    TRY(memory_calloc((size_t)(rounds * to->owners), sizeof *to->shares, &to->shares));
    TRY(memory_calloc((size_t)to->count, sizeof *to->tiles, &to->tiles));
    (void)walk_all(walk);
    int64_t tile = 0;
    for (int64_t i = 0; i < rounds * to->owners; i++) {
        to->shares[i].tile = tile;
        tile += to->shares[i].tiles;
    }
    walk->writes = true;
    (void)walk_all(walk);
    return STATUS_OK;
}

Status allreduce_tiles_create(const WireMap *map, bool one_shot, DeviceRoom room, DeviceTiles *out) {
    Status status = STATUS_OK;
    DeviceTiles tiles = {.owners = one_shot ? 1 : map->chunks};
    Walk walk = {.map = map, .room = room, .to = &tiles, .one_shot = one_shot};
    TRY_GOTO(memory_calloc((size_t)tiles.owners, sizeof *walk.rounds_of, &walk.rounds_of));
    TRY_GOTO(memory_calloc((size_t)tiles.owners, sizeof *walk.used, &walk.used));
    TRY_GOTO(cut_map(&walk));
    *out = tiles;
    tiles = (DeviceTiles){0};
done:
    memory_free(walk.used);
    memory_free(walk.rounds_of);
    allreduce_tiles_destroy(&tiles);
    return status;
}

void allreduce_tiles_destroy(DeviceTiles *tiles) {
    memory_free(tiles->owned);
    memory_free(tiles->shares);
    memory_free(tiles->tiles);
    *tiles = (DeviceTiles){0};
}
