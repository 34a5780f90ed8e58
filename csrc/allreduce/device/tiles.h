/* An extent divided for kernels: tiles of whole buckets of one layer, in rounds that fit a window. Tiles of whole
 * pieces, which take the fast path (quant/cuda/quads.cuh), are separate from the rest of their layer. A tile is a run
 * of docs/WIRE.md of its own, independent of slices. Pure arithmetic; every rank gets the same result.
 * Private to this folder. */
#ifndef CGXFFCV_ALLREDUCE_DEVICE_TILES_H
#define CGXFFCV_ALLREDUCE_DEVICE_TILES_H

#include "allreduce/map.h"

#define TILES_ELEMS 8192 /* of a tile, unless one bucket has more */

/* What a kernel knows about a tile. Its parts are in the region of its round and owner, where it starts at `at`. */
typedef struct DeviceTile {
    int64_t first, elems; /* in the flat buffer */
    int64_t bucket_size;
    uint64_t quad;   /* of the first bucket */
    uint64_t bucket; /* its number in the call */
    uint32_t at, bytes, spikes_at, codes_at;
    uint32_t metadata, codes; /* bytes of a whole bucket */
    int16_t bits, spikes;     /* bits 0: the elements travel unquantised */
    uint16_t owner;           /* of the sum; 0 with one-shot */
    uint16_t scale;           /* a QuantScale */
    uint32_t number;          /* among the tiles of its round and owner */
    uint16_t shift;           /* buckets have 2^shift elements, if whole pieces take the fast path; else 0 */
} DeviceTile;

/* Tiles [tile, tile + tiles) of an owner in a round. */
typedef struct DeviceShare {
    int64_t tile;
    int32_t tiles;
} DeviceShare;

typedef struct DeviceTiles {
    DeviceTile *tiles;    /* owned, [count]: by round, then owner */
    DeviceShare *shares;  /* owned, [rounds * owners] */
    int64_t count, quick; /* quick: those of them that take the fast path */
    int rounds, owners;
    uint64_t bytes;  /* of all tiles; of each owner's: */
    uint64_t *owned; /* owned, [owners] */
} DeviceTiles;

/* The room that a round has for each owner. */
typedef struct DeviceRoom {
    uint32_t bytes, tiles;
} DeviceRoom;

/* With one-shot there is one owner, of everything. STATUS_OK with out->count < 0 if a bucket is larger than the
 * room. */
Status allreduce_tiles_create(const WireMap *map, bool one_shot, DeviceRoom room, DeviceTiles *out);
void allreduce_tiles_destroy(DeviceTiles *tiles);

#endif
