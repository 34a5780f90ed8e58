/* The formulas for each value type, and what they share. */
#include "augment/cpu/values.h"

#include <math.h>
#include <string.h>

#define SUMMED_ROWS (2 * AUGMENT_MAX_RADIUS + 1)

/* For each value of a row, its horizontal sums in all rows that are still needed. */
size_t augment_values_blur_bytes(size_t values) { return SUMMED_ROWS * values * sizeof(int64_t); }

#define VALUE uint8_t
#define SUM int64_t
#define MOST UINT8_MAX
#define OF(name) name##_u8
#include "augment/cpu/values_template.h"

#define VALUE uint16_t
#define SUM int64_t
#define MOST UINT16_MAX
#define OF(name) name##_u16
#include "augment/cpu/values_template.h"

#define VALUE float
#define SUM double
#define OF(name) name##_f32
#include "augment/cpu/values_template.h"

const AugmentValueKernels *augment_value_kernels(ImageType type) {
    return type == IMAGE_U8 ? &kernels_u8 : type == IMAGE_U16 ? &kernels_u16 : &kernels_f32;
}
