/* The exchange with the codec "spikes", bucket by bucket. */
#include "allreduce/device/exchange_buckets.cuh"

extern "C" EXCHANGE_LAUNCH(allreduce_exchange_spikes) {
    return exchange_launch_codec<QUANT_SPIKES>(kernel, plan, round, buffer, stream);
}
