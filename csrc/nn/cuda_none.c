/* The twin of nn/cuda in a build without CUDA. */
#include "nn/ops.h"
#include "nn/optim_private.h"

#define REMEDY                                                                                                         \
    "Install the CUDA toolkit 13 and cuDNN 9 (apt install cuda-toolkit-13-0 libcudnn9-dev-cuda-13), then build again " \
    "with CGXFFCV_CUDA=1"

Status ops_cuda(const OpsTable **out) {
    (void)out;
    FAIL(STATUS_NOT_BUILT, "this build has no CUDA backend. " REMEDY);
}

Status cuda_optim_create(const OptimSpec *spec, DeviceStream *stream, const OptimTable **table, OptimState **out) {
    (void)spec, (void)stream, (void)table, (void)out;
    FAIL(STATUS_NOT_BUILT, "this build has no optimizers on GPUs. " REMEDY);
}
