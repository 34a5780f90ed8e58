/* The kernels for AVX-512 with bfloat16 instructions. */
#define KERNELS_TABLE nn_cpu_kernels_avx512bf16
#include "nn/cpu/kernels_template.h"
