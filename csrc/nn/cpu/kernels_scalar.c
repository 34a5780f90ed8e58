/* The kernels for the plain build. */
#define KERNELS_TABLE kernels_scalar
#include "nn/cpu/kernels_template.h"
