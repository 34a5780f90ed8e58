/* Stands in for nn/cuda in a build without CUDA. */
#include "device/device.h"
#include "nn/libraries.h"
#include "nn/ops.h"

int nn_cudnn_version(void) { return 0; }

Status nn_ops_cuda(const OpsTable **out) {
    (void)out;
    FAIL(STATUS_NOT_BUILT, "this build has no CUDA backend. " DEVICE_CUDA_REMEDY);
}
