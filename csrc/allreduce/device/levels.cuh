/* Two levels between GPUs: for this rank's shard, which the ranks of its node have pushed to it (exchange.cuh), and
 * which has a part for each node. Three kernels of a round come between the push within the node and the gather of
 * everything:
 *
 * push    waits for the node's terms for the tiles of other parts, adds them and its own elements in the order of the
 *         node's ranks in registers, quantises the sum into the regions of those parts' owners, on other nodes
 * reduce  waits for the node's terms for its own part, and for those of other nodes; adds the latter in the order of
 *         nodes, with its own node's sum in its place; quantises into the regions of all that are to have the result:
 *         the ranks of its node, and those with its local rank on other nodes
 * pass    waits for the results of the other parts, and copies the bytes into the regions of the ranks of its node
 *
 * The node's sum exists only in registers: each tile of the shard is either pushed or reduced. The residual is added to
 * it, times the scale of elements, since what is quantised is a sum. Unquantised elements travel as float32.
 *
 * A kernel waits for kernels of other ranks that come before it on their streams, so the order of exchange.cuh holds;
 * and every result depends on terms of all ranks, so two halves suffice. Blocks, warps, lanes and buffers are those of
 * exchange.cuh; tiles are taken bucket by bucket, whichever path they take within the node. */
#ifndef CGXFFCV_ALLREDUCE_DEVICE_LEVELS_CUH
#define CGXFFCV_ALLREDUCE_DEVICE_LEVELS_CUH

#include "allreduce/device/exchange_buckets.cuh"

/* The bucket being processed, with what its sums are made of. Other nodes are slower than any kernel, and so these are
 * compiled once, for 16-bit ranges and others, for pushing and reducing. */
template <QuantCodec CODEC, typename Kept> struct LevelsBucket {
    static constexpr QuantLie LIE = quant_lie<CODEC>();
    typedef Kept Keep;

    const ExchangePlan *plan;
    const ExchangeLevels *levels;
    const QuantSpec *spec;
    const DeviceTile &tile;
    ExchangeBucket bucket;
    ExchangeOwn<LIE, QuantKeep> own; /* without residual */
    ExchangeLost<LIE, Keep> lost;
    uint32_t epoch;
    QuantRoom *room;
    bool reduces; /* sums are those over all nodes, else the node's */

    /* The terms of a rank of this node. */
    __device__ __forceinline__ const ExchangeRegion &terms_of(int number) const {
        return exchange_local_region(levels, levels->terms, tile, number);
    }

    /* Adds a term in a region to v, or stores it there. */
    __device__ __forceinline__ void term(const ExchangeRegion &region, int64_t first, int count, bool add,
                                         float (&v)[QUANT_ROWS]) const {
        const uint8_t *base = exchange_place(region, epoch);
        if (tile.bits == 0) {
            exchange_take_raw<LIE>(QUANT_F32, base, tile.at, bucket.first + first, count, add, v);
        } else if (CODEC != QUANT_ROTATED) {
            bool sound = quant_warp_decode<CODEC>(base, bucket.place, *spec, bucket.elems, first, count, add, v, room);
            if (!sound) exchange_fail(plan, COMM_WINDOW_SOUND, region.rank, tile.number, epoch);
        }
    }

    /* The residual in units of sums. */
    __device__ __forceinline__ void residual(int64_t first, int count, bool add, float (&v)[QUANT_ROWS]) const {
        FOR_GROUPS(j, count) {
            float four[4];
            lost.load(first, j, count, four);
#pragma unroll
            for (int c = 0; c < 4; c++) four[c] = QUANT_MUL(four[c], plan->scale);
            exchange_put_group(v, j, add, four);
        }
    }

    /* The node's sum. */
    __device__ __forceinline__ void of_node(int64_t first, int count, float (&v)[QUANT_ROWS]) const {
#pragma unroll 1
        for (int i = 0; i < levels->local_size; i++) {
            if (i == levels->local_rank) {
                own.take(first, count, i > 0, v);
            } else {
                term(terms_of(i), first, count, i > 0, v);
            }
        }
        if (lost.any()) residual(first, count, true, v);
    }

    /* The nodes whose sums are added: all, or this one. */
    __device__ __forceinline__ int first_node() const { return reduces ? 0 : plan->rank; }
    __device__ __forceinline__ int last_node() const { return reduces ? plan->ranks - 1 : plan->rank; }

    /* A source of elements (quant/cuda/bucket.cuh). */
    __device__ __forceinline__ void piece(int64_t first, int count, float (&v)[QUANT_ROWS]) const {
#pragma unroll 1
        for (int i = first_node(); i <= last_node(); i++) {
            const bool add = i > first_node();
            if (i != plan->rank) {
                term(plan->window.from[i], first, count, add, v);
                continue;
            }
            float node[QUANT_ROWS];
            of_node(first, count, node);
#pragma unroll
            for (int k = 0; k < QUANT_ROWS; k++) v[k] = add ? QUANT_ADD(v[k], node[k]) : node[k];
        }
    }
};

/* A source of the residual. */
template <typename Bucket> struct LevelsLost {
    const Bucket &of;

    __device__ __forceinline__ void piece(int64_t first, int count, float (&v)[QUANT_ROWS]) const {
        of.residual(first, count, false, v);
    }
};

/* ---- rotated: sums of values ---- */

template <int PIECES, typename Bucket>
__device__ __forceinline__ void levels_node_values(const Bucket &of, const QuantRandom &random,
                                                   QuantValues<PIECES> &values) {
    QuantValues<PIECES> mine;
#pragma unroll 1
    for (int i = 0; i < of.levels->local_size; i++) {
        if (i != of.levels->local_rank) {
            const uint8_t *base = exchange_place(of.terms_of(i), of.epoch);
            quant_decode_values(base, of.bucket.place, *of.spec, of.bucket.elems, i > 0, values, of.room);
        } else if (i == 0) {
            quant_enter(of.own, of.bucket.elems, random, values, of.room);
        } else {
            quant_enter(of.own, of.bucket.elems, random, mine, of.room);
            quant_add_values(mine, values);
        }
    }
    if (!of.lost.any()) return;
    quant_enter(LevelsLost<Bucket>{of}, of.bucket.elems, random, mine, of.room);
    quant_add_values(mine, values);
}

template <int PIECES, typename Bucket>
__device__ __forceinline__ void levels_sum_values(const Bucket &of, const QuantRandom &random,
                                                  QuantValues<PIECES> &values) {
#pragma unroll 1
    for (int i = of.first_node(); i <= of.last_node(); i++) {
        const bool add = i > of.first_node();
        if (i != of.plan->rank) {
            const uint8_t *base = exchange_row(of.plan, of.epoch, i);
            quant_decode_values(base, of.bucket.place, *of.spec, of.bucket.elems, add, values, of.room);
            continue;
        }
        QuantValues<PIECES> node;
        levels_node_values(of, random, node);
        if (add) {
            quant_add_values(node, values);
        } else {
            values = node;
        }
    }
}

template <int PIECES, typename Bucket>
__device__ __forceinline__ void levels_encode_values(const Bucket &of, QuantSink sink) {
    QuantValues<PIECES> values;
    const QuantRandom random = exchange_random(of.plan, of.tile, of.bucket);
    levels_sum_values(of, random, values);
    quant_encode_values(values, *of.spec, of.bucket.elems, random, of.bucket.place, sink,
                        exchange_keep_of<typename Bucket::Keep>(of.plan, of.tile, of.bucket), of.room);
}

/* ---- tiles ---- */

template <QuantCodec CODEC, typename Keep>
__device__ __forceinline__ void levels_encode_bucket(const LevelsBucket<CODEC, Keep> &of, QuantSink sink) {
    if constexpr (CODEC == QUANT_ROTATED) {
#define CALL(PIECES) levels_encode_values<PIECES>(of, sink)
        QUANT_BY_PIECES(of.bucket.elems, CALL)
#undef CALL
    } else {
        exchange_encode<true, CODEC, Keep>(of.plan, of, of.tile, of.bucket, *of.spec, sink, of.room);
    }
}

template <QuantCodec CODEC, typename Keep>
__device__ __forceinline__ void levels_encode_tile(const ExchangePlan *plan, const ExchangeLevels *levels,
                                                   const void *buffer, const DeviceTile &tile, uint32_t epoch,
                                                   bool reduces, QuantSink sink, QuantRoom *room) {
    typedef LevelsBucket<CODEC, Keep> Bucket;
    const QuantSpec spec = exchange_spec(plan, tile, CODEC);
    FOR_BUCKETS(number, tile) {
        const ExchangeBucket bucket = exchange_bucket(tile, number);
        ExchangeOwn<Bucket::LIE, QuantKeep> own(plan, buffer, tile, bucket);
        own.lost.residual = nullptr;
        const ExchangeLost<Bucket::LIE, Keep> lost(exchange_keep_of<Keep>(plan, tile, bucket), tile.bits == 0);
        const Bucket of = {plan, levels, &spec, tile, bucket, own, lost, epoch, room, reduces};
        if (tile.bits != 0) {
            levels_encode_bucket(of, sink);
            continue;
        }
        float v[QUANT_ROWS];
        of.piece(0, (int)bucket.elems, v);
        if (reduces) exchange_divide(plan, v);
        exchange_put_raw<Bucket::LIE>(QUANT_F32, sink, tile.at, bucket.first, (int)bucket.elems, v);
    }
}

/* ---- kernels ---- */

/* Waits for the terms of the ranks of this node. */
__device__ static __forceinline__ bool levels_await_node(const ExchangePlan *plan, const ExchangeLevels *levels,
                                                         const ExchangeTurns &turns, uint32_t epoch) {
    return exchange_await_each(plan, turns, epoch, COMM_WINDOW_TERMS, levels->local_size,
                               [&](const DeviceTile &tile, int i) -> const ExchangeRegion & {
                                   return exchange_local_region(levels, levels->terms, tile, i);
                               });
}

template <QuantCodec CODEC, typename Keep>
static __global__ void __launch_bounds__(WARPS *WARP, BLOCKS_EACH)
    levels_encode_kernel(const __grid_constant__ ExchangePlan plan, const __grid_constant__ ExchangeLevels levels,
                         ExchangeRound round, const void *buffer, bool reduces) {
    __shared__ QuantRoom rooms[WARPS];
    __shared__ uint8_t *bases[EXCHANGE_MAX_RANKS];
    __shared__ DeviceTile tiles[TURNS];
    uint32_t epoch;
    if (!exchange_begin(&plan, round, &epoch)) return;
    const ExchangeTurns turns =
        reduces ? exchange_turns_of_own(EXCHANGE_EITHER, round) : exchange_turns_of_others(EXCHANGE_EITHER, round);
    exchange_set_bases(reduces ? plan.window.all : plan.window.to, reduces ? plan.window.sinks : plan.window.owners,
                       epoch, bases);
    if (!levels_await_node(&plan, &levels, turns, epoch)) return;
    if (reduces && !exchange_await_terms(&plan, turns, epoch)) return;
    for (int64_t turn = 0; turn < turns.mine; turn++) {
        if (turn % TURNS == 0) exchange_fetch_tiles(&plan, turns, turn, tiles);
        const DeviceTile &tile = tiles[turn % TURNS];
        QuantSink sink = {bases + tile.owner, 1};
        if (reduces) sink = {bases, plan.window.sinks};
        levels_encode_tile<CODEC, Keep>(&plan, &levels, buffer, tile, epoch, reduces, sink, &rooms[threadIdx.x / WARP]);
    }
    exchange_raise_all(&plan, turns, epoch, !reduces);
}

/* ---- launches ---- */

template <QuantCodec CODEC, typename Keep>
static Status levels_launch_kept(ExchangeKernel kernel, const ExchangePlan *plan, const ExchangeLevels *levels,
                                 const ExchangeRound *round, const void *buffer, DeviceStream *stream) {
    const bool reduces = kernel != EXCHANGE_PUSH;
    const int64_t own = round->own_end - round->own_begin, others = round->end - round->begin - own;
    return LAUNCH_AFTER((levels_encode_kernel<CODEC, Keep>),
                        exchange_grid(reduces ? own : others, BLOCKS_EACH, round->blocks), WARPS * WARP, 0, stream,
                        *plan, *levels, *round, buffer, reduces);
}

template <QuantCodec CODEC> static EXCHANGE_LEVELS(levels_launch) {
    if (plan->codes.codes != nullptr) {
        return levels_launch_kept<CODEC, QuantKeepEight>(kernel, plan, levels, round, buffer, stream);
    }
    return levels_launch_kept<CODEC, QuantKeep>(kernel, plan, levels, round, buffer, stream);
}

#endif
