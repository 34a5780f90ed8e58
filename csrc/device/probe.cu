/* An empty kernel: all kernels are compiled for the same architectures, so what holds for it holds for all. */
#include "device/kernel.cuh"

extern "C" {
#include "device/probe.h"
}

static __global__ void empty_kernel(void) {}

extern "C" int device_probe(void) {
    struct cudaFuncAttributes attributes;
    return (int)cudaFuncGetAttributes(&attributes, reinterpret_cast<const void *>(empty_kernel));
}

extern "C" const char *device_probe_architectures(void) { return CGXFFCV_CUDA_ARCHITECTURES; }
