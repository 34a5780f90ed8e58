/* The spikes of a bucket: found by a search for the least magnitude among them, by counting those above a number that
 * is tried, with no memory but registers. A warp has the bucket, its lanes lie as warp.cuh says; entries are (spikes),
 * uint32 each, on the wire. */
#ifndef CGXFFCV_QUANT_CUDA_SPIKES_CUH
#define CGXFFCV_QUANT_CUDA_SPIKES_CUH

#include "quant/cuda/warp.cuh"

/* Spikes are the elements above `least`, and of those equal to it the first `ties`; of the pieces walked over so far,
 * `tied` were equal and `taken` are spikes. While `least` is searched for, it is at least `low` and below `high`, from
 * which on `ties` are missing, and `found` counts this lane's elements of at least `tried`. Numbers are compared by the
 * bits of their magnitudes, which are in the same order. */
struct QuantSpikes {
    uint32_t least, tried, low, high;
    float greatest; /* of this lane's elements: of all in the first pass, NaN if one is; later of those below `high` */
    int ties, tied, taken, found, steps;
    bool descends; /* `greatest` is looked for, instead of counting */
};

/* By halving, the search finds a number above which there are as many as are wanted, in a few steps. If it does not,
 * elements are equal, and after so many steps it tries by turns the greatest element that is left. */
#define QUANT_SPIKES_HALVINGS 8
#define QUANT_SPIKES_LAST_BIT 14 /* of `low`, that is looked for by the lanes' greatest alone */

/* The sum of all lanes'. */
__device__ static __forceinline__ int quant_spikes_sum(int value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    return __reduce_add_sync(WHOLE_WARP, value);
#else
    return warp_sum(value);
#endif
}

/* Elements that a piece lacks are zeros, which are never counted. */
__device__ static __forceinline__ void quant_spikes_pad(int count, float (&v)[QUANT_ROWS]) {
    const int rows = quant_rows(count);
#pragma unroll
    for (int k = 0; k < QUANT_ROWS; k++) v[k] = k < rows ? v[k] : 0.0f;
}

/* A piece of the first pass, and of one of the search. */
template <bool NARROWS>
__device__ __forceinline__ void quant_spikes_bound(const QuantSpec &spec, const float (&v)[QUANT_ROWS],
                                                   QuantSpikes *spikes) {
#pragma unroll
    for (int k = 0; k < QUANT_ROWS; k++) {
        spikes->greatest = quant_max_nan(spikes->greatest, fabsf(quant_seen<NARROWS>(spec, v[k])));
    }
}

/* This lane's rows of a piece that are above a magnitude, found by the signs of differences, which shifts gather: fewer
 * operations than comparisons. */
template <bool NARROWS>
__device__ __forceinline__ uint32_t quant_spikes_above(const QuantSpec &spec, const float (&v)[QUANT_ROWS],
                                                       uint32_t magnitude) {
    uint32_t quarters[4] = {};
#pragma unroll
    for (int k = QUANT_ROWS - 1; k >= 0; k--) {
        const float left = QUANT_SUB(float_of_bits(magnitude), fabsf(quant_seen<NARROWS>(spec, v[k])));
        quarters[k / 8] = quarters[k / 8] << 1 | float_bits(left) >> 31;
    }
    return quarters[0] | quarters[1] << 8 | quarters[2] << 16 | quarters[3] << 24;
}

/* The rows of at least `tried`, which are the spikes' in the end, if there are as many as are wanted. */
template <bool NARROWS>
__device__ __forceinline__ uint32_t quant_spikes_search(const QuantSpec &spec, const float (&v)[QUANT_ROWS],
                                                        QuantSpikes *spikes) {
    uint32_t mask = 0;
    if (!spikes->descends) {
        mask = quant_spikes_above<NARROWS>(spec, v, spikes->tried - 1);
        spikes->found += __popc(mask);
        return mask;
    }
    const float high = float_of_bits(spikes->high);
#pragma unroll
    for (int k = 0; k < QUANT_ROWS; k++) {
        const float magnitude = fabsf(quant_seen<NARROWS>(spec, v[k]));
        spikes->greatest = fmaxf(spikes->greatest, magnitude < high ? magnitude : 0.0f);
    }
    return mask;
}

/* Behind the first pass; false when the search is over. As many lanes as are wanted have elements of at least `low`. */
__device__ static __forceinline__ bool quant_spikes_begin(int limit, QuantSpikes *spikes) {
    const uint32_t own = float_bits(spikes->greatest) & 0x7FFFFFFFu;
    uint32_t low = 0;
#pragma unroll
    for (int bit = 30; bit >= QUANT_SPIKES_LAST_BIT; bit--) {
        const uint32_t tried = low | 1u << bit;
        if (__popc(__ballot_sync(WHOLE_WARP, own >= tried)) >= limit) low = tried;
    }
    spikes->high = quant_warp_magnitude(spikes->greatest) + 1;
    spikes->least = spikes->low = low;
    spikes->tried = low != 0 ? low : spikes->high / 2;
    spikes->ties = limit;
    return spikes->high <= QUANT_MAGNITUDE_LIMIT && spikes->high - low > 1;
}

/* Behind a pass of the search, the same. */
__device__ static __forceinline__ bool quant_spikes_step(int limit, QuantSpikes *spikes) {
    if (spikes->descends) {
        spikes->tried = quant_warp_magnitude(spikes->greatest);
        spikes->high = spikes->tried + 1;
        spikes->descends = false;
        return spikes->high - spikes->low > 1;
    }
    const int found = quant_spikes_sum(spikes->found);
    if (found < limit) {
        spikes->high = spikes->tried;
        spikes->ties = limit - found;
    } else {
        spikes->low = spikes->tried;
    }
    if (found == limit) {
        spikes->high = spikes->tried; /* the least is just below, with no ties */
        spikes->low = spikes->tried - 1;
        spikes->ties = 0;
    }
    spikes->least = spikes->low;
    spikes->tried = spikes->low + (spikes->high - spikes->low) / 2;
    spikes->descends = ++spikes->steps >= QUANT_SPIKES_HALVINGS && spikes->steps % 2 == 0;
    spikes->found = 0;
    spikes->greatest = 0.0f;
    return spikes->high - spikes->low > 1;
}

/* Adds the ties among the spikes of a piece to this lane's rows `mask`. */
template <bool NARROWS>
__device__ __forceinline__ uint32_t quant_spikes_tie(const QuantSpec &spec, const float (&v)[QUANT_ROWS], int count,
                                                     uint32_t mask, QuantSpikes *walk) {
    const int rows = quant_rows(count);
    const uint32_t before = (1u << quant_lane()) - 1u;
#pragma unroll
    for (int k = 0; k < QUANT_ROWS; k++) {
        const bool tie = k < rows && fabsf(quant_seen<NARROWS>(spec, v[k])) == float_of_bits(walk->least);
        const uint32_t ties = __ballot_sync(WHOLE_WARP, tie);
        if (tie && walk->tied + __popc(ties & before) < walk->ties) mask |= 1u << k;
        walk->tied += __popc(ties);
    }
    return mask;
}

/* This lane's rows of the next piece that hold spikes. */
template <bool NARROWS>
__device__ __forceinline__ uint32_t quant_spikes_mask(const QuantSpec &spec, const float (&v)[QUANT_ROWS], int count,
                                                      QuantSpikes *walk) {
    uint32_t mask = quant_spikes_above<NARROWS>(spec, v, walk->least);
    if (walk->tied < walk->ties) mask = quant_spikes_tie<NARROWS>(spec, v, count, mask, walk);
    return mask;
}

/* `count` entries from number `first` on: those in the room, or zeros. */
__device__ static __forceinline__ void quant_spikes_write(QuantSink sink, uint64_t at, int first, int count,
                                                          const uint32_t *entries) {
    for (int i = quant_lane(); i < count; i += WARP) {
        const uint64_t place = at + (uint64_t)((first + i) * QUANT_SPIKE_BYTES);
        const uint32_t entry = entries == nullptr ? 0 : entries[i];
        for (int s = 0; s < sink.count; s++) *reinterpret_cast<uint32_t *>(sink.bases[s] + place) = entry;
    }
    __syncwarp();
}

/* The rows that hold spikes of any lane. */
__device__ static __forceinline__ uint32_t quant_spikes_rows(uint32_t mask) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    return __reduce_or_sync(WHOLE_WARP, mask);
#else
#pragma unroll
    for (int distance = WARP / 2; distance > 0; distance /= 2) mask |= __shfl_xor_sync(WHOLE_WARP, mask, distance);
    return mask;
#endif
}

/* Writes the entries of a piece, behind those that have been taken, in the order of their indices. */
template <bool NARROWS>
__device__ __forceinline__ void quant_spikes_emit(const QuantSpec &spec, const float (&v)[QUANT_ROWS], int64_t first,
                                                  uint32_t mask, uint64_t at, QuantSink sink, QuantSpikes *walk,
                                                  QuantRoom *room) {
    const int lane = quant_lane();
    const uint32_t rows = quant_spikes_rows(mask);
    int here = 0;
    __syncwarp();
#pragma unroll
    for (int k = 0; k < QUANT_ROWS; k++) {
        if ((rows >> k & 1) == 0) continue;
        bool spike = mask >> k & 1;
        uint32_t all = __ballot_sync(WHOLE_WARP, spike);
        if (spike) {
            uint32_t value = bfloat16_from_float(quant_seen<NARROWS>(spec, v[k]));
            room->words[here + __popc(all & ((1u << lane) - 1u))] = (uint32_t)(first + k * WARP + lane) | value << 16;
        }
        here += __popc(all);
    }
    __syncwarp();
    quant_spikes_write(sink, at, walk->taken, here, room->words);
    walk->taken += here;
}

/* Brings a bucket's entries into the room and returns this lane's rows of the piece from `first` on that hold spikes;
 * *sound is false if one lies outside of the bucket. */
__device__ static __forceinline__ uint32_t quant_spikes_fetch(const uint8_t *from, int entries, int64_t elems,
                                                              int64_t first, QuantRoom *room, bool *sound) {
    uint32_t mask = 0;
    __syncwarp();
    for (int i = quant_lane(); i < entries; i += WARP) {
        room->words[i] = __ldcg(reinterpret_cast<const unsigned int *>(from) + i);
    }
    __syncwarp();
    for (int i = 0; i < entries; i++) {
        int64_t index = room->words[i] & 0xFFFFu;
        *sound = *sound && index < elems;
        bool mine = index >= first && index < first + QUANT_PIECE && index % WARP == quant_lane();
        if (mine) mask |= 1u << ((index - first) / WARP);
    }
    return mask;
}

/* The last entry of that index counts. Rarely called, from many places. */
__device__ static NOT_INLINE float quant_spike_at(const QuantRoom *room, int entries, uint32_t index) {
    for (int i = entries - 1; i >= 0; i--) {
        if ((room->words[i] & 0xFFFFu) == index) return bfloat16_to_float((uint16_t)(room->words[i] >> 16));
    }
    return 0.0f;
}

#endif
