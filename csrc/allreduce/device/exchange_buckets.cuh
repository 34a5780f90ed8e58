/* A tile's buckets one by one, of every codec and size, and what travels unquantised. The kernels are separate from
 * those of the fast path, so that these are not charged their registers. Types are told apart with each piece, and so
 * one kernel serves all of them; with NARROWS, elements are rounded to the tensor's type before they are quantised, as
 * 16-bit ranges require. A warp takes one bucket at a time; buffers are those of exchange.cuh. */
#ifndef CGXFFCV_ALLREDUCE_DEVICE_EXCHANGE_BUCKETS_CUH
#define CGXFFCV_ALLREDUCE_DEVICE_EXCHANGE_BUCKETS_CUH

#include "allreduce/device/exchange.cuh"
#include "quant/cuda/bucket.cuh"

__device__ static __forceinline__ QuantSpec exchange_spec(const ExchangePlan *plan, const DeviceTile &tile,
                                                          QuantCodec codec) {
    QuantSpec spec = {};
    spec.bits = tile.bits;
    spec.bucket_size = tile.bucket_size;
    spec.type = plan->type;
    spec.codec = codec;
    spec.half_metadata = plan->half_metadata;
    spec.spikes = tile.spikes;
    spec.scale = (QuantScale)tile.scale;
    return spec;
}

/* A bucket of a tile, or a piece of a raw one. */
struct ExchangeBucket {
    int64_t first, elems; /* in the tile */
    QuantPlace place;
    uint64_t number;
};

__device__ static __forceinline__ ExchangeBucket exchange_bucket(const DeviceTile &tile, int64_t number) {
    ExchangeBucket bucket = {};
    bucket.number = (uint64_t)number;
    bucket.first = number * tile.bucket_size;
    int64_t left = tile.elems - bucket.first;
    bucket.elems = left < tile.bucket_size ? left : tile.bucket_size;
    bucket.place.metadata = tile.at + bucket.number * tile.metadata;
    bucket.place.spikes = tile.at + tile.spikes_at + bucket.number * (uint64_t)(tile.spikes * QUANT_SPIKE_BYTES);
    bucket.place.codes = tile.at + tile.codes_at + bucket.number * tile.codes;
    return bucket;
}

template <typename Keep>
__device__ __forceinline__ Keep exchange_keep_of(const ExchangePlan *plan, const DeviceTile &tile,
                                                 const ExchangeBucket &bucket) {
    return exchange_keep<Keep>(plan, tile.first + bucket.first, tile.bucket + bucket.number);
}

#define FOR_BUCKETS(number, tile)                                                                                      \
    for (int64_t number = threadIdx.x / WARP; number * (tile).bucket_size < (tile).elems; number += WARPS)

/* ---- elements ---- */

/* v = four elements of group j, or v + these. */
__device__ static __forceinline__ void exchange_put_group(float (&v)[QUANT_ROWS], int j, bool add, const float *four) {
#pragma unroll
    for (int c = 0; c < 4; c++) v[4 * j + c] = add ? QUANT_ADD(v[4 * j + c], four[c]) : four[c];
}

/* The residual from an element on, in the form in which it is kept. */
template <QuantLie LIE, typename Keep> struct ExchangeLost;

template <QuantLie LIE> struct ExchangeLost<LIE, QuantKeep> {
    const float *residual; /* NULL: none */

    __device__ __forceinline__ ExchangeLost(const QuantKeep &keep, bool raw)
        : residual(raw ? nullptr : keep.residual) {}
    __device__ __forceinline__ bool any() const { return residual != nullptr; }
    __device__ __forceinline__ void load(int64_t first, int j, int count, float (&to)[4]) const {
        quant_load_group<QUANT_F32, LIE, false>(residual + first, j, count, to);
    }
};

template <QuantLie LIE> struct ExchangeLost<LIE, QuantKeepEight> {
    const int8_t *codes; /* NULL: none */
    float unit;

    __device__ __forceinline__ ExchangeLost(const QuantKeepEight &keep, bool raw)
        : codes(raw ? nullptr : keep.codes), unit(codes == nullptr ? 0.0f : quant_residual_unit(*keep.exponents)) {}
    __device__ __forceinline__ bool any() const { return codes != nullptr; }
    __device__ __forceinline__ void load(int64_t first, int j, int count, float (&to)[4]) const {
        quant_load_kept<LIE>(codes + first, unit, j, count, to);
    }
};

/* This rank's elements of a bucket, with the residual. */
template <QuantLie LIE, typename Keep> struct ExchangeOwn {
    QuantType type;
    const void *buffer;
    int64_t begin; /* of the bucket in it */
    ExchangeLost<LIE, Keep> lost;
    float scale;

    __device__ __forceinline__ ExchangeOwn(const ExchangePlan *plan, const void *from, const DeviceTile &tile,
                                           const ExchangeBucket &bucket)
        : type(plan->type), buffer(from), begin(tile.first + bucket.first),
          lost(exchange_keep_of<Keep>(plan, tile, bucket), tile.bits == 0), scale(plan->scale) {}

    __device__ __forceinline__ void take(int64_t first, int count, bool add, float (&v)[QUANT_ROWS]) const {
        float mine[QUANT_ROWS];
        quant_load_piece<LIE>(type, buffer, begin + first, count, mine);
        FOR_GROUPS(j, count) {
            float four[4], before[4] = {};
            if (lost.any()) lost.load(first, j, count, before);
#pragma unroll
            for (int c = 0; c < 4; c++) {
                four[c] = lost.any() ? QUANT_ADD(before[c], mine[4 * j + c]) : mine[4 * j + c];
                four[c] = QUANT_MUL(four[c], scale);
            }
            exchange_put_group(v, j, add, four);
        }
    }

    __device__ __forceinline__ void piece(int64_t first, int count, float (&v)[QUANT_ROWS]) const {
        take(first, count, false, v);
    }
};

/* The sum of the terms of all ranks in rank order, with this rank's elements in its place. */
template <QuantCodec CODEC, typename Keep> struct ExchangeSum {
    const ExchangePlan *plan;
    const QuantSpec *spec;
    const DeviceTile &tile;
    ExchangeOwn<quant_lie<CODEC>(), Keep> own;
    ExchangeBucket bucket;
    uint32_t epoch;
    QuantRoom *room;

    __device__ __forceinline__ void piece(int64_t first, int count, float (&v)[QUANT_ROWS]) const {
        for (int rank = 0; rank < plan->ranks; rank++) {
            if (rank == plan->rank) {
                own.take(first, count, rank > 0, v);
                continue;
            }
            const uint8_t *base = exchange_row(plan, epoch, rank);
            bool sound =
                quant_warp_decode<CODEC>(base, bucket.place, *spec, bucket.elems, first, count, rank > 0, v, room);
            if (!sound) exchange_fail(plan, COMM_WINDOW_SOUND, rank, tile.number, epoch);
        }
    }
};

/* This rank's random numbers for a bucket; the signs of a rotation are the same on all ranks. */
__device__ static __forceinline__ QuantRandom exchange_random(const ExchangePlan *plan, const DeviceTile &tile,
                                                              const ExchangeBucket &bucket) {
    uint64_t quads = (uint64_t)((tile.bucket_size + 3) / 4);
    QuantRandom random = {plan->seed, __ldcg(plan->call), (uint32_t)plan->self, tile.quad + bucket.number * quads};
    return random;
}

/* How unquantised elements travel. */
__device__ static __forceinline__ QuantType exchange_raw_type(const ExchangePlan *plan) {
    return plan->wide ? QUANT_F32 : plan->type;
}

/* A piece of unquantised elements at base + at. */
template <QuantLie LIE>
__device__ __forceinline__ void exchange_take_raw(QuantType type, const uint8_t *base, uint64_t at, int64_t first,
                                                  int count, bool add, float (&v)[QUANT_ROWS]) {
    float theirs[QUANT_ROWS];
    quant_load_piece<LIE, true>(type, base + at, first, count, theirs);
    FOR_GROUPS(j, count) exchange_put_group(v, j, add, theirs + 4 * j);
}

template <QuantLie LIE>
__device__ __forceinline__ void exchange_put_raw(QuantType type, QuantSink sink, uint64_t at, int64_t first, int count,
                                                 const float (&v)[QUANT_ROWS]) {
    for (int s = 0; s < sink.count; s++) quant_store_piece<LIE>(type, sink.bases[s] + at, first, count, v);
}

/* ---- encoding ---- */

/* Quantises a bucket of a source, with this rank's random numbers. */
template <bool NARROWS, QuantCodec CODEC, typename Keep, typename Source>
__device__ __forceinline__ void exchange_encode(const ExchangePlan *plan, const Source &source, const DeviceTile &tile,
                                                const ExchangeBucket &bucket, const QuantSpec &spec, QuantSink sink,
                                                QuantRoom *room) {
    QuantRandom random = exchange_random(plan, tile, bucket);
    const bool draws = CODEC == QUANT_ROTATED || plan->stochastic;
    quant_warp_encode<NARROWS, CODEC>(source, spec, bucket.elems, draws ? &random : nullptr, bucket.place, sink,
                                      exchange_keep_of<Keep>(plan, tile, bucket), room);
}

template <bool NARROWS, QuantCodec CODEC, typename Keep>
__device__ __forceinline__ void exchange_push_tile(const ExchangePlan *plan, const void *buffer, const DeviceTile &tile,
                                                   QuantSink sink, QuantRoom *room) {
    float v[QUANT_ROWS];
    FOR_BUCKETS(number, tile) {
        ExchangeBucket bucket = exchange_bucket(tile, number);
        ExchangeOwn<quant_lie<CODEC>(), Keep> own(plan, buffer, tile, bucket);
        if (tile.bits == 0) {
            own.piece(0, (int)bucket.elems, v);
            exchange_put_raw<quant_lie<CODEC>()>(exchange_raw_type(plan), sink, tile.at, bucket.first,
                                                 (int)bucket.elems, v);
        } else {
            exchange_encode<NARROWS, CODEC, Keep>(plan, own, tile, bucket, exchange_spec(plan, tile, CODEC), sink,
                                                  room);
        }
    }
}

/* ---- rotated: a bucket's terms are added as values ---- */

/* In rank order, with this rank's elements in its place; rank 1 begins with its own, since a + b = b + a. */
template <typename Keep, int PIECES>
__device__ __forceinline__ void
exchange_add_values(const ExchangePlan *plan, const ExchangeOwn<QUANT_STRIPED, Keep> &own, const ExchangeBucket &bucket,
                    const QuantSpec &spec, const QuantRandom &random, uint32_t epoch, QuantValues<PIECES> &values,
                    QuantRoom *room) {
    for (int i = 0; i < plan->ranks; i++) {
        int rank = plan->rank == 1 && i < 2 ? 1 - i : i;
        if (rank != plan->rank) {
            const uint8_t *base = exchange_row(plan, epoch, rank);
            quant_decode_values(base, bucket.place, spec, bucket.elems, i > 0, values, room);
        } else if (i == 0) {
            quant_enter(own, bucket.elems, random, values, room);
        } else {
            QuantValues<PIECES> mine;
            quant_enter(own, bucket.elems, random, mine, room);
            quant_add_values(mine, values);
        }
    }
}

template <typename Keep, int PIECES>
__device__ __forceinline__ void
exchange_reduce_values(const ExchangePlan *plan, const ExchangeOwn<QUANT_STRIPED, Keep> &own, const DeviceTile &tile,
                       const ExchangeBucket &bucket, const QuantSpec &spec, uint32_t epoch, QuantSink sink,
                       QuantRoom *room) {
    QuantValues<PIECES> values;
    QuantRandom random = exchange_random(plan, tile, bucket);
    exchange_add_values(plan, own, bucket, spec, random, epoch, values, room);
    quant_encode_values(values, spec, bucket.elems, random, bucket.place, sink,
                        exchange_keep_of<Keep>(plan, tile, bucket), room);
}

/* Adds rows [row, row + rows) of a bucket, leaves the domain and stores the elements. */
template <int PIECES>
__device__ __forceinline__ void exchange_gather_values(const ExchangePlan *plan, void *buffer, const DeviceTile &tile,
                                                       const ExchangeBucket &bucket, uint32_t epoch, int row, int rows,
                                                       QuantRoom *room) {
    QuantValues<PIECES> values;
    const QuantSpec spec = exchange_spec(plan, tile, QUANT_ROTATED);
    for (int i = 0; i < rows; i++) {
        const uint8_t *base = exchange_row(plan, epoch, row + i);
        quant_decode_values(base, bucket.place, spec, bucket.elems, i > 0, values, room);
    }
    quant_leave(values, exchange_random(plan, tile, bucket), room);
    FOR_PIECES(p, values) exchange_divide(plan, values.v[p]);
    quant_store_values(plan->type, buffer, tile.first + bucket.first, bucket.elems, values);
}

/* ---- buckets of a tile ---- */

/* Adds the terms of a quantised bucket and encodes the sum. */
template <bool NARROWS, QuantCodec CODEC, typename Keep>
__device__ __forceinline__ void exchange_reduce_bucket(const ExchangePlan *plan,
                                                       const ExchangeOwn<quant_lie<CODEC>(), Keep> &own,
                                                       const DeviceTile &tile, const ExchangeBucket &bucket,
                                                       uint32_t epoch, QuantSink sink, QuantRoom *room) {
    const QuantSpec spec = exchange_spec(plan, tile, CODEC);
    if constexpr (CODEC == QUANT_ROTATED) {
#define CALL(PIECES) exchange_reduce_values<Keep, PIECES>(plan, own, tile, bucket, spec, epoch, sink, room)
        QUANT_BY_PIECES(bucket.elems, CALL)
#undef CALL
    } else {
        ExchangeSum<CODEC, Keep> sum = {plan, &spec, tile, own, bucket, epoch, room};
        exchange_encode<NARROWS, CODEC, Keep>(plan, sum, tile, bucket, spec, sink, room);
    }
}

template <bool NARROWS, QuantCodec CODEC, typename Keep>
__device__ __forceinline__ void exchange_reduce_tile(const ExchangePlan *plan, const void *buffer,
                                                     const DeviceTile &tile, uint32_t epoch, QuantSink sink,
                                                     QuantRoom *room) {
    float v[QUANT_ROWS];
    FOR_BUCKETS(number, tile) {
        ExchangeBucket bucket = exchange_bucket(tile, number);
        ExchangeOwn<quant_lie<CODEC>(), Keep> own(plan, buffer, tile, bucket);
        if (tile.bits != 0) {
            exchange_reduce_bucket<NARROWS, CODEC, Keep>(plan, own, tile, bucket, epoch, sink, room);
            continue;
        }
        for (int rank = 0; rank < plan->ranks; rank++) {
            const uint8_t *base = exchange_row(plan, epoch, rank);
            if (rank == plan->rank) {
                own.take(0, (int)bucket.elems, rank > 0, v);
            } else {
                exchange_take_raw<quant_lie<CODEC>()>(exchange_raw_type(plan), base, tile.at, bucket.first,
                                                      (int)bucket.elems, rank > 0, v);
            }
        }
        exchange_divide(plan, v);
        exchange_put_raw<quant_lie<CODEC>()>(exchange_raw_type(plan), sink, tile.at, bucket.first, (int)bucket.elems,
                                             v);
    }
}

/* Adds rows [row, row + rows) of a piece; with rotated only of what travels unquantised. */
template <QuantCodec CODEC>
__device__ __forceinline__ void exchange_add_rows(const ExchangePlan *plan, const DeviceTile &tile,
                                                  const ExchangeBucket &bucket, uint32_t epoch, int row, int rows,
                                                  int64_t first, int count, float (&v)[QUANT_ROWS], QuantRoom *room) {
    const QuantSpec spec = exchange_spec(plan, tile, CODEC);
    for (int i = 0; i < rows; i++) {
        const uint8_t *base = exchange_row(plan, epoch, row + i);
        if (CODEC == QUANT_ROTATED || tile.bits == 0) {
            exchange_take_raw<quant_lie<CODEC>()>(exchange_raw_type(plan), base, tile.at, bucket.first + first, count,
                                                  i > 0, v);
        } else {
            bool sound = quant_warp_decode<CODEC>(base, bucket.place, spec, bucket.elems, first, count, i > 0, v, room);
            int from = plan->window.from[row + i].rank;
            if (!sound) exchange_fail(plan, COMM_WINDOW_SOUND, from, tile.number, epoch);
        }
    }
}

template <QuantCodec CODEC>
__device__ __forceinline__ void exchange_gather_tile(const ExchangePlan *plan, void *buffer, const DeviceTile &tile,
                                                     uint32_t epoch, int row, int rows, QuantRoom *room) {
    float v[QUANT_ROWS];
    FOR_BUCKETS(number, tile) {
        ExchangeBucket bucket = exchange_bucket(tile, number);
        if (CODEC == QUANT_ROTATED && tile.bits != 0) {
#define CALL(PIECES) exchange_gather_values<PIECES>(plan, buffer, tile, bucket, epoch, row, rows, room)
            QUANT_BY_PIECES(bucket.elems, CALL)
#undef CALL
            continue;
        }
        for (int64_t first = 0; first < bucket.elems; first += QUANT_PIECE) {
            int count = quant_piece_count(bucket.elems, first);
            exchange_add_rows<CODEC>(plan, tile, bucket, epoch, row, rows, first, count, v, room);
            if (tile.bits != 0 || plan->one_shot) exchange_divide(plan, v);
            quant_store_piece<quant_lie<CODEC>()>(plan->type, buffer, tile.first + bucket.first + first, count, v);
        }
    }
}

template <bool NARROWS, QuantCodec CODEC, typename Keep> struct ExchangeBuckets {
    typedef ExchangeBuckets<false, CODEC, QuantKeep> Gathers; /* gathering narrows nothing and keeps no residual */
    static constexpr uint32_t WAYS = EXCHANGE_BUCKETWISE;
    static constexpr int GATHERERS = BLOCKS_EACH;

    __device__ static __forceinline__ void push(const ExchangePlan *plan, const void *buffer, const DeviceTile &tile,
                                                QuantSink sink, QuantRoom *room) {
        exchange_push_tile<NARROWS, CODEC, Keep>(plan, buffer, tile, sink, room);
    }
    __device__ static __forceinline__ void reduce(const ExchangePlan *plan, const void *buffer, const DeviceTile &tile,
                                                  uint32_t epoch, QuantSink sink, QuantRoom *room) {
        exchange_reduce_tile<NARROWS, CODEC, Keep>(plan, buffer, tile, epoch, sink, room);
    }
    __device__ static __forceinline__ void gather(const ExchangePlan *plan, void *buffer, const DeviceTile &tile,
                                                  uint32_t epoch, int row, int rows, QuantRoom *room) {
        exchange_gather_tile<CODEC>(plan, buffer, tile, epoch, row, rows, room);
    }
};

/* ---- launches ---- */

template <QuantCodec CODEC, typename Keep> static EXCHANGE_LAUNCH(exchange_launch_kept) {
    if constexpr (CODEC != QUANT_ROTATED) {
        if (plan->half_metadata) {
            return exchange_launch_way<ExchangeBuckets<true, CODEC, Keep>>(kernel, plan, round, buffer, stream);
        }
    }
    return exchange_launch_way<ExchangeBuckets<false, CODEC, Keep>>(kernel, plan, round, buffer, stream);
}

template <QuantCodec CODEC> static EXCHANGE_LAUNCH(exchange_launch_codec) {
    if (plan->codes.codes != nullptr) {
        return exchange_launch_kept<CODEC, QuantKeepEight>(kernel, plan, round, buffer, stream);
    }
    return exchange_launch_kept<CODEC, QuantKeep>(kernel, plan, round, buffer, stream);
}

#endif
