/* What this processor supports, detected once. */
#ifndef CGXFFCV_BASE_CPU_H
#define CGXFFCV_BASE_CPU_H

#include <stdbool.h>

typedef struct CpuFeatures {
    bool avx2;        /* with FMA, F16C, BMI2 */
    bool avx512;      /* F, BW, DQ, VL */
    bool avx512_bf16; /* the dot product of bfloat16 pairs */
    bool amx_bf16;
} CpuFeatures;

/* The features that the processor and the operating system both support; the environment variable
 * CGXFFCV_CPU=scalar|avx2|avx512 limits them (read at the first call). */
const CpuFeatures *cpu_features(void);

/* The value of CGXFFCV_CPU if it is not one of these (and so has no effect), else NULL. */
const char *cpu_unknown_limit(void);

/* The number of processors that this process may run on, at least 1. */
int cpu_count(void);

#endif
