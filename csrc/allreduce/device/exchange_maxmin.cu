/* The exchange with the codec "maxmin", bucket by bucket. */
#include "allreduce/device/exchange.cuh"
#include "allreduce/device/exchange_buckets.cuh"

template <QuantType TYPE> using Buckets = ExchangeBuckets<TYPE, QUANT_MAXMIN>;

extern "C" EXCHANGE_LAUNCH(allreduce_exchange_maxmin) {
    return exchange_launch<Buckets>(kernel, type, plan, round, buffer, stream);
}
