/* Chooses the kernels for this processor. */
#include "nn/cpu/kernels.h"

#include "base/cpu.h"

const Kernels *nn_cpu_kernels_for(Precision precision) {
    const CpuFeatures *cpu = cpu_features();
    if (cpu->avx512 && cpu->avx512_bf16) return nn_cpu_kernels_avx512bf16(precision);
    if (cpu->avx512) return nn_cpu_kernels_avx512(precision);
    if (cpu->avx2) return nn_cpu_kernels_avx2(precision);
    return nn_cpu_kernels_scalar(precision);
}
