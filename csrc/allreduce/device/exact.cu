/* Sums of what is not quantised, in one kernel: a block of THREADS threads has a place of its own, of run.slice bytes,
 * in each region, and goes through all rounds of a run with it; if there are fewer blocks than places, it
 * then takes another.
 *
 * each adds all    a block stores its elements into its region for every other rank, raises its flag there, waits for
 *                  the others' flags, adds all terms in rank order, divides, stores the sum
 * spread           the elements of a block and round are divided into one part per rank: the parts go to their owners,
 *                  which add them and send the sums to all, into the regions of results
 *
 * Terms are elements of the buffer's type, scaled. Blocks take places in ascending order as they get to them, so that
 * the first unfinished place is always being worked on, on every rank: two ranks' blocks of one place meet, however
 * many run at the same time and in whatever order. Halves, epochs, flags and failures are those of exchange.cuh: a
 * block that has nothing to send in a round raises its flags nevertheless, since they say that it has read what arrived
 * two rounds before.
 *
 * Thread t: 16-byte accesses t, t + THREADS, ... of its block's place, EACH of them in flight at a time. Buffers: x,
 * the plan's (elems), of the type, in place; regions (halves, region_bytes), bytes, of `places` places of
 * run.slice bytes; their flags (halves, flags), uint32, one per place (exchange.h). */
#include "allreduce/device/exchange.cuh"

#define THREADS 512
#define EACH 2 /* accesses that a thread has in flight */

/* 16 bytes of elements. */
template <QuantType TYPE> struct ExactUnit {
    typedef typename QuantElement<TYPE>::Stored Stored;
    static constexpr int ELEMS = (int)(sizeof(uint4) / sizeof(Stored));

    /* Elements [at, at + ELEMS) of the buffer; zeros beyond `end`. */
    __device__ static __forceinline__ uint4 load(const Stored *x, int64_t at, int64_t end) {
        if ((uintptr_t)x % sizeof(uint4) == 0 && at + ELEMS <= end) return *reinterpret_cast<const uint4 *>(x + at);
        Pack<Stored> pack;
#pragma unroll
        for (int i = 0; i < ELEMS; i++) pack[i] = at + i < end ? x[at + i] : Stored(0);
        return bits_of_pack(pack);
    }

    __device__ static __forceinline__ void store(Stored *x, int64_t at, int64_t end, uint4 bits) {
        if ((uintptr_t)x % sizeof(uint4) == 0 && at + ELEMS <= end) {
            *reinterpret_cast<uint4 *>(x + at) = bits;
            return;
        }
        const Pack<Stored> pack = pack_of_bits<Stored>(bits);
#pragma unroll
        for (int i = 0; i < ELEMS; i++) {
            if (at + i < end) x[at + i] = pack[i];
        }
    }

    __device__ static __forceinline__ void add(float (&sum)[ELEMS], uint4 bits, bool more) {
        const Pack<Stored> pack = pack_of_bits<Stored>(bits);
#pragma unroll
        for (int i = 0; i < ELEMS; i++) {
            const float value = QuantElement<TYPE>::widened(pack[i]);
            sum[i] = more ? QUANT_ADD(sum[i], value) : value;
        }
    }

    __device__ static __forceinline__ uint4 narrowed(const float (&values)[ELEMS]) {
        Pack<Stored> pack;
#pragma unroll
        for (int i = 0; i < ELEMS; i++) pack[i] = QuantElement<TYPE>::narrowed(values[i]);
        return bits_of_pack(pack);
    }

    /* This rank's elements as they travel. */
    __device__ static __forceinline__ uint4 term(const ExchangePlan *plan, const Stored *x, int64_t at, int64_t end) {
        float values[ELEMS];
        add(values, load(x, at, end), false);
#pragma unroll
        for (int i = 0; i < ELEMS; i++) values[i] = QUANT_MUL(values[i], plan->scale);
        return narrowed(values);
    }

    __device__ static __forceinline__ uint4 result(const ExchangePlan *plan, float (&sum)[ELEMS]) {
        exchange_divide(plan, sum);
        return narrowed(sum);
    }
};

/* What a block does in a round. */
template <QuantType TYPE> struct ExactBlock {
    typedef ExactUnit<TYPE> Unit;
    typedef typename Unit::Stored Stored;
    const ExchangePlan *plan;
    const ExchangeExact &run;
    Stored *x;
    uint32_t number, round, epoch;

    __device__ __forceinline__ int parts() const { return run.spread ? plan->ranks : 1; }

    /* Elements [begin, end) of a part, in the buffer. */
    __device__ __forceinline__ int64_t begin(int part) const {
        const int64_t each = run.slice / (int64_t)sizeof(Stored);
        const int64_t at = (((int64_t)round * run.places + number) * parts() + part) * each;
        return at < run.elems ? at : run.elems;
    }
    __device__ __forceinline__ int64_t end(int part) const {
        const int64_t each = run.slice / (int64_t)sizeof(Stored), from = begin(part);
        return run.elems - from < each ? run.elems : from + each;
    }

    /* This block's place in a region. */
    __device__ __forceinline__ uint4 *place(const ExchangeRegion &region) const {
        return reinterpret_cast<uint4 *>(exchange_place(region, epoch) + (uint64_t)number * run.slice);
    }

    /* Where terms for a rank go. */
    __device__ __forceinline__ const ExchangeRegion *targets() const {
        return run.spread ? plan->window.to : plan->window.all;
    }

    /* Raises this block's flag in the regions for all ranks. */
    __device__ __forceinline__ void raise(const ExchangeRegion *regions) const {
        DeviceTile own = {};
        own.number = number;
        own.at = number * run.slice;
        own.bytes = run.slice;
        __syncthreads();
        const int rank = (int)threadIdx.x;
        if (rank < plan->ranks) exchange_raise(plan, regions[rank], epoch, own);
    }

    /* Waits for the rows of all other ranks, from `first` on. */
    __device__ __forceinline__ bool await(int first, CommWindowReport what) const {
        const int rank = (int)threadIdx.x;
        bool here = rank >= plan->ranks || rank == plan->rank;
        if (!here) here = exchange_await(plan, plan->window.from[first + rank], number, epoch, what);
        return __syncthreads_and(here) != 0;
    }

    /* Sends this rank's elements of a part to the rank that owns it, or to all. */
    __device__ __forceinline__ void send(int part) const {
        const int64_t from = begin(part), to = end(part);
        for (int64_t i = threadIdx.x; from + i * Unit::ELEMS < to; i += EACH * THREADS) {
            uint4 terms[EACH];
#pragma unroll
            for (int k = 0; k < EACH; k++) terms[k] = Unit::term(plan, x, from + (i + k * THREADS) * Unit::ELEMS, to);
            for (int rank = run.spread ? part : 0; rank < (run.spread ? part + 1 : plan->ranks); rank++) {
                if (rank == plan->rank) continue;
                uint4 *there = place(targets()[rank]) + i;
#pragma unroll
                for (int k = 0; k < EACH; k++) {
                    if (from + (i + k * THREADS) * Unit::ELEMS < to) there[k * THREADS] = terms[k];
                }
            }
        }
    }

    /* Adds the terms of all ranks for units i, i + THREADS .. of a part. */
    __device__ __forceinline__ void sum(int64_t i, int64_t from, int64_t to, float (&sums)[EACH][Unit::ELEMS]) const {
#pragma unroll 2
        for (int rank = 0; rank < plan->ranks; rank++) {
            const uint4 *row = place(plan->window.from[rank]) + i;
#pragma unroll
            for (int k = 0; k < EACH; k++) {
                const int64_t at = from + (i + k * THREADS) * Unit::ELEMS;
                if (at >= to) continue;
                const uint4 bits = rank == plan->rank ? Unit::term(plan, x, at, to) : __ldcg(row + k * THREADS);
                Unit::add(sums[k], bits, rank > 0);
            }
        }
    }

    /* Sums a part; with `spread` it is this rank's, and the sum goes to all. */
    __device__ __forceinline__ void reduce(int part) const {
        const int64_t from = begin(part), to = end(part);
        for (int64_t i = threadIdx.x; from + i * Unit::ELEMS < to; i += EACH * THREADS) {
            float sums[EACH][Unit::ELEMS];
            sum(i, from, to, sums);
#pragma unroll
            for (int k = 0; k < EACH; k++) {
                const int64_t at = from + (i + k * THREADS) * Unit::ELEMS;
                if (at >= to) continue;
                const uint4 bits = Unit::result(plan, sums[k]);
                for (int rank = 0; run.spread && rank < plan->ranks; rank++) {
                    if (rank != plan->rank) place(plan->window.all[rank])[i + k * THREADS] = bits;
                }
                Unit::store(x, at, to, bits);
            }
        }
    }

    /* Stores the sum that the owner of a part has sent. */
    __device__ __forceinline__ void take(int part) const {
        const int64_t from = begin(part), to = end(part);
        const uint4 *row = place(plan->window.from[EXCHANGE_RESULTS + part]);
        for (int64_t i = threadIdx.x; from + i * Unit::ELEMS < to; i += THREADS) {
            Unit::store(x, from + i * Unit::ELEMS, to, __ldcg(row + i));
        }
    }

    /* Does a round; false if another rank did not answer. */
    __device__ __forceinline__ bool go() const {
        for (int part = 0; part < parts(); part++) {
            if (!run.spread || part != plan->rank) send(part);
        }
        raise(targets());
        if (!await(0, COMM_WINDOW_TERMS)) return false;
        reduce(run.spread ? plan->rank : 0);
        if (!run.spread) return true;
        raise(plan->window.all);
        if (!await(EXCHANGE_RESULTS, COMM_WINDOW_RESULTS)) return false;
        for (int part = 0; part < plan->ranks; part++) {
            if (part != plan->rank) take(part);
        }
        return true;
    }
};

/* Takes the next free place for the block; `places` or more if there is none. Every block gets that once, and the last
 * of them resets the counter for the next launch. */
__device__ static __forceinline__ uint32_t exact_take(ExchangeState *state, uint32_t places) {
    __shared__ uint32_t place;
    __syncthreads();
    if (threadIdx.x == 0) {
        place = atomicAdd(&state->begun, 1u);
        if (place == places + gridDim.x - 1) state->begun = 0;
    }
    __syncthreads();
    return place;
}

template <QuantType TYPE>
static __global__ void __launch_bounds__(THREADS, 1)
    exact_sum_kernel(const __grid_constant__ ExchangePlan plan, const __grid_constant__ ExchangeExact run,
                     typename QuantElement<TYPE>::Stored *x) {
    ExchangeRound all = {};
    uint32_t epoch, place;
    all.rounds = run.rounds;
    bool goes_on = exchange_begin(&plan, all, &epoch);
    while ((place = exact_take(plan.state, run.places)) < run.places) {
        for (uint32_t round = 0; goes_on && round < run.rounds; round++) {
            const ExactBlock<TYPE> block = {&plan, run, x, place, round, epoch + round};
            goes_on = block.go();
        }
    }
    exchange_end(&plan, all);
}

template <QuantType TYPE>
static Status exact_launch(const ExchangePlan *plan, const ExchangeExact *run, int limit, void *buffer,
                           DeviceStream *stream) {
    auto *x = (typename QuantElement<TYPE>::Stored *)buffer;
    const unsigned blocks = limit > 0 && (uint32_t)limit < run->places ? (unsigned)limit : run->places;
    return LAUNCH_AFTER((exact_sum_kernel<TYPE>), blocks, THREADS, 0, stream, *plan, *run, x);
}

extern "C" Status allreduce_exchange_exact(const ExchangePlan *plan, const ExchangeExact *run, int limit, void *buffer,
                                           DeviceStream *stream) {
#define EXACT(TYPE) exact_launch<TYPE>(plan, run, limit, buffer, stream)
    return QUANT_BY_TYPE(plan->type, EXACT);
#undef EXACT
}
