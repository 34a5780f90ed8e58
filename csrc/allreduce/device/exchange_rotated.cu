/* The exchange with the codec "rotated", bucket by bucket. */
#include "allreduce/device/exchange_buckets.cuh"

extern "C" EXCHANGE_LAUNCH(allreduce_exchange_rotated) {
    return exchange_launch_codec<QUANT_ROTATED>(kernel, plan, round, buffer, stream);
}
