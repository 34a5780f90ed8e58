/* The floating-point mode in which the quantiser's bytes are defined: rounding to nearest even, subnormals neither
 * flushed nor read as zero, no traps. */
#ifndef CGXFFCV_BASE_FLOAT_MODE_H
#define CGXFFCV_BASE_FLOAT_MODE_H

#if defined(__x86_64__)
#include <xmmintrin.h>

typedef unsigned FloatMode;

static inline FloatMode float_mode_begin(void) {
    FloatMode saved = _mm_getcsr();
    _mm_setcsr(0x1F80);
    return saved;
}

static inline void float_mode_end(FloatMode saved) { _mm_setcsr(saved); }
#else
#include <fenv.h>

typedef fenv_t FloatMode;

static inline FloatMode float_mode_begin(void) {
    FloatMode saved;
    fegetenv(&saved);
    fesetenv(FE_DFL_ENV);
    return saved;
}

static inline void float_mode_end(FloatMode saved) { fesetenv(&saved); }
#endif

#endif
