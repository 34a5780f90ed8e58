/* The exchange with the codec "maxmin". */
#include "allreduce/device/exchange.cuh"

extern "C" Status allreduce_exchange_maxmin(ExchangeKernel kernel, QuantType type, const ExchangePlan *plan,
                                            const ExchangeRound *round, void *buffer, DeviceStream *stream) {
    return exchange_launch<QUANT_MAXMIN>(kernel, type, plan, round, buffer, stream);
}
