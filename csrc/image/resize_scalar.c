/* Resampling for any processor. */
#define RESIZE_TABLE resize_kernels_scalar
#include "image/resize_template.h"
