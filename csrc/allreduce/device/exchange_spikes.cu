/* The exchange with the codec "spikes", bucket by bucket. */
#include "allreduce/device/exchange.cuh"
#include "allreduce/device/exchange_buckets.cuh"

template <QuantType TYPE> using Buckets = ExchangeBuckets<TYPE, QUANT_SPIKES>;

extern "C" EXCHANGE_LAUNCH(allreduce_exchange_spikes) {
    return exchange_launch<Buckets>(kernel, type, plan, round, buffer, stream);
}
