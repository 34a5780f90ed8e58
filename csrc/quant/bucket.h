/* One bucket's way to the wire and back: the codecs. Private to the quantiser. */
#ifndef CGXFFCV_QUANT_BUCKET_H
#define CGXFFCV_QUANT_BUCKET_H

#include "quant/kernels.h"

#define QUANT_SPIKE_BYTES 4

/* Where a bucket stands on the wire; all borrowed. */
typedef struct BucketWire {
    uint8_t *metadata; /* bucket_metadata_bytes of it */
    uint8_t *spikes;   /* spec->spikes entries of QUANT_SPIKE_BYTES */
    uint8_t *codes;    /* ceil(elems * bits / 8) bytes */
} BucketWire;

/* The bytes of a bucket's range, without its spikes. */
static inline uint64_t bucket_metadata_bytes(const QuantSpec *spec) {
    uint64_t values = spec->codec == QUANT_SIGN ? 1 : 2;
    return values * (spec->half_metadata ? 2 : 4);
}

static inline uint64_t bucket_codes_bytes(const QuantSpec *spec, int64_t elems) {
    return ((uint64_t)elems * (uint64_t)spec->bits + 7) / 8;
}

/* `random` holds the quad of this bucket; NULL for nearest rounding. */
void bucket_quantize(const QuantKernels *kernels, const QuantSpec *spec, QuantInput input, const QuantRandom *random,
                     BucketWire wire);

/* STATUS_TRANSPORT if a spike's index lies outside the bucket; then `target` is partly written. */
Status bucket_dequantize(const QuantKernels *kernels, const QuantSpec *spec, BucketWire wire, int64_t elems,
                         const QuantTarget *target);

#endif
