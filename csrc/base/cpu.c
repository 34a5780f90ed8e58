/* Processor features, from the compiler's run-time support. */
#include "base/cpu.h"

#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static CpuFeatures features;
static char unknown_limit[40];
static pthread_once_t once = PTHREAD_ONCE_INIT;

#if defined(__x86_64__)
#include <cpuid.h>

/* Not every compiler's __builtin_cpu_supports knows this name. */
static bool f16c(void) {
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C) != 0;
}

static bool amx_bf16(void) {
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & (1u << 22)) != 0 && (d & (1u << 24)) != 0;
}

static void detect(void) {
    __builtin_cpu_init();
    features.avx2 =
        __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2") && f16c();
    features.avx512 = features.avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    features.avx512_bf16 = features.avx512 && __builtin_cpu_supports("avx512bf16");
    features.amx_bf16 = features.avx512 && amx_bf16();
}
#else
static void detect(void) {}
#endif

static void detect_once(void) {
    detect();
    const char *limit = getenv("CGXFFCV_CPU");
    if (limit == NULL || *limit == '\0') return;
    if (strcmp(limit, "scalar") == 0) {
        features = (CpuFeatures){0};
    } else if (strcmp(limit, "avx2") == 0) {
        features = (CpuFeatures){.avx2 = features.avx2};
    } else if (strcmp(limit, "avx512") == 0) {
        features.amx_bf16 = features.avx512_bf16 = false;
    } else {
        snprintf(unknown_limit, sizeof unknown_limit, "%s", limit);
    }
}

const char *cpu_unknown_limit(void) {
    pthread_once(&once, detect_once);
    return unknown_limit[0] == '\0' ? NULL : unknown_limit;
}

const CpuFeatures *cpu_features(void) {
    pthread_once(&once, detect_once);
    return &features;
}

int cpu_count(void) {
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) != 0) return 1;
    int count = CPU_COUNT(&set);
    return count < 1 ? 1 : count;
}
