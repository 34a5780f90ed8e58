/* The twin of nn/cuda in a build without CUDA. */
#include "nn/ops.h"

Status ops_cuda(const OpsTable **out) {
    (void)out;
    FAIL(STATUS_NOT_BUILT,
         "this build has no CUDA backend. Install the CUDA toolkit 13 and cuDNN 9 "
         "(apt install cuda-toolkit-13-0 libcudnn9-dev-cuda-13), then build again with CGXFFCV_CUDA=1");
}
