/* The exchange with the codec "rotated". */
#include "allreduce/device/exchange.cuh"

extern "C" EXCHANGE_LAUNCH(allreduce_exchange_rotated) {
    return exchange_launch<QUANT_ROTATED>(kernel, type, plan, round, buffer, stream);
}
