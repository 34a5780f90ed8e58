/* Resampling for AVX2. */
#if defined(__x86_64__)

#define RESIZE_TABLE resize_kernels_avx2
#include "image/resize_template.h"

#endif
