/* Filters for any processor. */
#include "augment/cpu/filter_template.h"

const FilterKernels augment_filter_scalar = {.across = sum_across, .down = sum_down};
