/* The exchange with the codec "maxmin". */
#include "allreduce/device/exchange.cuh"

extern "C" EXCHANGE_LAUNCH(allreduce_exchange_maxmin) {
    return exchange_launch<QUANT_MAXMIN>(kernel, type, plan, round, buffer, stream);
}
