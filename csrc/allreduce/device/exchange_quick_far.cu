/* The exchange of whole pieces of max-min buckets, on the fast path, through windows in host memory. */
#include "allreduce/device/exchange.cuh"
#include "allreduce/device/exchange_pieces.cuh"

template <QuantType TYPE> using FarPieces = ExchangePieces<TYPE, true>;

extern "C" EXCHANGE_LAUNCH(allreduce_exchange_quick_far) {
    return exchange_launch<FarPieces>(kernel, plan, round, buffer, stream);
}
