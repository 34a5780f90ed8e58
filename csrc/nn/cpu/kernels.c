/* Chooses the kernels for this processor. */
#include "nn/cpu/kernels.h"

#include "base/cpu.h"

const Kernels *kernels_for(Precision precision) {
    const CpuFeatures *cpu = cpu_features();
    if (cpu->avx512 && cpu->avx512_bf16) return kernels_avx512bf16(precision);
    if (cpu->avx512) return kernels_avx512(precision);
    if (cpu->avx2) return kernels_avx2(precision);
    return kernels_scalar(precision);
}
