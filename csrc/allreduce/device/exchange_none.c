/* The twin of a build without CUDA, where nobody has a window. */
#include "allreduce/device/exchange.h"

Status allreduce_exchange_maxmin(ExchangeKernel kernel, QuantType type, const ExchangePlan *plan,
                                 const ExchangeRound *round, void *buffer, DeviceStream *stream) {
    (void)kernel, (void)type, (void)plan, (void)round, (void)buffer, (void)stream;
    FAIL(STATUS_NOT_BUILT, "this build has no CUDA. " DEVICE_CUDA_REMEDY);
}
