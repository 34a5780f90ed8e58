/* The twin of resident.cu in a build without CUDA. */
#include "train/resident_kernels.h"

static Status absent(void) { FAIL(STATUS_NOT_BUILT, "this build has no CUDA: nothing can be trained on a GPU"); }

Status resident_close_step(const ResidentClosing *closing, DeviceStream *stream) {
    (void)closing, (void)stream;
    return absent();
}

Status resident_add_view(const float *logits, size_t elems, float weight, bool add, float *sums, DeviceStream *stream) {
    (void)logits, (void)elems, (void)weight, (void)add, (void)sums, (void)stream;
    return absent();
}
