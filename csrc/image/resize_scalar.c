/* Resampling for any processor. */
#include "image/resize_template.h"

const ResizeKernels resize_kernels_scalar = {.rows = sum_rows, .columns = sum_columns};
