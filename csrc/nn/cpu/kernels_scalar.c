/* The kernels for any processor. */
#define KERNELS_TABLE nn_cpu_kernels_scalar
#include "nn/cpu/kernels_template.h"
