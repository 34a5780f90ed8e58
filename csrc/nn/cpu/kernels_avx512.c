/* The kernels for AVX-512. */
#define KERNELS_TABLE nn_cpu_kernels_avx512
#include "nn/cpu/kernels_template.h"
