/* The spikes of a bucket: found by a search for the least magnitude among them, bit by bit, with no memory but
 * registers. */
#ifndef CGXFFCV_QUANT_CUDA_SPIKES_CUH
#define CGXFFCV_QUANT_CUDA_SPIKES_CUH

#include "quant/cuda/warp.cuh"

/* Spikes are the elements above `least`, and of those equal to it the first `ties`; of the pieces walked over so far,
 * `tied` were equal and `taken` are spikes. */
struct QuantSpikes {
    uint32_t least;
    int ties, tied, taken;
};

/* This lane's elements of a piece whose magnitude is at least so much. */
template <QuantType TYPE>
__device__ __forceinline__ int quant_spikes_count(const QuantSpec &spec, const float (&v)[QUANT_ROWS], int count,
                                                  uint32_t least) {
    const int rows = quant_rows(count);
    int found = 0;
#pragma unroll
    for (int k = 0; k < QUANT_ROWS; k++) {
        found += k < rows && (float_bits(quant_seen<TYPE>(spec, v[k])) & 0x7FFFFFFFu) >= least;
    }
    return found;
}

/* Of all lanes and pieces. `v` holds the bucket where that is one piece. */
template <QuantType TYPE, typename Source>
__device__ __forceinline__ int quant_spikes_count_all(const Source &source, const QuantSpec &spec, int64_t elems,
                                                      float (&v)[QUANT_ROWS], uint32_t least) {
    int found = 0;
    for (int64_t first = 0; first < elems; first += QUANT_PIECE) {
        int count = quant_piece_count(elems, first);
        if (elems > QUANT_PIECE) source.piece(first, count, v);
        found += quant_spikes_count<TYPE>(spec, v, count, least);
    }
    return warp_sum(found);
}

/* Returns a magnitude that is at least QUANT_MAGNITUDE_LIMIT if one of the bucket is. */
template <QuantType TYPE, typename Source>
__device__ __forceinline__ uint32_t quant_spikes_choose(const Source &source, const QuantSpec &spec, int64_t elems,
                                                        float (&v)[QUANT_ROWS], QuantSpikes *spikes) {
    int limit = elems < spec.spikes ? (int)elems : spec.spikes;
    source.piece(0, quant_piece_count(elems, 0), v);
    if (quant_spikes_count_all<TYPE>(source, spec, elems, v, QUANT_MAGNITUDE_LIMIT) > 0) return QUANT_MAGNITUDE_LIMIT;
    uint32_t least = 0;
    for (int bit = 30; bit >= 0; bit--) {
        uint32_t higher = least | 1u << bit;
        if (quant_spikes_count_all<TYPE>(source, spec, elems, v, higher) >= limit) least = higher;
    }
    spikes->least = least;
    spikes->ties = limit - quant_spikes_count_all<TYPE>(source, spec, elems, v, least + 1);
    return 0;
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

__device__ static __forceinline__ void quant_spikes_clear(const QuantSpec &spec, QuantPlace place, QuantSink sink) {
    for (int i = quant_lane(); i < spec.spikes; i += WARP) {
        for (int s = 0; s < sink.count; s++) {
            *reinterpret_cast<uint32_t *>(sink.bases[s] + place.spikes + i * QUANT_SPIKE_BYTES) = 0;
        }
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
            for (int s = 0; s < sink.count; s++) {
                *reinterpret_cast<uint32_t *>(sink.bases[s] + place.spikes + at * QUANT_SPIKE_BYTES) = entry;
            }
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

/* The last entry of that index counts. */
__device__ static __forceinline__ float quant_spike_at(const QuantRoom *room, int entries, uint32_t index) {
    float value = 0.0f;
    for (int i = 0; i < entries; i++) {
        if ((room->words[i] & 0xFFFFu) == index) value = bfloat16_to_float((uint16_t)(room->words[i] >> 16));
    }
    return value;
}

#endif
