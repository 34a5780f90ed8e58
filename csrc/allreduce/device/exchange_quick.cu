/* The exchange of whole pieces of max-min buckets, on the fast path, through windows in the memory of GPUs. */
#include "allreduce/device/exchange.cuh"
#include "allreduce/device/exchange_pieces.cuh"

template <QuantType TYPE> using Pieces = ExchangePieces<TYPE, false>;

extern "C" EXCHANGE_LAUNCH(allreduce_exchange_quick) {
    return exchange_launch<Pieces>(kernel, plan, round, buffer, stream);
}
