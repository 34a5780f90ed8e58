/* The kernels for AVX2. */
#define KERNELS_TABLE nn_cpu_kernels_avx2
#include "nn/cpu/kernels_template.h"
