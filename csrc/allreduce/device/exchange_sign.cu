/* The exchange with the codec "sign", bucket by bucket. */
#include "allreduce/device/exchange_buckets.cuh"

extern "C" EXCHANGE_LAUNCH(allreduce_exchange_sign) {
    return exchange_launch_codec<QUANT_SIGN>(kernel, plan, round, buffer, stream);
}
