/* The residual of error feedback in 8 bits (quant/residual.h) of all elements of a map: one block of memory, so that it
 * can be moved as it is. Private to this folder. */
#ifndef CGXFFCV_ALLREDUCE_RESIDUAL_H
#define CGXFFCV_ALLREDUCE_RESIDUAL_H

#include "allreduce/map.h"

typedef struct ResidualCodes {
    int8_t *codes;      /* [elements]; NULL: there are none */
    uint8_t *exponents; /* [buckets], including those of raw layers */
} ResidualCodes;

static inline size_t allreduce_residual_bytes(const WireMap *map) { return (size_t)(map->elems + map->buckets); }

/* In a block of that many bytes; zeros are a residual of zeros. */
static inline ResidualCodes allreduce_residual_codes(const WireMap *map, void *block) {
    ResidualCodes codes = {(int8_t *)block, (uint8_t *)block + map->elems};
    return codes;
}

/* From and to float32 for the first `elems` elements, which end with a layer. */
void allreduce_residual_pack(const WireMap *map, const float *from, int64_t elems, ResidualCodes to);
void allreduce_residual_unpack(const WireMap *map, ResidualCodes from, int64_t elems, float *to);

#endif
