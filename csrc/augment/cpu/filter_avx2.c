/* Filters for AVX2. */
#if defined(__x86_64__)

#include "augment/cpu/filter_template.h"

const FilterKernels augment_filter_avx2 = {.across = sum_across, .down = sum_down};

#else
typedef int AugmentFilterAvx2Unused;
#endif
