/* Tensors in device memory with the codec "maxmin_spikes": whole pieces of buckets of 64, 128 .. 8,192 elements the
 * quick way, and what is left of a run bucket by bucket.
 *
 * The quick way to the wire: a warp takes the buckets that begin in its piece (pieces.cuh), one after the other; row k
 * of a bucket is its elements 32 k + lane. The lanes' greatest magnitudes give a bound that few elements reach; those
 * are gathered, a lane each, and ranked by comparing each with each. The way back: a piece is decoded as without
 * spikes, which are stored behind it. */
#include "quant/cuda/pieces.cuh"

/* ---- to the wire ---- */

/* An element that may be a spike, one a lane. */
struct SpikesOffer {
    float value;
    uint32_t index;
    bool some, chosen;

    __device__ __forceinline__ uint32_t magnitude() const { return float_bits(value) & 0x7FFFFFFFu; }
};

/* What at least `limit` lanes' greatest magnitudes reach. Their last bits are replaced by the lane, so that no two are
 * equal and each has a rank of its own. */
__device__ static __forceinline__ uint32_t spikes_bound(float greatest, int limit, QuantRoom *room) {
    const uint32_t key = (float_bits(greatest) & ~(WARP - 1u)) | (uint32_t)quant_lane();
    int rank = 0;
    __syncwarp();
    room->words[quant_lane()] = key;
    __syncwarp();
#pragma unroll
    for (int i = 0; i < WARP / 4; i++) {
        const uint4 four = reinterpret_cast<const uint4 *>(room->words)[i];
        rank += (four.x > key) + (four.y > key) + (four.z > key) + (four.w > key);
    }
    const int lane = __ffs((int)__ballot_sync(WHOLE_WARP, rank == limit - 1)) - 1;
    __syncwarp();
    return __shfl_sync(WHOLE_WARP, key, lane) & ~(WARP - 1u);
}

/* The elements of x, this lane's column of a bucket, in the rows of `mask`: `count` of all lanes, 32 at most. */
template <QuantType TYPE>
__device__ __forceinline__ SpikesOffer spikes_gather(const typename QuantElement<TYPE>::Stored *x, uint32_t mask,
                                                     int count, QuantRoom *room) {
    uint2 *offers = reinterpret_cast<uint2 *>(room->words);
    const uint32_t before = (1u << quant_lane()) - 1u;
    int taken = 0;
    while (taken < count) {
        const uint32_t giving = __ballot_sync(WHOLE_WARP, mask != 0);
        if (mask != 0) {
            const int row = __ffs((int)mask) - 1;
            const float value = QuantElement<TYPE>::widened(x[row * WARP]);
            offers[taken + __popc(giving & before)] =
                make_uint2(float_bits(value), (uint32_t)(row * WARP + quant_lane()));
            mask &= mask - 1;
        }
        taken += __popc(giving);
    }
    __syncwarp();
    const bool some = quant_lane() < count;
    const uint2 own = some ? offers[quant_lane()] : make_uint2(0, 0);
    return {float_of_bits(own.x), own.y, some, false};
}

/* Chooses the `limit` greatest of `count` offers, among equals the earlier, and writes their entries in the order of
 * their indices. */
__device__ static __forceinline__ void spikes_choose(SpikesOffer *own, int count, int limit, uint32_t *entries,
                                                     const QuantRoom *room) {
    uint32_t earlier = 0;
    int rank = 0;
    for (int i = 0; i < count; i++) {
        const uint2 other = reinterpret_cast<const uint2 *>(room->words)[i];
        const uint32_t magnitude = other.x & 0x7FFFFFFFu;
        const bool first = other.y < own->index;
        rank += magnitude > own->magnitude() || (magnitude == own->magnitude() && first);
        earlier |= (uint32_t)first << i;
    }
    own->chosen = own->some && rank < limit;
    const uint32_t chosen = __ballot_sync(WHOLE_WARP, own->chosen);
    if (own->chosen) {
        entries[__popc(earlier & chosen)] = own->index | (uint32_t)bfloat16_from_float(own->value) << 16;
    }
}

/* The extremes of the elements that are no spikes. */
template <int ROWS>
__device__ __forceinline__ QuantExtremes spikes_extremes(const float (&v)[QUANT_ROWS], const SpikesOffer &own) {
    const uint32_t least = ~warp_max(own.chosen ? ~own.magnitude() : 0u);
    QuantExtremes of = {0.0f, float_of_bits(0x7F800000u), float_of_bits(0xFF800000u), 0.0f};
#pragma unroll
    for (int k = 0; k < ROWS; k++) {
        const float among = fabsf(v[k]) < float_of_bits(least) ? v[k] : float_of_bits(QUANT_NAN_F32);
        of.min = fminf(of.min, among);
        of.max = fmaxf(of.max, among);
    }
    if (own.some && !own.chosen && own.magnitude() == least) { /* elements below it have been seen */
        of.min = fminf(of.min, own.value);
        of.max = fmaxf(of.max, own.value);
    }
    return of;
}

/* The codes of a column into the room, and 0 behind them to the end of a group, which is packed as a whole. Without
 * codes of their own, elements are multiplied by 0. */
template <int ROWS>
__device__ __forceinline__ void spikes_put_codes(const float (&v)[QUANT_ROWS], QuantGrid grid, bool coded, int bits,
                                                 const QuantRandom *random, QuantRoom *room) {
    const float inverse = coded ? QUANT_DIV(1.0f, grid.unit) : 0.0f, levels = (float)((1 << bits) - 1);
    __syncwarp();
#pragma unroll
    for (int k = 0; k < ROWS; k += 4) {
        uint32_t words[4];
        if (random != nullptr) quant_draw<QUANT_STRIPED>(*random, 0, k / 4, room, words);
#pragma unroll
        for (int c = 0; c < 4; c++) {
            const uint32_t marked = random != nullptr
                                        ? quant_marked_drawn(v[k + c], grid.min, inverse, levels, words[c])
                                        : quant_marked_nearest(v[k + c], grid.min, inverse);
            room->codes[(k + c) * WARP + quant_lane()] = k + c < ROWS ? (uint8_t)marked : (uint8_t)0;
        }
    }
    __syncwarp();
}

/* A bucket of ROWS rows at x. False, with nothing done, if the bound does not leave few enough elements, or the bucket
 * is one of NaN. */
template <QuantType TYPE, int ROWS>
__device__ __forceinline__ bool spikes_encode(const typename QuantElement<TYPE>::Stored *x, const QuantItem *item,
                                              const QuantBucket &bucket, QuantRoom *room) {
    QuantSpec spec = item->run.spec;
    const int lane = quant_lane(), limit = spec.spikes;
    uint8_t *base = (uint8_t *)item->run.wire;
    float v[QUANT_ROWS] = {}, greatest = 0.0f;
    spec.half_metadata = false; /* as it is here, for the compiler */
    if (limit > WARP) return false;
#pragma unroll
    for (int k = 0; k < ROWS; k++) v[k] = QuantElement<TYPE>::widened(x[k * WARP + lane]);
#pragma unroll
    for (int k = 0; k < ROWS; k++) greatest = quant_max_nan(greatest, fabsf(v[k]));
    const uint32_t bound = spikes_bound(greatest, limit, room);
    if (bound == 0 || quant_warp_magnitude(greatest) >= QUANT_MAGNITUDE_LIMIT) return false;
    const uint32_t mask = quant_spikes_above<false>(spec, v, bound - 1);
    const int count = quant_spikes_sum(__popc(mask));
    if (count > WARP) return false;

    SpikesOffer own = spikes_gather<TYPE>(x + lane, mask, count, room);
    spikes_choose(&own, count, limit, reinterpret_cast<uint32_t *>(base + bucket.place.spikes), room);
    bool coded;
    const QuantExtremes extremes = spikes_extremes<ROWS>(v, own);
    const uint64_t metadata = quant_metadata_of<QUANT_SPIKES>(spec, extremes, ROWS * WARP, false, &coded);
    const QuantGrid grid = quant_grid_of_metadata<QUANT_SPIKES>(spec, metadata);
    quant_emit_word({&base, 1}, bucket.place.metadata, metadata, quant_metadata_size<QUANT_SPIKES>(spec));

    const QuantRandom random = quant_bucket_random(item, bucket);
    spikes_put_codes<ROWS>(v, grid, coded, spec.bits, spec.rounding == QUANT_STOCHASTIC ? &random : nullptr, room);
    if (own.chosen) room->codes[own.index] = 0;
    quant_emit_codes({&base, 1}, bucket.place.codes, spec.bits, ROWS * WARP, room);
    return true;
}

/* The search that few buckets need has more to keep than two blocks leave room for. */
template <QuantType TYPE>
static __global__ void __launch_bounds__(QUANT_WARPS *WARP, 2) spikes_encode_kernel(const QuantItem *items, int count) {
    __shared__ QuantRoom rooms[QUANT_WARPS];
    grid_begin();
    const QuantItem *item = quant_find_item<true>(items, count);
    const PiecesOwn piece = pieces_own(item);
    QuantRoom *room = &rooms[threadIdx.x / WARP];
    const int shift = item->shift, buckets = shift < 10 ? QUANT_PIECE >> shift : 1;
    if (!piece.some || piece.inside != 0) return;
#define CASE(shift)                                                                                                    \
    case shift:                                                                                                        \
        done = spikes_encode<TYPE, 1 << (shift - 5)>(x, item, bucket, room);                                           \
        break;
    for (int i = 0; i < buckets; i++) {
        const QuantBucket bucket = quant_bucket(item, (piece.number * QUANT_PIECE >> shift) + i);
        const auto *x = (const typename QuantElement<TYPE>::Stored *)item->run.x + bucket.first;
        bool done = false;
        switch (shift) {
            CASE(6)
            CASE(7)
            CASE(8)
            CASE(9)
            CASE(10)
        }
        if (!done) quant_apart([=]() { quant_encode_bucket<QUANT_SPIKES>(item, bucket, room); });
    }
#undef CASE
}

/* ---- from the wire ---- */

/* Stores the spikes of a bucket of 2^shift elements that lie in a piece, whose first element is number `inside` of the
 * bucket. False if one lies outside of the bucket. */
template <QuantType TYPE>
__device__ __forceinline__ bool spikes_put(const uint32_t *entries, int count, int shift, int inside,
                                           typename QuantElement<TYPE>::Stored *to) {
    const int lane = quant_lane(), most = shift < 10 ? 1 << shift : QUANT_PIECE;
    bool sound = true;
    for (int first = 0; first < count; first += WARP) {
        const bool some = first + lane < count;
        const uint32_t entry = some ? __ldcg(entries + first + lane) : 0;
        const int index = (int)(entry & 0xFFFFu), at = index - inside;
        const bool here = some && at >= 0 && at < most;
        const uint32_t same = __match_any_sync(WHOLE_WARP, here ? index : -1 - lane);
        sound = sound && (!some || index < 1 << shift);
        if (here && same >> lane == 1) { /* the last entry of an index counts */
            to[at] = QuantElement<TYPE>::narrowed(bfloat16_to_float((uint16_t)(entry >> 16)));
        }
        __syncwarp();
    }
    return sound;
}

template <QuantType TYPE>
static __global__ void __launch_bounds__(QUANT_WARPS *WARP, 4)
    spikes_decode_kernel(const QuantItem *items, int count, uint32_t *damaged) {
    __shared__ QuantRoom rooms[QUANT_WARPS];
    grid_begin();
    const QuantItem *item = quant_find_item<true>(items, count);
    const PiecesOwn piece = pieces_own(item);
    if (!piece.some) return;
    const int shift = item->shift, buckets = shift < 10 ? QUANT_PIECE >> shift : 1;
    const uint8_t *base = (const uint8_t *)item->run.wire;
    auto *to = (typename QuantElement<TYPE>::Stored *)item->run.x + piece.number * QUANT_PIECE;
    pieces_decode<TYPE, QUANT_SPIKES>(item, piece, &rooms[threadIdx.x / WARP]);
    __syncwarp();
    for (int i = 0; i < buckets; i++) {
        const uint64_t number = (uint64_t)(piece.number * QUANT_PIECE >> shift) + (uint64_t)i;
        const auto *entries = (const uint32_t *)(base + item->layout.spikes_at + number * item->layout.spikes);
        if (!quant_is_finite(pieces_fetch_grid<QUANT_SPIKES>(base, (int64_t)number).x)) continue;
        if (!spikes_put<TYPE>(entries, item->run.spec.spikes, shift, piece.inside, to + (i << shift))) *damaged = 1;
    }
}

/* ---- launches ---- */

template <QuantType TYPE>
static Status spikes_launch_quick(const QuantDeviceBatch *batch, bool encode, DeviceStream *stream) {
    unsigned blocks = (unsigned)batch->quick_blocks;
    if (encode) {
        return LAUNCH_AFTER(spikes_encode_kernel<TYPE>, blocks, QUANT_WARPS * WARP, 0, stream, batch->items,
                            batch->count);
    }
    return LAUNCH_AFTER(spikes_decode_kernel<TYPE>, blocks, QUANT_WARPS * WARP, 0, stream, batch->items, batch->count,
                        batch->damaged);
}

extern "C" Status quant_launch_spikes(const QuantDeviceBatch *batch, bool encode, DeviceStream *stream) {
#define QUICK(TYPE) spikes_launch_quick<TYPE>(batch, encode, stream)
    if (batch->quick_blocks > 0) TRY(QUANT_BY_TYPE(batch->type, QUICK));
#undef QUICK
    return batch->blocks > 0 ? quant_launch<QUANT_SPIKES>(batch, encode, stream) : STATUS_OK;
}
