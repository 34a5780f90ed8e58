/* Resampling for AVX2. */
#if defined(__x86_64__)

#include "image/resize_template.h"

const ResizeKernels resize_kernels_avx2 = {.rows = sum_rows, .columns = sum_columns};

#endif
