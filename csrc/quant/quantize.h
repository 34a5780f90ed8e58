/* The quantiser: runs of floating-point elements to 1..8-bit codes with a range per bucket, and back.
 *
 * Every implementation (scalar, AVX2, AVX-512, CUDA) gives the same bytes for the same input, special values
 * included; docs/WIRE.md specifies each operation. All functions run with subnormals on and rounding to nearest,
 * whatever the caller's floating-point mode, and restore that mode. Pointers need no alignment. */
#ifndef CGXFFCV_QUANT_QUANTIZE_H
#define CGXFFCV_QUANT_QUANTIZE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/pool.h"
#include "base/status.h"

#define QUANTIZE_MAX_BITS 8
#define QUANTIZE_MAX_SPIKES 256
#define QUANTIZE_MAX_SPIKE_BUCKET 65536 /* a spike's index takes 16 bits */
#define QUANTIZE_PIECE_ALIGNMENT 16     /* of both sections of a piece on the wire */

typedef enum QuantType { QUANT_F32 = 0, QUANT_F16 = 1, QUANT_BF16 = 2 } QuantType;

/* The codecs: X(number, word). The word ends the names of a codec's entry and of the functions that launch its
 * kernels. */
#define QUANT_CODECS(X)                                                                                                \
    X(QUANT_MAXMIN, maxmin)   /* uniform between the bucket's extremes */                                              \
    X(QUANT_SIGN, sign)       /* 1 bit: the sign, with the bucket's mean magnitude */                                  \
    X(QUANT_SPIKES, spikes)   /* the largest magnitudes sent separately as (index, value), maxmin for the rest */      \
    X(QUANT_ROTATED, rotated) /* random signs and a rotation, which make any data Gaussian, and levels for that */

#define X(number, word) number,
typedef enum QuantCodec { QUANT_CODECS(X) QUANT_CODEC_COUNT } QuantCodec;
#undef X

typedef enum QuantRounding { QUANT_NEAREST = 0, QUANT_STOCHASTIC = 1 } QuantRounding;

/* What a rotated bucket's levels are multiplied by: its root mean square (least error), or what keeps the mean. */
typedef enum QuantScale { QUANT_SCALE_AUTO = 0, QUANT_SCALE_MSE = 1, QUANT_SCALE_UNBIASED = 2 } QuantScale;

/* How a tensor is quantised: both ends must agree on all of it. */
typedef struct QuantSpec {
    int bits;            /* 1..8; 1 for QUANT_SIGN */
    int64_t bucket_size; /* elements, at least 1 */
    QuantType type;      /* of the tensor */
    QuantCodec codec;
    QuantRounding rounding;
    bool half_metadata; /* (min, max) in the tensor's own 16-bit type instead of (unit, min) in float32 */
    int spikes;         /* per bucket, for QUANT_SPIKES: 1..256, at most bucket_size; 0 otherwise */
    QuantScale scale;   /* for QUANT_ROTATED, where AUTO is UNBIASED; AUTO otherwise */
} QuantSpec;

/* Keys of the random numbers of stochastic rounding and of rotations. Element j of the b-th bucket of a run draws word
 * j % 4 of philox_at(seed, call, quad + b * ceil(bucket_size / 4) + j / 4, PHILOX_QUANTIZE, rank). */
typedef struct QuantRandom {
    uint64_t seed;
    uint32_t call;
    uint32_t rank; /* below 65,536 */
    uint64_t quad; /* of the run's first bucket */
} QuantRandom;

/* Elements of a tensor or a sum: x[i] * scale. */
typedef struct QuantInput {
    const void *x; /* borrowed for the call */
    QuantType type;
    int64_t elems;
    float scale; /* a power of two; 1: none */
} QuantInput;

/* Where a decoded value x' goes: to[i] = round((accumulate[i] * scale + x') / divisor) in `type`. */
typedef struct QuantTarget {
    const void *accumulate; /* float32, borrowed for the call; NULL: nothing is added. May be `to` itself (float32) */
    float scale;            /* of `accumulate`: a power of two; 1: none */
    float divisor;          /* 1: none */
    QuantType type;
    void *to; /* borrowed for the call */
} QuantTarget;

size_t quantize_item_bytes(QuantType type);

/* The number of spikes per bucket if the user gives none: one per 128 elements. */
int quantize_default_spikes(int64_t bucket_size);

/* "float32", "maxmin", "nearest" and so on; NULL if there is no such number. */
const char *quantize_type_name(int type);
const char *quantize_codec_name(int codec);
const char *quantize_rounding_name(int rounding);
const char *quantize_scale_name(int scale);

/* The most bits of a codec, which has all widths from 1 up to that. */
int quantize_codec_bits(QuantCodec codec);

/* STATUS_ARGUMENT, naming the field, its value and the allowed range. */
Status quantize_check(const QuantSpec *spec);

/* For a checked spec and 0 <= elems <= 2^56: the buckets of a run, and the bytes of its piece on the wire (the metadata
 * of all buckets, padded to 16 bytes, then all codes, padded to 16). */
int64_t quantize_buckets(const QuantSpec *spec, int64_t elems);
uint64_t quantize_wire_bytes(const QuantSpec *spec, int64_t elems);

/* Where the parts of a run's piece are on the wire: bucket b has its metadata at b * metadata, its spikes at
 * spikes_at + b * spikes, its codes at codes_at + b * codes. */
typedef struct QuantLayout {
    int64_t buckets;
    uint64_t metadata, spikes, codes; /* bytes of a whole bucket */
    uint64_t spikes_at, codes_at;
    uint64_t spikes_end, codes_end; /* before their padding */
} QuantLayout;
QuantLayout quantize_layout(const QuantSpec *spec, int64_t elems);

/* A GPU's warp processes one piece of a run at a time; each of its lanes has four elements of every group. */
#define QUANT_PIECE 1024
#define QUANT_GROUP 128

/* Whole pieces of max-min buckets take a fast path in the exchange (quant/cuda/quads.cuh) if rounding is to nearest,
 * buckets have 1, 2, 4 or 8 groups, and a lane's four codes fill whole bytes. Gives the logarithm of the bucket size
 * then, else 0. */
int quantize_quick_shift(const QuantSpec *spec);

/* The number of values as which a run of elements is added up (docs/WIRE.md: Domains): that of the elements, but
 * QUANT_ROTATED pads the last bucket. A bucket's values have the indices of its elements. */
int64_t quantize_values(const QuantSpec *spec, int64_t elems);

/* Whether values differ from elements. */
bool quantize_has_domain(const QuantSpec *spec);

/* Quantises elements, which start at a bucket's boundary, into quantize_wire_bytes bytes at `wire`. Their type is the
 * spec's own, or float32 (a sum); with half_metadata the spec's own, unscaled. `random` may be NULL for nearest
 * rounding or if it is all zeros, `pool` for the calling thread alone. Fails only if the pool does. */
Status quantize(const QuantSpec *spec, QuantInput from, const QuantRandom *random, Pool *pool, void *wire);

/* The reverse: accumulates values, gives elements. STATUS_TRANSPORT if the piece is damaged in a way that can be
 * detected (a spike's index). */
Status dequantize(const QuantSpec *spec, const void *wire, int64_t elems, const QuantTarget *target,
                  const QuantRandom *random, Pool *pool);

/* STATUS_TRANSPORT if the piece cannot be what quantize wrote: a range, spike or code that it never writes, padding
 * that is not zero. Reads all ranges and few codes. */
Status quantize_inspect(const QuantSpec *spec, const void *wire, int64_t elems);

/* The same for sums: from and to the values of `elems` elements. With a domain they are float32, aligned as such. */
Status quantize_sum(const QuantSpec *spec, QuantInput sum, const QuantRandom *random, Pool *pool, void *wire);
Status dequantize_sum(const QuantSpec *spec, const void *wire, int64_t elems, const QuantTarget *target, Pool *pool);

/* Elements to values, and back. `from` may be one of the target's buffers. */
Status quantize_enter(const QuantSpec *spec, QuantInput from, const QuantRandom *random, const QuantTarget *target,
                      Pool *pool);
Status quantize_leave(const QuantSpec *spec, QuantInput sum, const QuantRandom *random, const QuantTarget *target,
                      Pool *pool);

/* Like dequantize, for elements or values that travel unquantised. */
Status quantize_pass(QuantInput from, const QuantTarget *target, Pool *pool);

/* The kernels in use: "scalar", "avx2" or "avx512". */
const char *quantize_kernels_name(void);

/* For tests and benchmarks: uses the kernels of that name from now on (NULL: the processor's best); false if this
 * processor lacks them. Not to be called while another thread quantises. */
bool quantize_select_kernels(const char *name);

#endif
