/* The exchange with the codec "maxmin", bucket by bucket. */
#include "allreduce/device/exchange_buckets.cuh"

extern "C" EXCHANGE_LAUNCH(allreduce_exchange_maxmin) {
    return exchange_launch_codec<QUANT_MAXMIN>(kernel, plan, round, buffer, stream);
}
