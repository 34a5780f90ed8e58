/* The twin of a build without CUDA, where nobody has a window. */
#include "allreduce/device/exchange.h"

#define ABSENT(name)                                                                                                   \
    EXCHANGE_LAUNCH(name) {                                                                                            \
        (void)kernel, (void)type, (void)plan, (void)round, (void)buffer, (void)stream;                                 \
        FAIL(STATUS_NOT_BUILT, "this build has no CUDA. " DEVICE_CUDA_REMEDY);                                         \
    }

ABSENT(allreduce_exchange_maxmin)
ABSENT(allreduce_exchange_sign)
ABSENT(allreduce_exchange_spikes)
ABSENT(allreduce_exchange_rotated)
ABSENT(allreduce_exchange_quick)
