/* The exchange between GPUs, in three kernels that are put on a stream one after the other, round by round. A block of
 * WARPS warps takes tiles in turn (grid-stride); of a tile a warp takes a bucket at a time, or a piece of what travels
 * as it is. A block waits for all of its tiles before the first, and raises their flags after the last: a fence for the
 * system takes as long as a tile.
 *
 * push    quantises own elements into the windows of those who add them, then raises the tiles' flags there
 * reduce  (not with one-shot) waits for the terms of own tiles, adds them and its own elements in rank order in
 *         registers, quantises the sum into all windows, its own too, then raises the flags there
 * gather  waits for the results of tiles (with one-shot: for all terms, its own too), decodes, adds, divides, stores
 *
 * No kernel waits for another of the same stream, so blocks may run in any order and a few at a time, and ranks may
 * share a GPU. Round e uses half e % 2 of each window, and nobody writes there before all have read round e - 2: a rank
 * pushes round e after its own gather of e - 1, which has waited for something of e - 1 that came, perhaps by way of an
 * owner, of every rank; and a rank pushes e - 1 after its own gather of e - 2. Flags hold the number of the round,
 * which never comes twice, so nothing is ever reset. After a failure nothing is stored any more. */
#ifndef CGXFFCV_ALLREDUCE_DEVICE_EXCHANGE_CUH
#define CGXFFCV_ALLREDUCE_DEVICE_EXCHANGE_CUH

#include "comm/window.cuh"
#include "quant/cuda/bucket.cuh"
#include "quant/cuda/rotated.cuh"
#include "quant/cuda/warp.cuh"

extern "C" {
#include "allreduce/device/exchange.h"
#include "quant/formula.h"
}

#define WARPS 8
#define BLOCKS_EACH 2 /* resident on a multiprocessor */

/* ---- places ---- */

__device__ static __forceinline__ uint8_t *exchange_half(const ExchangeWindow *window, int rank, uint32_t epoch) {
    return window->base[rank] + (epoch & 1u) * window->half_bytes;
}

/* Region `row` in the window of a rank: terms of rank `row`, or results of rank `row - ranks`. What is this rank's own
 * from beginning to end needs no halves: kernels of one stream write and read it. */
__device__ static __forceinline__ uint8_t *exchange_region(const ExchangeWindow *window, int rank, uint32_t epoch,
                                                           int row) {
    bool results = row >= window->ranks;
    if (window->own != nullptr && rank == window->rank && row == rank + (results ? window->ranks : 0)) {
        return window->own + (results ? window->region_bytes : 0);
    }
    return exchange_half(window, rank, epoch) + (uint64_t)row * window->region_bytes;
}

__device__ static __forceinline__ uint32_t *exchange_flag(const ExchangeWindow *window, int rank, uint32_t epoch,
                                                          int row, uint32_t tile) {
    uint32_t *flags = reinterpret_cast<uint32_t *>(exchange_half(window, rank, epoch) + window->flags_at);
    return flags + (uint64_t)row * window->flags + tile;
}

/* Tells another rank that a tile of this rank is in row `row` of its window; this one knows by the order of its
 * kernels. */
__device__ static __forceinline__ void exchange_raise(const ExchangePlan *plan, int rank, uint32_t epoch, int row,
                                                      const DeviceTile &tile) {
    if (rank == plan->rank) return;
    uint32_t *flag = exchange_flag(&plan->window, rank, epoch, row, tile.number);
    if (!plan->forwarded) {
        signal_store(flag, epoch);
        return;
    }
    const uint8_t *base = plan->window.base[rank];
    uint64_t at = (uint64_t)(exchange_region(&plan->window, rank, epoch, row) - base) + tile.at;
    window_post(plan->post, rank, at, tile.bytes, (uint64_t)(reinterpret_cast<uint8_t *>(flag) - base), epoch);
}

/* Of a run that goes on; each kernel begins with it. False after a failure. */
__device__ static __forceinline__ bool exchange_begin(const ExchangePlan *plan, const ExchangeRound &round,
                                                      uint32_t *epoch) {
    grid_begin();
    *epoch = __ldcg(&plan->state->epoch) + round.number + 1;
    return __ldcg(&plan->state->failed) == 0;
}

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

#define FOR_BUCKETS(number, tile)                                                                                      \
    for (int64_t number = threadIdx.x / WARP; number * (tile).bucket_size < (tile).elems; number += WARPS)

/* ---- waiting ---- */

/* By one thread of all of a failed run. */
__device__ static __forceinline__ void exchange_fail(const ExchangePlan *plan, CommWindowReport what, int rank,
                                                     uint32_t tile, uint32_t epoch) {
    if (atomicCAS(&plan->state->failed, 0u, 1u) == 0) window_report(plan->signs, what, rank, tile, epoch);
}

/* The tiles of a launch that are this block's: first, first + step ... */
struct ExchangeTurns {
    int64_t begin, count; /* of the launch; turn i is begin + i, from `wraps` on less `less` */
    int64_t wraps, less;
    int64_t mine; /* of this block */

    __device__ __forceinline__ ExchangeTurns(int64_t begin_, int64_t count_, int64_t wraps_, int64_t less_)
        : begin(begin_), count(count_), wraps(wraps_), less(less_) {
        int64_t left = count - (int64_t)blockIdx.x;
        mine = left > 0 ? (left + gridDim.x - 1) / gridDim.x : 0;
    }

    __device__ __forceinline__ const DeviceTile *tile(const ExchangePlan *plan, int64_t turn) const {
        int64_t index = begin + (int64_t)blockIdx.x + turn * gridDim.x;
        return plan->tiles + (index < wraps ? index : index - less);
    }
};

/* One thread waits for a row of a tile. */
__device__ static __forceinline__ bool exchange_await(const ExchangePlan *plan, const DeviceTile *tile, uint32_t epoch,
                                                      int row) {
    const uint32_t *flag = exchange_flag(&plan->window, plan->rank, epoch, row, tile->number);
    if (window_await(flag, epoch, plan->signs, plan->timeout_ns)) return true;
    bool results = row >= plan->ranks;
    exchange_fail(plan, results ? COMM_WINDOW_RESULTS : COMM_WINDOW_TERMS, results ? (int)tile->owner : row,
                  tile->number, epoch);
    return false;
}

/* The block waits for the terms of all other ranks, or for the results, of all of its tiles: for those of the first
 * by a few threads, so that the others do not disturb what is being written. */
__device__ static __forceinline__ bool exchange_await_all(const ExchangePlan *plan, const ExchangeTurns &turns,
                                                          uint32_t epoch, bool results) {
    if (plan->carried) return true;
    const int rows = results ? 1 : plan->ranks;
    bool here = true;
    for (int64_t from = 0; from < turns.mine; from = from == 0 ? 1 : turns.mine) {
        int64_t to = from == 0 ? 1 : turns.mine;
        for (int64_t i = from * rows + threadIdx.x; here && i < to * rows; i += WARPS * WARP) {
            const DeviceTile *tile = turns.tile(plan, i / rows);
            int row = results ? plan->ranks + tile->owner : (int)(i % rows);
            bool own = row == plan->rank || row == plan->ranks + plan->rank;
            if (!own) here = exchange_await(plan, tile, epoch, row);
        }
        here = __syncthreads_and(here) != 0;
    }
    return here;
}

/* What the block has written in row `row` of its tiles can be read. */
__device__ static __forceinline__ void exchange_raise_all(const ExchangePlan *plan, const ExchangeTurns &turns,
                                                          uint32_t epoch, int row, bool to_owner) {
    if (plan->carried) return;
    const int to = to_owner ? 1 : plan->ranks;
    __syncthreads();
    for (int64_t i = threadIdx.x; i < turns.mine * to; i += WARPS * WARP) {
        const DeviceTile *tile = turns.tile(plan, i / to);
        int rank = to_owner ? (int)tile->owner : (int)(i % to);
        exchange_raise(plan, rank, epoch, row, *tile);
    }
}

/* Where goes what is for all: into each window. */
__device__ static __forceinline__ QuantSink exchange_all(const ExchangePlan *plan, uint8_t *const *bases) {
    QuantSink sink = {bases, plan->ranks};
    if (plan->carried) sink = {bases + plan->rank, 1};
    return sink;
}

/* ---- elements ---- */

/* v = four elements of group j, or v + those. */
__device__ static __forceinline__ void exchange_put_group(float (&v)[QUANT_ROWS], int j, bool add,
                                                          const float (&four)[4]) {
#pragma unroll
    for (int c = 0; c < 4; c++) v[4 * j + c] = add ? QUANT_ADD(v[4 * j + c], four[c]) : four[c];
}

/* Own elements from one on, with what earlier runs have lost. */
template <QuantType TYPE, QuantLie LIE> struct ExchangeOwn {
    typedef typename QuantElement<TYPE>::Stored Stored;
    const Stored *x;
    const float *residual; /* NULL: none */
    float scale;

    __device__ __forceinline__ ExchangeOwn(const ExchangePlan *plan, const void *buffer, int64_t first, bool raw)
        : x((const Stored *)buffer + first),
          residual(raw || plan->residual == nullptr ? nullptr : plan->residual + first), scale(plan->scale) {}

    __device__ __forceinline__ void take(int64_t first, int count, bool add, float (&v)[QUANT_ROWS]) const {
        FOR_GROUPS(j, count) {
            float four[4], lost[4] = {};
            quant_load_group<TYPE, LIE, false>(x + first, j, count, four);
            if (residual != nullptr) quant_load_group<QUANT_F32, LIE, false>(residual + first, j, count, lost);
#pragma unroll
            for (int c = 0; c < 4; c++) {
                if (residual != nullptr) four[c] = QUANT_ADD(lost[c], four[c]);
                four[c] = QUANT_MUL(four[c], scale);
            }
            exchange_put_group(v, j, add, four);
        }
    }

    __device__ __forceinline__ void piece(int64_t first, int count, float (&v)[QUANT_ROWS]) const {
        take(first, count, false, v);
    }
};

/* The terms of all ranks in rank order, with own elements in this rank's place. */
template <QuantType TYPE, QuantCodec CODEC> struct ExchangeSum {
    const ExchangePlan *plan;
    const QuantSpec *spec;
    const DeviceTile &tile;
    ExchangeOwn<TYPE, quant_lie<CODEC>()> own;
    ExchangeBucket bucket;
    uint32_t epoch;
    QuantRoom *room;

    __device__ __forceinline__ void piece(int64_t first, int count, float (&v)[QUANT_ROWS]) const {
        for (int rank = 0; rank < plan->ranks; rank++) {
            if (rank == plan->rank) {
                own.take(first, count, rank > 0, v);
                continue;
            }
            const uint8_t *base = exchange_region(&plan->window, plan->rank, epoch, rank);
            bool sound =
                quant_warp_decode<CODEC>(base, bucket.place, *spec, bucket.elems, first, count, rank > 0, v, room);
            if (!sound) exchange_fail(plan, COMM_WINDOW_SOUND, rank, tile.number, epoch);
        }
    }
};

/* This rank's random numbers for a bucket; signs of a rotation are the same on all ranks. */
__device__ static __forceinline__ QuantRandom exchange_random(const ExchangePlan *plan, const DeviceTile &tile,
                                                              const ExchangeBucket &bucket) {
    uint64_t quads = (uint64_t)((tile.bucket_size + 3) / 4);
    QuantRandom random = {plan->seed, __ldcg(plan->call), (uint32_t)plan->rank, tile.quad + bucket.number * quads};
    return random;
}

__device__ static __forceinline__ QuantKeep exchange_keep(const ExchangePlan *plan, const DeviceTile &tile,
                                                          const ExchangeBucket &bucket) {
    QuantKeep keep = {plan->residual == nullptr ? nullptr : plan->residual + tile.first + bucket.first, plan->unscaled};
    return keep;
}

/* Elements that travel as they are: a piece at base + at. */
template <QuantType TYPE, QuantLie LIE>
__device__ __forceinline__ void exchange_take_raw(const uint8_t *base, uint64_t at, int64_t first, int count, bool add,
                                                  float (&v)[QUANT_ROWS]) {
    const auto *from = reinterpret_cast<const typename QuantElement<TYPE>::Stored *>(base + at) + first;
    FOR_GROUPS(j, count) {
        float four[4];
        quant_load_group<TYPE, LIE, true>(from, j, count, four);
        exchange_put_group(v, j, add, four);
    }
}

template <QuantType TYPE, QuantLie LIE>
__device__ __forceinline__ void exchange_put_raw(QuantSink sink, uint64_t at, int64_t first, int count,
                                                 const float (&v)[QUANT_ROWS]) {
    for (int s = 0; s < sink.count; s++) quant_store_piece<TYPE, LIE>(sink.bases[s] + at, first, count, v);
}

__device__ static __forceinline__ void exchange_divide(const ExchangePlan *plan, float (&v)[QUANT_ROWS]) {
    const float by = plan->divisor;
    if (plan->divides) {
#pragma unroll
        for (int k = 0; k < QUANT_ROWS; k++) v[k] = QUANT_DIV(v[k], by);
    } else {
#pragma unroll
        for (int k = 0; k < QUANT_ROWS; k++) v[k] = QUANT_MUL(v[k], by);
    }
}

/* ---- kernels ---- */

/* Quantises a bucket of a source, with this rank's random numbers. */
template <QuantType TYPE, QuantCodec CODEC, typename Source>
__device__ __forceinline__ void exchange_encode(const ExchangePlan *plan, const Source &source, const DeviceTile &tile,
                                                const ExchangeBucket &bucket, const QuantSpec &spec, QuantSink sink,
                                                QuantRoom *room) {
    QuantRandom random = exchange_random(plan, tile, bucket);
    const bool draws = CODEC == QUANT_ROTATED || plan->stochastic;
    quant_warp_encode<TYPE, CODEC>(source, spec, bucket.elems, draws ? &random : nullptr, bucket.place, sink,
                                   exchange_keep(plan, tile, bucket), room);
}

template <QuantType TYPE, QuantCodec CODEC>
__device__ __forceinline__ void exchange_push_tile(const ExchangePlan *plan, const void *buffer, const DeviceTile &tile,
                                                   QuantSink sink, QuantRoom *room) {
    float v[QUANT_ROWS];
    FOR_BUCKETS(number, tile) {
        ExchangeBucket bucket = exchange_bucket(tile, number);
        ExchangeOwn<TYPE, quant_lie<CODEC>()> own(plan, buffer, tile.first + bucket.first, tile.bits == 0);
        if (tile.bits == 0) {
            own.piece(0, (int)bucket.elems, v);
            exchange_put_raw<TYPE, quant_lie<CODEC>()>(sink, tile.at, bucket.first, (int)bucket.elems, v);
        } else {
            exchange_encode<TYPE, CODEC>(plan, own, tile, bucket, exchange_spec(plan, tile, CODEC), sink, room);
        }
    }
}

template <QuantType TYPE, QuantCodec CODEC>
static __global__ void __launch_bounds__(WARPS *WARP, BLOCKS_EACH)
    exchange_push_kernel(const ExchangePlan *plan, ExchangeRound round, const void *buffer) {
    __shared__ QuantRoom rooms[WARPS];
    __shared__ uint8_t *bases[EXCHANGE_MAX_RANKS];
    uint32_t epoch;
    if (!exchange_begin(plan, round, &epoch)) return;
    const int thread = (int)threadIdx.x;
    if (thread < plan->ranks) bases[thread] = exchange_region(&plan->window, thread, epoch, plan->rank);
    __syncthreads();
    const int64_t all = round.end - round.begin, own = round.own_end - round.own_begin;
    const ExchangeTurns turns(round.own_end, all - own, round.end, all); /* each rank begins behind its own */
    for (int64_t i = 0; i < turns.mine; i++) {
        const DeviceTile tile = *turns.tile(plan, i);
        QuantSink sink = {bases + tile.owner, 1};
        if (plan->one_shot) sink = exchange_all(plan, bases);
        exchange_push_tile<TYPE, CODEC>(plan, buffer, tile, sink, &rooms[thread / WARP]);
    }
    exchange_raise_all(plan, turns, epoch, plan->rank, !plan->one_shot);
}

/* ---- rotated: a bucket's terms are added as values ---- */

/* In rank order, with own elements in this rank's place; rank 1 begins with its own, since a + b = b + a. */
template <QuantType TYPE, int PIECES>
__device__ __forceinline__ void
exchange_add_values(const ExchangePlan *plan, const ExchangeOwn<TYPE, QUANT_STRIPED> &own, const ExchangeBucket &bucket,
                    const QuantSpec &spec, const QuantRandom &random, uint32_t epoch, QuantValues<PIECES> &values,
                    QuantRoom *room) {
    for (int i = 0; i < plan->ranks; i++) {
        int rank = plan->rank == 1 && i < 2 ? 1 - i : i;
        if (rank != plan->rank) {
            const uint8_t *base = exchange_region(&plan->window, plan->rank, epoch, rank);
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

template <QuantType TYPE, int PIECES>
__device__ __forceinline__ void
exchange_reduce_values(const ExchangePlan *plan, const ExchangeOwn<TYPE, QUANT_STRIPED> &own, const DeviceTile &tile,
                       const ExchangeBucket &bucket, const QuantSpec &spec, uint32_t epoch, QuantSink sink,
                       QuantRoom *room) {
    QuantValues<PIECES> values;
    QuantRandom random = exchange_random(plan, tile, bucket);
    exchange_add_values(plan, own, bucket, spec, random, epoch, values, room);
    quant_encode_values(values, spec, bucket.elems, random, bucket.place, sink, exchange_keep(plan, tile, bucket),
                        room);
}

/* Adds rows [row, row + rows) of a bucket and stores what has left. */
template <QuantType TYPE, int PIECES>
__device__ __forceinline__ void exchange_gather_values(const ExchangePlan *plan, void *buffer, const DeviceTile &tile,
                                                       const ExchangeBucket &bucket, uint32_t epoch, int row, int rows,
                                                       QuantRoom *room) {
    QuantValues<PIECES> values;
    const QuantSpec spec = exchange_spec(plan, tile, QUANT_ROTATED);
    for (int i = 0; i < rows; i++) {
        const uint8_t *base = exchange_region(&plan->window, plan->rank, epoch, row + i);
        quant_decode_values(base, bucket.place, spec, bucket.elems, i > 0, values, room);
    }
    quant_leave(values, exchange_random(plan, tile, bucket), room);
    FOR_PIECES(p, values) exchange_divide(plan, values.v[p]);
    quant_store_values<TYPE>(buffer, tile.first + bucket.first, bucket.elems, values);
}

/* ---- tiles ---- */

/* Adds the terms of a quantised bucket and encodes the sum. */
template <QuantType TYPE, QuantCodec CODEC>
__device__ __forceinline__ void exchange_reduce_bucket(const ExchangePlan *plan,
                                                       const ExchangeOwn<TYPE, quant_lie<CODEC>()> &own,
                                                       const DeviceTile &tile, const ExchangeBucket &bucket,
                                                       uint32_t epoch, QuantSink sink, QuantRoom *room) {
    const QuantSpec spec = exchange_spec(plan, tile, CODEC);
    if constexpr (CODEC == QUANT_ROTATED) {
#define CALL(PIECES) exchange_reduce_values<TYPE, PIECES>(plan, own, tile, bucket, spec, epoch, sink, room)
        QUANT_BY_PIECES(bucket.elems, CALL)
#undef CALL
    } else {
        ExchangeSum<TYPE, CODEC> sum = {plan, &spec, tile, own, bucket, epoch, room};
        exchange_encode<TYPE, CODEC>(plan, sum, tile, bucket, spec, sink, room);
    }
}

template <QuantType TYPE, QuantCodec CODEC>
__device__ __forceinline__ void exchange_reduce_tile(const ExchangePlan *plan, const void *buffer,
                                                     const DeviceTile &tile, uint32_t epoch, QuantSink sink,
                                                     QuantRoom *room) {
    float v[QUANT_ROWS];
    FOR_BUCKETS(number, tile) {
        ExchangeBucket bucket = exchange_bucket(tile, number);
        ExchangeOwn<TYPE, quant_lie<CODEC>()> own(plan, buffer, tile.first + bucket.first, tile.bits == 0);
        if (tile.bits != 0) {
            exchange_reduce_bucket<TYPE, CODEC>(plan, own, tile, bucket, epoch, sink, room);
            continue;
        }
        for (int rank = 0; rank < plan->ranks; rank++) {
            const uint8_t *base = exchange_region(&plan->window, plan->rank, epoch, rank);
            if (rank == plan->rank) {
                own.take(0, (int)bucket.elems, rank > 0, v);
            } else {
                exchange_take_raw<TYPE, quant_lie<CODEC>()>(base, tile.at, bucket.first, (int)bucket.elems, rank > 0,
                                                            v);
            }
        }
        exchange_divide(plan, v);
        exchange_put_raw<TYPE, quant_lie<CODEC>()>(sink, tile.at, bucket.first, (int)bucket.elems, v);
    }
}

template <QuantType TYPE, QuantCodec CODEC>
static __global__ void __launch_bounds__(WARPS *WARP, BLOCKS_EACH)
    exchange_reduce_kernel(const ExchangePlan *plan, ExchangeRound round, const void *buffer) {
    __shared__ QuantRoom rooms[WARPS];
    __shared__ uint8_t *bases[EXCHANGE_MAX_RANKS];
    uint32_t epoch;
    if (!exchange_begin(plan, round, &epoch)) return;
    const int thread = (int)threadIdx.x, row = plan->ranks + plan->rank;
    if (thread < plan->ranks) bases[thread] = exchange_region(&plan->window, thread, epoch, row);
    __syncthreads();
    const ExchangeTurns turns(round.own_begin, round.own_end - round.own_begin, round.own_end, 0);
    if (!exchange_await_all(plan, turns, epoch, false)) return;
    for (int64_t i = 0; i < turns.mine; i++) {
        exchange_reduce_tile<TYPE, CODEC>(plan, buffer, *turns.tile(plan, i), epoch, exchange_all(plan, bases),
                                          &rooms[thread / WARP]);
    }
    exchange_raise_all(plan, turns, epoch, row, false);
}

/* Adds rows [row, row + rows) of a piece, with rotated only of what travels as it is. */
template <QuantType TYPE, QuantCodec CODEC>
__device__ __forceinline__ void exchange_add_rows(const ExchangePlan *plan, const DeviceTile &tile,
                                                  const ExchangeBucket &bucket, uint32_t epoch, int row, int rows,
                                                  int64_t first, int count, float (&v)[QUANT_ROWS], QuantRoom *room) {
    const QuantSpec spec = exchange_spec(plan, tile, CODEC);
    for (int i = 0; i < rows; i++) {
        const uint8_t *base = exchange_region(&plan->window, plan->rank, epoch, row + i);
        if (CODEC == QUANT_ROTATED || tile.bits == 0) {
            exchange_take_raw<TYPE, quant_lie<CODEC>()>(base, tile.at, bucket.first + first, count, i > 0, v);
        } else {
            bool sound = quant_warp_decode<CODEC>(base, bucket.place, spec, bucket.elems, first, count, i > 0, v, room);
            int from = plan->one_shot ? i : (int)tile.owner;
            if (!sound) exchange_fail(plan, COMM_WINDOW_SOUND, from, tile.number, epoch);
        }
    }
}

template <QuantType TYPE, QuantCodec CODEC>
__device__ __forceinline__ void exchange_gather_tile(const ExchangePlan *plan, void *buffer, const DeviceTile &tile,
                                                     uint32_t epoch, int row, int rows, QuantRoom *room) {
    float v[QUANT_ROWS];
    FOR_BUCKETS(number, tile) {
        ExchangeBucket bucket = exchange_bucket(tile, number);
        if (CODEC == QUANT_ROTATED && tile.bits != 0) {
#define CALL(PIECES) exchange_gather_values<TYPE, PIECES>(plan, buffer, tile, bucket, epoch, row, rows, room)
            QUANT_BY_PIECES(bucket.elems, CALL)
#undef CALL
            continue;
        }
        for (int64_t first = 0; first < bucket.elems; first += QUANT_PIECE) {
            int count = quant_piece_count(bucket.elems, first);
            exchange_add_rows<TYPE, CODEC>(plan, tile, bucket, epoch, row, rows, first, count, v, room);
            if (tile.bits != 0 || plan->one_shot) exchange_divide(plan, v);
            quant_store_piece<TYPE, quant_lie<CODEC>()>(buffer, tile.first + bucket.first + first, count, v);
        }
    }
}

/* The last block of a run's last kernel. */
__device__ static __forceinline__ void exchange_end(const ExchangePlan *plan, const ExchangeRound &round) {
    __syncthreads();
    if (round.rounds == 0 || threadIdx.x != 0) return;
    __threadfence();
    if (atomicAdd(&plan->state->ticket, 1u) != gridDim.x - 1) return;
    plan->state->ticket = 0;
    plan->state->epoch += round.rounds;
    plan->run->call = ++*plan->call;
}

template <QuantType TYPE, QuantCodec CODEC>
static __global__ void __launch_bounds__(WARPS *WARP, BLOCKS_EACH)
    exchange_gather_kernel(const ExchangePlan *plan, ExchangeRound round, void *buffer) {
    __shared__ QuantRoom rooms[WARPS];
    uint32_t epoch;
    const bool goes_on = exchange_begin(plan, round, &epoch);
    const ExchangeTurns turns(round.begin, round.end - round.begin, round.end, 0);
    if (goes_on && exchange_await_all(plan, turns, epoch, !plan->one_shot)) {
        for (int64_t i = 0; i < turns.mine; i++) {
            const DeviceTile tile = *turns.tile(plan, i);
            int row = plan->one_shot ? 0 : plan->ranks + tile.owner, rows = plan->one_shot ? plan->ranks : 1;
            exchange_gather_tile<TYPE, CODEC>(plan, buffer, tile, epoch, row, rows, &rooms[threadIdx.x / WARP]);
        }
    }
    exchange_end(plan, round);
}

/* ---- launches ---- */

static inline unsigned exchange_grid(int64_t tiles, int64_t limit) {
    static int multiprocessors; /* as many on all GPUs of a process; found once, threads find the same */
    int device = 0;
    if (multiprocessors == 0 && cudaGetDevice(&device) == cudaSuccess) {
        (void)cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
    }
    int64_t most = (int64_t)(multiprocessors > 0 ? multiprocessors : 1) * BLOCKS_EACH;
    if (limit > 0 && limit < most) most = limit;
    return (unsigned)(tiles < 1 ? 1 : tiles < most ? tiles : most);
}

template <QuantType TYPE, QuantCodec CODEC>
static Status exchange_launch_type(ExchangeKernel kernel, const ExchangePlan *plan, const ExchangeRound *round,
                                   void *buffer, DeviceStream *stream) {
    int64_t own = round->own_end - round->own_begin, all = round->end - round->begin;
    switch (kernel) {
    case EXCHANGE_PUSH:
        return LAUNCH_AFTER((exchange_push_kernel<TYPE, CODEC>), exchange_grid(all - own, round->blocks), WARPS * WARP,
                            0, stream, plan, *round, buffer);
    case EXCHANGE_REDUCE:
        return LAUNCH_AFTER((exchange_reduce_kernel<TYPE, CODEC>), exchange_grid(own, round->blocks), WARPS * WARP, 0,
                            stream, plan, *round, buffer);
    default:
        return LAUNCH_AFTER((exchange_gather_kernel<TYPE, CODEC>), exchange_grid(all, round->blocks), WARPS * WARP, 0,
                            stream, plan, *round, buffer);
    }
}

template <QuantCodec CODEC>
static Status exchange_launch(ExchangeKernel kernel, QuantType type, const ExchangePlan *plan,
                              const ExchangeRound *round, void *buffer, DeviceStream *stream) {
    if (type == QUANT_F16) return exchange_launch_type<QUANT_F16, CODEC>(kernel, plan, round, buffer, stream);
    if (type == QUANT_BF16) return exchange_launch_type<QUANT_BF16, CODEC>(kernel, plan, round, buffer, stream);
    return exchange_launch_type<QUANT_F32, CODEC>(kernel, plan, round, buffer, stream);
}

#endif
