/* Stands in for fingerprint.cu in a build without CUDA. */
#include "train/fingerprint.h"

Status train_fingerprint_add(const float *values, size_t count, uint64_t first, uint64_t *sum, DeviceStream *stream) {
    (void)values, (void)count, (void)first, (void)sum, (void)stream;
    FAIL(STATUS_NOT_BUILT, "this build has no CUDA: it cannot hash a replica on a GPU");
}
