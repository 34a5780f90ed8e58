/* One bucket by one warp: docs/WIRE.md's codecs on a GPU, the same bytes as codec.h's. All lanes call everything
 * together. A source gives a piece of the bucket in registers, as often as it is asked:
 *
 *     struct { __device__ void piece(int64_t first, int count, float (&v)[QUANT_ROWS]) const; };
 *
 * where they lie as the codec wants it (quant_lie), so that sums need no memory. Codecs differ in what a bucket's range
 * is and in which elements have codes. */
#ifndef CGXFFCV_QUANT_CUDA_BUCKET_CUH
#define CGXFFCV_QUANT_CUDA_BUCKET_CUH

#include "quant/cuda/rotated.cuh"
#include "quant/cuda/spikes.cuh"

/* ---- ranges ---- */

struct QuantExtremes {
    float magnitude; /* the greatest, NaN where one is */
    float min, max;  /* of elements that are no spikes */
    float partial;   /* QUANT_SIGN: this lane's sum of magnitudes */
};

template <bool NARROWS, QuantCodec CODEC>
__device__ __forceinline__ void quant_take_extremes(const QuantSpec &spec, const float (&v)[QUANT_ROWS], int count,
                                                    uint32_t spikes, QuantExtremes *of) {
    constexpr QuantLie LIE = quant_lie<CODEC>();
    const int left = count - quant_start<LIE>();
    FOR_GROUPS(j, count) {
#pragma unroll
        for (int k = 4 * j; k < 4 * j + 4; k++) {
            if (quant_step<LIE>(k) >= left || (spikes >> k & 1)) continue;
            float x = quant_seen<NARROWS>(spec, v[k]);
            if (CODEC != QUANT_SPIKES) of->magnitude = quant_max_nan(of->magnitude, fabsf(x));
            if (CODEC == QUANT_SIGN) {
                of->partial = QUANT_ADD(of->partial, fabsf(x));
            } else {
                of->min = fminf(of->min, x);
                of->max = fmaxf(of->max, x);
            }
        }
    }
}

/* Codes and decoding by a grid; of a sign's bucket it is that of the two values. */
template <QuantCodec CODEC>
__device__ __forceinline__ QuantGrid quant_grid_of_metadata(const QuantSpec &spec, uint64_t metadata) {
    uint8_t bytes[8];
    memcpy(bytes, &metadata, sizeof bytes);
    if (CODEC != QUANT_SIGN) {
        QuantGrid grid = quant_grid_load(&spec, bytes);
        return quant_is_finite(grid.unit) ? grid : quant_grid_nan();
    }
    float mean = element_load(bytes, spec.half_metadata ? spec.type : QUANT_F32, 0), step = QUANT_MUL(-2.0f, mean);
    QuantGrid grid = {step, mean, 0.0f};
    return quant_is_finite(step) ? grid : quant_grid_nan();
}

template <QuantCodec CODEC> __device__ __forceinline__ int quant_metadata_size(const QuantSpec &spec) {
    return (CODEC == QUANT_SIGN ? 1 : 2) * (spec.half_metadata ? 2 : 4);
}

/* The metadata of a bucket with these extremes, all lanes' together; *coded: whether elements have codes of their
 * own. */
template <QuantCodec CODEC>
__device__ __forceinline__ uint64_t quant_metadata_of(const QuantSpec &spec, const QuantExtremes &of, int64_t elems,
                                                      bool nan, bool *coded) {
    uint8_t bytes[8] = {};
    uint64_t metadata;
    if (CODEC == QUANT_SIGN) {
        float sum = quant_warp_fold(of.partial);
        *coded = !nan && quant_is_finite(sum);
        float mean = QUANT_DIV(*coded ? sum : float_of_bits(QUANT_NAN_F32), (float)elems);
        element_store(bytes, spec.half_metadata ? spec.type : QUANT_F32, 0, mean);
    } else {
        float min = quant_warp_least(of.min), max = -quant_warp_least(-of.max);
        if (min > max) min = max = 0.0f; /* all are spikes */
        QuantGrid grid = nan ? quant_grid_nan() : quant_grid_between(min, max, spec.bits);
        *coded = quant_grid_is_usable(grid);
        quant_grid_store(&spec, grid, bytes);
    }
    memcpy(&metadata, bytes, sizeof metadata);
    return metadata;
}

/* ---- codes ---- */

template <QuantCodec CODEC>
__device__ __forceinline__ uint32_t quant_code_of(float x, QuantGrid grid, float inverse, uint32_t levels,
                                                  bool stochastic, uint32_t word) {
    if (CODEC == QUANT_SIGN) return x < 0.0f;
    const uint32_t marked = stochastic ? quant_marked_drawn(x, grid.min, inverse, (float)levels, word)
                                       : quant_marked_nearest(x, grid.min, inverse);
    return marked - QUANT_MARK;
}

/* What a bucket's encoding has come to, pass after pass over its pieces: for spikes one that bounds the least of them
 * and those of the search; then one for the range and one for the codes; where a residual is kept in 8 bits, the
 * greatest magnitude of which is known only then, one more for its codes. Passes are one loop, so that the source and
 * each step are compiled once. */
struct QuantEncoding {
    QuantSpikes spikes;
    QuantExtremes of;
    QuantGrid grid;
    uint32_t mask; /* this lane's spikes in the piece at hand */
    uint32_t lost; /* the greatest magnitude; of a residual in 8 bits alone */
    float inverse; /* likewise, of its unit */
    bool nan, coded;
};

enum { QUANT_BOUND_PASS, QUANT_SEARCH_PASS, QUANT_RANGE_PASS, QUANT_CODES_PASS, QUANT_KEEP_PASS };

/* What this lane's codes of a group have lost, kept as this pass keeps it. */
template <bool NARROWS, QuantLie LIE, typename Keep>
__device__ __forceinline__ void quant_keep_lost(const QuantSpec &spec, Keep keep, int pass, int64_t first, int j,
                                                int count, const float (&v)[QUANT_ROWS], const uint32_t (&codes)[4],
                                                QuantEncoding *e) {
    const int left = count - quant_start<LIE>();
    float kept[4] = {};
#pragma unroll
    for (int c = 0; c < 4; c++) {
        const int k = 4 * j + c;
        if (quant_step<LIE>(k) >= left) continue;
        float decoded = quant_decode(codes[c], e->grid.unit, e->grid.min);
        if ((e->mask >> k & 1) && !e->nan) {
            decoded = bfloat16_to_float(bfloat16_from_float(quant_seen<NARROWS>(spec, v[k])));
        }
        kept[c] = quant_residual_kept(QUANT_MUL(QUANT_SUB(v[k], decoded), keep.unscaled));
        if constexpr (!Keep::EIGHT) {
            keep.residual[first + quant_start<LIE>() + quant_step<LIE>(k)] = kept[c];
        } else {
            e->lost = quant_greater_magnitude(e->lost, kept[c]);
        }
    }
    if constexpr (Keep::EIGHT) {
        if (pass == QUANT_KEEP_PASS) quant_store_kept<LIE>(keep.codes + first, e->inverse, j, count, kept);
    }
}

/* A piece's codes into the room; 0 for spikes, and beyond the piece. */
template <bool NARROWS, QuantCodec CODEC, typename Keep>
__device__ __forceinline__ void quant_take_codes(const QuantSpec &spec, const QuantRandom *random, int pass,
                                                 int64_t first, int count, Keep keep, const float (&v)[QUANT_ROWS],
                                                 QuantEncoding *e, QuantRoom *room) {
    constexpr QuantLie LIE = quant_lie<CODEC>();
    const uint32_t levels = (1u << spec.bits) - 1u;
    const int left = count - quant_start<LIE>();
    const float inverse = QUANT_DIV(1.0f, e->grid.unit);
    const bool stochastic = CODEC != QUANT_SIGN && random != nullptr;
    __syncwarp();
    FOR_GROUPS(j, count) {
        uint32_t codes[4], words[4] = {};
        if (stochastic) quant_draw<LIE>(*random, first, j, room, words);
#pragma unroll
        for (int c = 0; c < 4; c++) {
            const int k = 4 * j + c;
            bool own = e->coded && quant_step<LIE>(k) < left;
            float x = quant_seen<NARROWS>(spec, v[k]);
            const uint32_t code = quant_code_of<CODEC>(x, e->grid, inverse, levels, stochastic, words[c]);
            codes[c] = own ? code : 0;
        }
        quant_put_codes<LIE>(room, j, spec.bits, codes);
        if (keep.keeps()) quant_keep_lost<NARROWS, LIE>(spec, keep, pass, first, j, count, v, codes, e);
    }
    if (CODEC == QUANT_SPIKES) {
        for (uint32_t left_over = e->mask; left_over != 0; left_over &= left_over - 1) {
            room->codes[(__ffs((int)left_over) - 1) * WARP + quant_lane()] = 0;
        }
    }
}

/* ---- buckets ---- */

/* One pass over one piece; of a bucket that has `several`, the mask of the last pass was that of another. */
template <bool NARROWS, QuantCodec CODEC, typename Keep>
__device__ __forceinline__ void quant_encode_piece(const QuantSpec &spec, const QuantRandom *random, QuantPlace place,
                                                   QuantSink sink, Keep keep, int pass, int64_t first, int count,
                                                   bool several, const float (&v)[QUANT_ROWS], QuantEncoding *e,
                                                   QuantRoom *room) {
    if (CODEC == QUANT_SPIKES && pass == QUANT_BOUND_PASS) return quant_spikes_bound<NARROWS>(spec, v, &e->spikes);
    if (CODEC == QUANT_SPIKES && pass == QUANT_SEARCH_PASS) {
        e->mask = quant_spikes_search<NARROWS>(spec, v, &e->spikes);
        return;
    }
    const bool ties = e->spikes.ties != 0 && pass == QUANT_RANGE_PASS; /* without any, the search has the mask, too */
    if (CODEC == QUANT_SPIKES && !e->nan && (ties || several)) {
        e->mask = quant_spikes_mask<NARROWS>(spec, v, count, &e->spikes);
    }
    if (pass == QUANT_RANGE_PASS) {
        quant_take_extremes<NARROWS, CODEC>(spec, v, count, e->mask, &e->of);
        return;
    }
    if (CODEC == QUANT_SPIKES && !e->nan && !(Keep::EIGHT && pass == QUANT_KEEP_PASS)) {
        quant_spikes_emit<NARROWS>(spec, v, first, e->mask, place.spikes, sink, &e->spikes, room);
    }
    quant_take_codes<NARROWS, CODEC>(spec, random, pass, first, count, keep, v, e, room);
    if (Keep::EIGHT && pass == QUANT_KEEP_PASS) return;
    quant_emit_codes<quant_lie<CODEC>()>(sink, place.codes + (uint64_t)first / 8 * (uint64_t)spec.bits, spec.bits,
                                         count, room);
}

/* Behind a pass: what the next goes by; which one it is. */
template <QuantCodec CODEC, typename Keep>
__device__ __forceinline__ int quant_encode_step(const QuantSpec &spec, int64_t elems, QuantPlace place, QuantSink sink,
                                                 Keep keep, int pass, QuantEncoding *e) {
    if (CODEC == QUANT_SPIKES && pass < QUANT_RANGE_PASS) {
        const int limit = elems < spec.spikes ? (int)elems : spec.spikes;
        const bool first = pass == QUANT_BOUND_PASS;
        const bool goes_on = first ? quant_spikes_begin(limit, &e->spikes) : quant_spikes_step(limit, &e->spikes);
        e->nan = e->spikes.high > QUANT_MAGNITUDE_LIMIT;
        return goes_on ? QUANT_SEARCH_PASS : QUANT_RANGE_PASS;
    }
    e->spikes.tied = e->spikes.taken = 0;
    if constexpr (Keep::EIGHT) {
        if (pass == QUANT_CODES_PASS && keep.keeps()) {
            e->inverse = quant_residual_inverse(quant_keep_exponent(keep.exponents, e->lost));
        }
    }
    if (pass != QUANT_RANGE_PASS) return pass + 1;
    if (CODEC != QUANT_SPIKES) e->nan = quant_warp_magnitude(e->of.magnitude) >= QUANT_MAGNITUDE_LIMIT;
    uint64_t metadata = quant_metadata_of<CODEC>(spec, e->of, elems, e->nan, &e->coded);
    quant_emit_word(sink, place.metadata, metadata, quant_metadata_size<CODEC>(spec));
    e->grid = quant_grid_of_metadata<CODEC>(spec, metadata);
    return QUANT_CODES_PASS;
}

/* By the codecs whose values are elements. `random` holds the quad of this bucket; NULL for nearest rounding. */
template <bool NARROWS, QuantCodec CODEC, typename Source, typename Keep>
__device__ __forceinline__ void quant_encode_elements(const Source &source, const QuantSpec &spec, int64_t elems,
                                                      const QuantRandom *random, QuantPlace place, QuantSink sink,
                                                      Keep keep, QuantRoom *room) {
    const int begin = CODEC == QUANT_SPIKES ? QUANT_BOUND_PASS : QUANT_RANGE_PASS;
    const int last = Keep::EIGHT && keep.keeps() ? QUANT_KEEP_PASS : QUANT_CODES_PASS;
    float v[QUANT_ROWS];
    QuantEncoding e = {};
    e.of.min = float_of_bits(0x7F800000u);
    e.of.max = float_of_bits(0xFF800000u);
    if (CODEC == QUANT_SPIKES) quant_spikes_write(sink, place.spikes, 0, spec.spikes, nullptr);
    int pass = begin;
#pragma unroll 1
    while (pass <= last) {
#pragma unroll 1
        for (int64_t first = 0; first < elems; first += QUANT_PIECE) {
            int count = quant_piece_count(elems, first);
            if (pass == begin || elems > QUANT_PIECE) {
                source.piece(first, count, v);
                if (CODEC == QUANT_SPIKES && count < QUANT_PIECE) quant_spikes_pad(count, v);
            }
            quant_encode_piece<NARROWS, CODEC>(spec, random, place, sink, keep, pass, first, count, elems > QUANT_PIECE,
                                               v, &e, room);
        }
        pass = quant_encode_step<CODEC>(spec, elems, place, sink, keep, pass, &e);
    }
}

/* `random` holds the quad of this bucket; NULL for nearest rounding, but with rotated. */
template <bool NARROWS, QuantCodec CODEC, typename Source, typename Keep>
__device__ __forceinline__ void quant_warp_encode(const Source &source, const QuantSpec &spec, int64_t elems,
                                                  const QuantRandom *random, QuantPlace place, QuantSink sink,
                                                  Keep keep, QuantRoom *room) {
    if constexpr (CODEC == QUANT_ROTATED) {
#define CALL(PIECES) quant_encode_entering<PIECES>(source, spec, elems, *random, place, sink, keep, room)
        QUANT_BY_PIECES(elems, CALL)
#undef CALL
    } else {
        quant_encode_elements<NARROWS, CODEC>(source, spec, elems, random, place, sink, keep, room);
    }
}

/* Decodes elements [first, first + count) of a bucket of `elems`, first a multiple of QUANT_PIECE, and adds them to v,
 * or puts them there. False if the bucket cannot be what a peer wrote. */
template <QuantCodec CODEC>
__device__ __forceinline__ bool quant_warp_decode(const uint8_t *base, QuantPlace place, const QuantSpec &spec,
                                                  int64_t elems, int64_t first, int count, bool add,
                                                  float (&v)[QUANT_ROWS], QuantRoom *room) {
    uint64_t metadata = quant_fetch_word(base + place.metadata, quant_metadata_size<CODEC>(spec));
    constexpr QuantLie LIE = quant_lie<CODEC>();
    const int bits = spec.bits, left = count - quant_start<LIE>();
    const uint32_t mask = (1u << bits) - 1u;
    int before = quant_fetch(base, place.codes + (uint64_t)first / 8 * (uint64_t)bits, (count * bits + 7) / 8, room);
    QuantGrid grid = quant_grid_of_metadata<CODEC>(spec, metadata);
    uint32_t spikes = 0;
    bool sound = true;
    int entries = elems < spec.spikes ? (int)elems : spec.spikes;
    if (CODEC == QUANT_SPIKES && quant_is_finite(grid.unit)) {
        spikes = quant_spikes_fetch(base + place.spikes, entries, elems, first, room, &sound);
    }
    const QuantStripedCodes codes(room, before, bits);
    FOR_GROUPS(j, count) {
        const int start = before * 8 + (quant_step<LIE>(4 * j) + quant_start<LIE>()) * bits;
        uint32_t four = 0;
        if (LIE == QUANT_QUADS && quant_step<LIE>(4 * j) < left) four = quant_four_codes_at(room, start, bits);
#pragma unroll
        for (int c = 0; c < 4; c++) {
            const int k = 4 * j + c;
            if (quant_step<LIE>(k) >= left) continue;
            uint32_t code = LIE == QUANT_QUADS ? four >> c * bits & mask : codes.row(k);
            float value = quant_decode(code, grid.unit, grid.min);
            if (spikes >> k & 1) {
                value = quant_spike_at(room, entries, (uint32_t)(first + quant_start<LIE>() + quant_step<LIE>(k)));
            }
            v[k] = add ? QUANT_ADD(v[k], value) : value;
        }
    }
    return sound;
}

#endif
