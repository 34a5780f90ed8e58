/* The exchange with the codec "maxmin_spikes". */
#include "allreduce/device/exchange.cuh"

extern "C" EXCHANGE_LAUNCH(allreduce_exchange_spikes) {
    return exchange_launch<QUANT_SPIKES>(kernel, type, plan, round, buffer, stream);
}
