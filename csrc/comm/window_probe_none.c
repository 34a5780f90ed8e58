/* The probe's kernels in a build without CUDA. */
#include "comm/window_probe.h"

#pragma GCC diagnostic ignored "-Wunused-parameter" /* a stub uses no arguments */

static Status probe_absent(void) { return error_fail(STATUS_NOT_BUILT, "this build has no CUDA. " DEVICE_CUDA_REMEDY); }

Status comm_probe_push(void *base, const ProbePlan *plan, int source, int target, DeviceStream *stream) {
    return probe_absent();
}

Status comm_probe_check(const void *own, const void *theirs, const ProbePlan *plan, int source, int me,
                        CommWindowStatus *status_words, double timeout_s, DeviceStream *stream) {
    return probe_absent();
}
