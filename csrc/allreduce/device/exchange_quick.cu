/* The exchange of whole pieces of max-min buckets, the quick way. */
#include "allreduce/device/exchange.cuh"
#include "allreduce/device/exchange_pieces.cuh"

extern "C" EXCHANGE_LAUNCH(allreduce_exchange_quick) {
    return exchange_launch<ExchangePieces>(kernel, type, plan, round, buffer, stream);
}
