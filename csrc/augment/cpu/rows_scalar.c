/* The reference kernels: one table look-up per value. */
#include "augment/cpu/rows.h"

#define DEFINE(name, item_bytes, layout)                                                                               \
    static void name(const AugmentPass *a, const AugmentStrip *s) {                                                    \
        for (size_t row = 0; row < s->rows; row++) augment_row_by_table(a, s, row, 0, s->width, item_bytes, layout);   \
    }

DEFINE(hwc_1, 1, IMAGE_HWC)
DEFINE(hwc_2, 2, IMAGE_HWC)
DEFINE(hwc_4, 4, IMAGE_HWC)
DEFINE(chw_1, 1, IMAGE_CHW)
DEFINE(chw_2, 2, IMAGE_CHW)
DEFINE(chw_4, 4, IMAGE_CHW)

const AugmentKernel augment_kernels_scalar[IMAGE_TYPES][2] = {
    [IMAGE_U8] = {hwc_1, chw_1},
    [IMAGE_F32] = {hwc_4, chw_4},
    [IMAGE_F16] = {hwc_2, chw_2},
    [IMAGE_BF16] = {hwc_2, chw_2},
};
