/* The one-dimensional transforms of minimal filtering on vectors of 16 floats; m is a constant, 2 or 4. */
#ifndef CGXFFCV_NN_CPU_WINOGRAD_SIMD_H
#define CGXFFCV_NN_CPU_WINOGRAD_SIMD_H

#include "nn/cpu/simd.h"

#define MOST 6 /* m + 2 */
#define UNROLL _Pragma("GCC unroll 6")

/* The points of m = 4: +-P and +-Q. */
#define P 0.75f
#define Q 1.5f

INLINE Vf fma_set(float a, Vf b, Vf c) { return vf_fma(vf_set(a), b, c); }

/* r = B^T x */
INLINE void input_transform(int m, const Vf *x, Vf *r) {
    if (m == 2) {
        r[0] = x[0] - x[2];
        r[1] = x[1] + x[2];
        r[2] = x[2] - x[1];
        r[3] = x[1] - x[3];
        return;
    }
    Vf even_q = fma_set(-Q * Q, x[2], x[4]), odd_q = fma_set(-Q * Q, x[1], x[3]);
    Vf even_p = fma_set(-P * P, x[2], x[4]), odd_p = fma_set(-P * P, x[1], x[3]);
    r[0] = fma_set(P * P * Q * Q, x[0], fma_set(-(P * P + Q * Q), x[2], x[4]));
    r[1] = fma_set(P, odd_q, even_q);
    r[2] = fma_set(-P, odd_q, even_q);
    r[3] = fma_set(Q, odd_p, even_p);
    r[4] = fma_set(-Q, odd_p, even_p);
    r[5] = fma_set(P * P * Q * Q, x[1], fma_set(-(P * P + Q * Q), x[3], x[5]));
}

/* r = A^T x */
INLINE void output_transform(int m, const Vf *x, Vf *r) {
    if (m == 2) {
        r[0] = x[0] + x[1] + x[2];
        r[1] = x[1] - x[2] - x[3];
        return;
    }
    Vf sum_p = x[1] + x[2], sum_q = x[3] + x[4], difference_p = x[1] - x[2], difference_q = x[3] - x[4];
    r[0] = x[0] + sum_p + sum_q;
    r[1] = fma_set(Q, difference_q, P * difference_p);
    r[2] = fma_set(Q * Q, sum_q, P * P * sum_p);
    r[3] = fma_set(Q * Q * Q, difference_q, fma_set(P * P * P, difference_p, x[5]));
}

/* r = A x */
INLINE void gradient_transform(int m, const Vf *x, Vf *r) {
    r[0] = x[0];
    if (m == 2) {
        r[1] = x[0] + x[1];
        r[2] = x[0] - x[1];
        r[3] = -x[1];
        return;
    }
    Vf even_p = fma_set(P * P, x[2], x[0]), odd_p = fma_set(P * P, x[3], x[1]);
    Vf even_q = fma_set(Q * Q, x[2], x[0]), odd_q = fma_set(Q * Q, x[3], x[1]);
    r[1] = fma_set(P, odd_p, even_p);
    r[2] = fma_set(-P, odd_p, even_p);
    r[3] = fma_set(Q, odd_q, even_q);
    r[4] = fma_set(-Q, odd_q, even_q);
    r[5] = x[3];
}

/* r = G x; compensates for the scale of the rows of B^T. */
INLINE void filter_transform(int m, const Vf *x, Vf *r) {
    if (m == 2) {
        Vf sum = (x[0] + x[2]) * 0.5f, middle = x[1] * 0.5f;
        r[0] = x[0];
        r[1] = sum + middle;
        r[2] = sum - middle;
        r[3] = x[2];
        return;
    }
    const float p = 1.0f / (2 * P * P * (P * P - Q * Q)), q = 1.0f / (2 * Q * Q * (Q * Q - P * P));
    Vf even_p = fma_set(P * P, x[2], x[0]), even_q = fma_set(Q * Q, x[2], x[0]);
    r[0] = x[0] * (1.0f / (P * P * Q * Q));
    r[1] = fma_set(P, x[1], even_p) * p;
    r[2] = fma_set(-P, x[1], even_p) * p;
    r[3] = fma_set(Q, x[1], even_q) * q;
    r[4] = fma_set(-Q, x[1], even_q) * q;
    r[5] = x[2];
}

/* r = G^T x */
INLINE void filter_gradient_transform(int m, const Vf *x, Vf *r) {
    if (m == 2) {
        r[0] = x[0] + (x[1] + x[2]) * 0.5f;
        r[1] = (x[1] - x[2]) * 0.5f;
        r[2] = (x[1] + x[2]) * 0.5f + x[3];
        return;
    }
    const float p = 1.0f / (2 * P * P * (P * P - Q * Q)), q = 1.0f / (2 * Q * Q * (Q * Q - P * P));
    Vf sum_p = (x[1] + x[2]) * p, sum_q = (x[3] + x[4]) * q;
    Vf difference_p = (x[1] - x[2]) * p, difference_q = (x[3] - x[4]) * q;
    r[0] = fma_set(1.0f / (P * P * Q * Q), x[0], sum_p + sum_q);
    r[1] = fma_set(Q, difference_q, P * difference_p);
    r[2] = fma_set(P * P, sum_p, fma_set(Q * Q, sum_q, x[5]));
}

/* (low lane 0, high lane 0, low lane 1, ...) as bfloat16. */
INLINE __m512i interleave(Vf low, Vf high) {
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                           21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return _mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low));
}

#endif
