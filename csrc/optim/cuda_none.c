/* Stands in for optim/cuda in a build without CUDA. */
#include "optim/private.h"

Status optim_cuda_create(const OptimSpec *spec, DeviceStream *stream, const OptimTable **table, OptimState **out) {
    (void)spec, (void)stream, (void)table, (void)out;
    FAIL(STATUS_NOT_BUILT, "this build has no optimizers on GPUs. " DEVICE_CUDA_REMEDY);
}
