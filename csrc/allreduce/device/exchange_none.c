/* The stub for a build without CUDA, where nobody has a window. */
#include "allreduce/device/exchange.h"

#define NO_CUDA "this build has no CUDA. " DEVICE_CUDA_REMEDY

#define ABSENT(name)                                                                                                   \
    EXCHANGE_LAUNCH(name) {                                                                                            \
        (void)kernel, (void)plan, (void)round, (void)buffer, (void)stream;                                             \
        FAIL(STATUS_NOT_BUILT, NO_CUDA);                                                                               \
    }

#define X(codec, word) ABSENT(allreduce_exchange_##word)
QUANT_CODECS(X)
#undef X
ABSENT(allreduce_exchange_quick)
ABSENT(allreduce_exchange_quick_far)

#define X(codec, word)                                                                                                 \
    EXCHANGE_LEVELS(allreduce_levels_##word) {                                                                         \
        (void)kernel, (void)plan, (void)levels, (void)round, (void)buffer, (void)stream;                               \
        FAIL(STATUS_NOT_BUILT, NO_CUDA);                                                                               \
    }
QUANT_CODECS(X)
#undef X

Status allreduce_levels_pass(const ExchangePlan *plan, const ExchangeLevels *levels, const ExchangeRound *round,
                             DeviceStream *stream) {
    (void)plan, (void)levels, (void)round, (void)stream;
    FAIL(STATUS_NOT_BUILT, NO_CUDA);
}

Status allreduce_exchange_exact(const ExchangePlan *plan, const ExchangeExact *run, int limit, void *buffer,
                                DeviceStream *stream) {
    (void)plan, (void)run, (void)limit, (void)buffer, (void)stream;
    FAIL(STATUS_NOT_BUILT, NO_CUDA);
}
