/* The exchange with the codec "sign". */
#include "allreduce/device/exchange.cuh"

extern "C" EXCHANGE_LAUNCH(allreduce_exchange_sign) {
    return exchange_launch<QUANT_SIGN>(kernel, type, plan, round, buffer, stream);
}
