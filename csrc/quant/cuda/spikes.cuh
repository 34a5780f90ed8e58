/* The spikes of a bucket: found by a search for the least magnitude among them, bit by bit, with no memory but
 * registers. A warp has the bucket, its lanes lie as warp.cuh says; entries are (spikes), uint32 each, on the wire. */
#ifndef CGXFFCV_QUANT_CUDA_SPIKES_CUH
#define CGXFFCV_QUANT_CUDA_SPIKES_CUH

#include "quant/cuda/warp.cuh"

#define NOT_INLINE __attribute__((noinline))

/* Spikes are the elements above `least`, and of those equal to it the first `ties`; of the pieces walked over so far,
 * `tied` were equal and `taken` are spikes. While `least` is searched for, `found` counts this lane's elements of at
 * least `tried`. */
struct QuantSpikes {
    uint32_t least, tried;
    int ties, tied, taken, found;
};

/* Passes of the search: whether a bucket is one of NaN, a bit of `least` in each, from above, and how many lie
 * above. */
#define QUANT_SPIKES_BITS 31
#define QUANT_SPIKES_PASSES (QUANT_SPIKES_BITS + 2)

/* A piece of a pass. */
template <QuantType TYPE>
__device__ __forceinline__ void quant_spikes_search(const QuantSpec &spec, const float (&v)[QUANT_ROWS], int count,
                                                    QuantSpikes *spikes) {
    const int rows = quant_rows(count);
    const uint32_t tried = spikes->tried == 0 ? QUANT_MAGNITUDE_LIMIT : spikes->tried;
#pragma unroll
    for (int k = 0; k < QUANT_ROWS; k++) {
        spikes->found += k < rows && (float_bits(quant_seen<TYPE>(spec, v[k])) & 0x7FFFFFFFu) >= tried;
    }
}

/* Behind a pass; whether it has shown the bucket to be one of NaN. */
__device__ static __forceinline__ bool quant_spikes_step(const QuantSpec &spec, int64_t elems, int pass,
                                                         QuantSpikes *spikes) {
    const int limit = elems < spec.spikes ? (int)elems : spec.spikes, found = warp_sum(spikes->found);
    spikes->found = 0;
    if (pass > 0 && pass <= QUANT_SPIKES_BITS && found >= limit) spikes->least = spikes->tried;
    if (pass == QUANT_SPIKES_BITS + 1) spikes->ties = limit - found;
    spikes->tried = pass < QUANT_SPIKES_BITS ? spikes->least | 1u << (QUANT_SPIKES_BITS - 1 - pass) : spikes->least + 1;
    return pass == 0 && found > 0;
}

/* This lane's rows of the next piece that hold spikes. */
template <QuantType TYPE>
__device__ __forceinline__ uint32_t quant_spikes_mask(const QuantSpec &spec, const float (&v)[QUANT_ROWS], int count,
                                                      QuantSpikes *walk) {
    const int rows = quant_rows(count);
    const uint32_t before = (1u << quant_lane()) - 1u;
    uint32_t mask = 0;
    int mine = 0;
#pragma unroll
    for (int k = 0; k < QUANT_ROWS; k++) {
        uint32_t magnitude = float_bits(quant_seen<TYPE>(spec, v[k])) & 0x7FFFFFFFu;
        bool inside = k < rows, tie = inside && magnitude == walk->least;
        uint32_t ties = __ballot_sync(WHOLE_WARP, tie);
        tie = tie && walk->tied + __popc(ties & before) < walk->ties;
        bool spike = tie || (inside && magnitude > walk->least);
        mask |= (uint32_t)spike << k;
        mine += spike;
        walk->tied += __popc(ties);
    }
    walk->taken += warp_sum(mine);
    return mask;
}

/* Rarely called, from many places. */
__device__ static NOT_INLINE void quant_spikes_write(QuantSink sink, uint64_t at, uint32_t entry) {
    for (int s = 0; s < sink.count; s++) *reinterpret_cast<uint32_t *>(sink.bases[s] + at) = entry;
}

__device__ static __forceinline__ void quant_spikes_clear(const QuantSpec &spec, QuantPlace place, QuantSink sink) {
    for (int i = quant_lane(); i < spec.spikes; i += WARP) {
        quant_spikes_write(sink, place.spikes + (uint64_t)(i * QUANT_SPIKE_BYTES), 0);
    }
    __syncwarp();
}

/* Writes the entries of a piece, before which `taken` have been written, in the order of their indices. */
template <QuantType TYPE>
__device__ __forceinline__ void quant_spikes_emit(const QuantSpec &spec, const float (&v)[QUANT_ROWS], int64_t first,
                                                  int taken, uint32_t mask, QuantPlace place, QuantSink sink) {
    const int lane = quant_lane();
#pragma unroll
    for (int k = 0; k < QUANT_ROWS; k++) {
        bool spike = mask >> k & 1;
        uint32_t all = __ballot_sync(WHOLE_WARP, spike);
        if (spike) {
            int at = taken + __popc(all & ((1u << lane) - 1u));
            uint32_t value = bfloat16_from_float(quant_seen<TYPE>(spec, v[k]));
            uint32_t entry = (uint32_t)(first + k * WARP + lane) | value << 16;
            quant_spikes_write(sink, place.spikes + (uint64_t)(at * QUANT_SPIKE_BYTES), entry);
        }
        taken += __popc(all);
    }
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
    float value = 0.0f;
    for (int i = 0; i < entries; i++) {
        if ((room->words[i] & 0xFFFFu) == index) value = bfloat16_to_float((uint16_t)(room->words[i] >> 16));
    }
    return value;
}

#endif
