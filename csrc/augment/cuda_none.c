/* Stands in for cuda/ in a build without CUDA. */
#include "augment/convert.h"
#include "augment/gather.h"
#include "augment/moments.h"
#include "augment/shrink.h"

#pragma GCC diagnostic ignored "-Wunused-parameter" /* a stub uses no arguments */

static Status augment_absent(void) { FAIL(STATUS_NOT_BUILT, "this build has no CUDA: it cannot augment on a GPU"); }

Status augment_gather_check(const AugmentOp *ops, int op_count, int height, int width) { return augment_absent(); }

Status augment_gather_batch(const GatherSet *set, const int32_t *order, const GatherClock *clock, int batch,
                            const AugmentOp *ops, int op_count, uint8_t *to, int64_t *to_labels, DeviceStream *stream) {
    return augment_absent();
}

Status augment_gather_plain(const GatherSet *set, const int32_t *places, int count, uint8_t *to, DeviceStream *stream) {
    return augment_absent();
}

Status augment_convert_batch(const uint8_t *images, int count, int height, int width, const void *table,
                             size_t item_bytes, ImageLayout layout, void *to, DeviceStream *stream) {
    return augment_absent();
}

Status augment_shrink_on_device(const uint8_t *images, int count, int height, int width, int side, const float mean[3],
                                const float std[3], float *to, DeviceStream *stream) {
    return augment_absent();
}

Status augment_moments_on_device(const GatherSet *set, int64_t count, uint64_t *to, int *parts, DeviceStream *stream) {
    return augment_absent();
}
