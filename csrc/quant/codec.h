/* A codec encodes and decodes one bucket. Each has a file of its own, with its entry, and a line in QUANT_CODECS; it
 * writes and reads all of a bucket by itself. Private to quant/. */
#ifndef CGXFFCV_QUANT_CODEC_H
#define CGXFFCV_QUANT_CODEC_H

#include <string.h>

#include "quant/kernels.h"

/* Where a bucket is on the wire; all borrowed. */
typedef struct QuantWire {
    uint8_t *metadata; /* quant_metadata_bytes of it */
    uint8_t *spikes;   /* spec->spikes entries of QUANT_SPIKE_BYTES */
    uint8_t *codes;    /* quant_codes_bytes of it */
} QuantWire;

/* How terms are added, if not as elements: as float32 values, of which a whole bucket has as many as elements. */
#define QUANT_DOMAIN_MAX_VALUES 4096 /* of a bucket */
typedef struct QuantDomain {
    int64_t (*values)(int64_t elems); /* of a bucket of that many elements */
    /* `random` holds the quad of this bucket. */
    void (*enter)(const QuantKernels *kernels, QuantInput input, const QuantRandom *random, float *values);
    /* In place; the bucket's elements are the first of the `count`. */
    void (*leave)(const QuantKernels *kernels, float *values, int64_t count, const QuantRandom *random);
} QuantDomain;

/* encode and decode work on the bucket's values if there is a domain. */
typedef struct QuantCodecEntry {
    const char *name;
    int metadata_values; /* per bucket: float32, or the tensor's own type with half_metadata */
    int most_bits;       /* of a code; the codec has all widths from 1 bit to this */
    /* Checks what this codec requires of a spec beyond quantize_check. */
    Status (*check)(const QuantSpec *spec);
    /* `random` holds the quad of this bucket; NULL for nearest rounding. */
    void (*encode)(const QuantKernels *kernels, const QuantSpec *spec, QuantInput input, const QuantRandom *random,
                   QuantWire wire);
    /* STATUS_TRANSPORT if the bucket cannot be what a peer wrote; then `target` is partly written. */
    Status (*decode)(const QuantKernels *kernels, const QuantSpec *spec, QuantWire wire, int64_t elems,
                     const QuantTarget *target);
    const QuantDomain *domain; /* NULL: terms are added as elements */
} QuantCodecEntry;

#define X(number, word) extern const QuantCodecEntry quant_codec_##word;
QUANT_CODECS(X)
#undef X

/* NULL if no codec has the number. */
const QuantCodecEntry *quant_codec(QuantCodec codec);

/* The bytes of a bucket's range, without its spikes, and of its codes, of which there are `count`. */
uint64_t quant_metadata_bytes(const QuantSpec *spec);
uint64_t quant_codes_bytes(const QuantSpec *spec, int64_t count);

/* ---- what entries share ---- */

Status quant_check_no_spikes(const QuantSpec *spec);
Status quant_check_no_scale(const QuantSpec *spec);
Status quant_check_plain(const QuantSpec *spec); /* both */

/* Writes the codes of a bucket on its grid: all 0 if the grid is not usable. */
static inline void quant_codes_encode(const QuantKernels *kernels, const QuantSpec *spec, QuantInput input,
                                      const QuantRandom *random, QuantGrid grid, uint8_t *codes) {
    if (quant_grid_is_usable(grid)) {
        QuantEncode how = {spec->bits, grid.min, 1.0f / grid.unit, random};
        kernels->encode(input, &how, codes);
    } else {
        memset(codes, 0, quant_codes_bytes(spec, input.elems));
    }
}

void quant_fill_nan(const QuantTarget *target, int64_t elems);

#endif
