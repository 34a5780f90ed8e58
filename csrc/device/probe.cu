/* An empty kernel, which is never launched, only queried: all kernels are compiled for the same architectures, so what
 * holds for it holds for all. */
#include "device/kernel.cuh"

extern "C" {
#include "base/environment.h"
#include "device/probe.h"
}

#define MOST_DEVICES 64
#define EARLY_CAPABILITY 90

static __global__ void device_empty_kernel(void) {}

extern "C" int device_probe(void) {
    struct cudaFuncAttributes attributes;
    return (int)cudaFuncGetAttributes(&attributes, reinterpret_cast<const void *>(device_empty_kernel));
}

extern "C" Status device_probe_launch(bool *plain) {
    static const char *const words[] = {"plain", nullptr};
    uint32_t chosen = 0;
    TRY(environment_words("CGXFFCV_LAUNCH", words, &chosen));
    *plain = chosen != 0;
    return STATUS_OK;
}

static bool waits_in_kernels(void) {
    struct cudaFuncAttributes code;
    bool plain = false;
    if (device_probe_launch(&plain) != STATUS_OK || plain) return false;
    if (cudaFuncGetAttributes(&code, reinterpret_cast<const void *>(device_empty_kernel)) != cudaSuccess) return false;
    return code.ptxVersion >= EARLY_CAPABILITY;
}

/* Determined once per device: 0 unknown, 1 no, 2 yes. Threads that race here compute the same value. */
extern "C" bool device_probe_early(void) {
    static int known[MOST_DEVICES];
    int device = 0;
    if (cudaGetDevice(&device) != cudaSuccess || device >= MOST_DEVICES) return false;
    if (known[device] == 0) known[device] = waits_in_kernels() ? 2 : 1;
    return known[device] == 2;
}

extern "C" const char *device_probe_architectures(void) { return CGXFFCV_CUDA_ARCHITECTURES; }
