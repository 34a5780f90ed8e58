/* Stands in for step.cu in a build without CUDA. */
#include "train/step_kernels.h"

#pragma GCC diagnostic ignored "-Wunused-parameter" /* a stub uses no arguments */

static Status steps_absent(void) { FAIL(STATUS_NOT_BUILT, "this build has no CUDA: it cannot train on a GPU"); }

Status train_step_close(const TrainStepClosing *closing, DeviceStream *stream) { return steps_absent(); }

Status train_add_view(const float *logits, size_t elems, float weight, bool add, float *sums, DeviceStream *stream) {
    return steps_absent();
}
