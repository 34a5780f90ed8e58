/* Resampling for AVX-512. */
#if defined(__x86_64__)

#define RESIZE_TABLE resize_kernels_avx512
#include "image/resize_template.h"

#endif
