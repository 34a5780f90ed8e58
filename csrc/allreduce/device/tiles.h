/* An extent cut for kernels: tiles of whole buckets of one layer, in rounds that fit a window. Those of whole pieces
 * that go the quick way (quant/cuda/quads.cuh) are apart from what is left of their layer. A tile is a run of
 * docs/WIRE.md of its own, so it needs to know nothing of slices. Pure arithmetic; every rank comes to the same.
 * Private to this folder. */
#ifndef CGXFFCV_ALLREDUCE_DEVICE_TILES_H
#define CGXFFCV_ALLREDUCE_DEVICE_TILES_H

#include "allreduce/map.h"

#define TILES_ELEMS 8192 /* of a tile, unless one bucket has more */

/* What a kernel knows of a tile. Its parts stand in the region of its round and owner: `at` is where it begins. */
typedef struct DeviceTile {
    int64_t first, elems; /* in the flat buffer */
    int64_t bucket_size;
    uint64_t quad;   /* of the first bucket */
    uint64_t bucket; /* its number in the call */
    uint32_t at, bytes, spikes_at, codes_at;
    uint32_t metadata, codes; /* bytes of a whole bucket */
    int16_t bits, spikes;     /* bits 0: the elements travel as they are */
    uint16_t owner;           /* of the sum; 0 with one-shot */
    uint16_t scale;           /* a QuantScale */
    uint32_t number;          /* in its round, of its owner */
    uint16_t groups;          /* where whole pieces go the quick way: groups of a bucket; else 0 */
} DeviceTile;

/* Tiles [tile, tile + tiles) of an owner in a round. */
typedef struct DeviceShare {
    int64_t tile;
    int32_t tiles;
} DeviceShare;

typedef struct DeviceTiles {
    DeviceTile *tiles;    /* owned, [count]: by round, then owner */
    DeviceShare *shares;  /* owned, [rounds * owners] */
    int64_t count, quick; /* quick: of them, those whose pieces go the quick way */
    int rounds, owners;
    uint64_t bytes;  /* of all tiles; what each owner's take: */
    uint64_t *owned; /* owned, [owners] */
} DeviceTiles;

/* What a round has for each owner. */
typedef struct DeviceRoom {
    uint32_t bytes, tiles;
} DeviceRoom;

/* With one-shot there is one owner, of everything. STATUS_OK with out->count < 0 if a bucket is larger than the
 * room. */
Status allreduce_tiles_create(const WireMap *map, bool one_shot, DeviceRoom room, DeviceTiles *out);
void allreduce_tiles_destroy(DeviceTiles *tiles);

#endif
