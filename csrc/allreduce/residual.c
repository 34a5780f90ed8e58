/* Layer by layer: buckets are counted from the start of their layer. */
#include "allreduce/residual.h"

#include "quant/residual.h"

static bool residual_has(const WireMap *map, int index, int64_t elems) {
    return index < map->layers && wire_layer(map, index)->first < elems;
}

void allreduce_residual_pack(const WireMap *map, const float *from, int64_t elems, ResidualCodes to) {
    for (int i = 0; residual_has(map, i, elems); i++) {
        const WireLayer *layer = wire_layer(map, i);
        quant_residual_pack(from + layer->first, layer->elems, layer->spec.bucket_size, to.codes + layer->first,
                            to.exponents + layer->first_bucket);
    }
}

void allreduce_residual_unpack(const WireMap *map, ResidualCodes from, int64_t elems, float *to) {
    for (int i = 0; residual_has(map, i, elems); i++) {
        const WireLayer *layer = wire_layer(map, i);
        quant_residual_unpack(from.codes + layer->first, from.exponents + layer->first_bucket, layer->elems,
                              layer->spec.bucket_size, to + layer->first);
    }
}
