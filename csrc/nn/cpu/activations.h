/* Activation functions and their derivatives on the vectors of simd.h, with an absolute error of about 3e-7. GELU (the
 * exact one, by the normal distribution) uses tables of cubics with AVX-512, else an exponential. */
#ifndef CGXFFCV_NN_CPU_ACTIVATIONS_H
#define CGXFFCV_NN_CPU_ACTIVATIONS_H

#include <math.h>

#include "nn/cpu/simd.h"

/* e^x for x clamped to -87..88: 2^n times a polynomial of degree 6 on +-ln(2)/2 (Cephes' expf), about 1 ulp. */
INLINE Vf vf_exp(Vf x) {
    const float magic = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer, which lands in the low bits */
    x = vf_max(vf_min(x, vf_set(88.0f)), vf_set(-87.0f));
    Vf shifted = vf_fma(x, vf_set(1.44269504f), vf_set(magic));
    Vf n = shifted - magic;
    Vf r = vf_fma(n, vf_set(-0.693359375f), x);
    r = vf_fma(n, vf_set(2.12194440e-4f), r);
    Vf p = vf_fma(vf_set(1.9875691500e-4f), r, vf_set(1.3981999507e-3f));
    p = vf_fma(p, r, vf_set(8.3334519073e-3f));
    p = vf_fma(p, r, vf_set(4.1665795894e-2f));
    p = vf_fma(p, r, vf_set(1.6666665459e-1f));
    p = vf_fma(p, r, vf_set(5.0000001201e-1f));
    p = vf_fma(p, r * r, r + 1.0f);
    return (Vf)((Vi)p + ((Vi)shifted << 23));
}

#if defined(__AVX512F__)

/* A piecewise cubic function on 0 .. TABLE_END with 32 equal intervals, whose coefficients one instruction looks up. */
#define TABLE_INTERVALS 32
#define TABLE_END 5.5f

typedef struct Table {
    float coefficients[4][TABLE_INTERVALS]; /* of 1, u, u^2, u^3; u: the position in the interval, 0 .. 1 */
} Table;

/* Fits the cubic through the function's values at the Chebyshev points of each interval. */
static void table_fit(Table *table, double (*function)(double)) {
    static const double nodes[4] = {0.038060233744356624, 0.30865828381745514, 0.6913417161825449, 0.9619397662556434};
    const double width = (double)TABLE_END / TABLE_INTERVALS;
    for (int interval = 0; interval < TABLE_INTERVALS; interval++) {
        double divided[4], cubic[4] = {0};
        for (int i = 0; i < 4; i++) divided[i] = function(((double)interval + nodes[i]) * width);
        for (int step = 1; step < 4; step++) {
            for (int i = 3; i >= step; i--) divided[i] = (divided[i] - divided[i - 1]) / (nodes[i] - nodes[i - step]);
        }
        for (int i = 3; i >= 0; i--) {
            for (int k = 3; k > 0; k--) cubic[k] = cubic[k - 1] - cubic[k] * nodes[i];
            cubic[0] = divided[i] - cubic[0] * nodes[i];
        }
        for (int k = 0; k < 4; k++) table->coefficients[k][interval] = (float)cubic[k];
    }
}

INLINE Vf table_pick(const float *coefficients, __m512i interval) {
    return (Vf)_mm512_permutex2var_ps(_mm512_loadu_ps(coefficients), interval, _mm512_loadu_ps(coefficients + LANES));
}

/* The function at t >= 0; past the end, its value at the end. */
INLINE Vf table_at(const Table *table, Vf t) {
    const float last = 31.999998f; /* the largest float below 32 */
    Vf scaled = vf_min(t * (TABLE_INTERVALS / TABLE_END), vf_set(last));
    Vf whole = (Vf)_mm512_roundscale_ps((__m512)scaled, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    __m512i interval = _mm512_cvttps_epi32((__m512)scaled);
    Vf u = scaled - whole;
    Vf value = vf_fma(table_pick(table->coefficients[3], interval), u, table_pick(table->coefficients[2], interval));
    value = vf_fma(value, u, table_pick(table->coefficients[1], interval));
    return vf_fma(value, u, table_pick(table->coefficients[0], interval));
}

static Table gelu_tail, gelu_slope_tail;

/* 1 - Phi(t), and the derivative of x Phi(x) at -t; both shifted by at most 2e-8 to end at zero. */
static double normal_tail(double t) { return 0.5 * (erfc(t * M_SQRT1_2) - erfc((double)TABLE_END * M_SQRT1_2)); }

static double slope_tail(double t) { return normal_tail(t) - t * exp(-0.5 * t * t) * 0.39894228040143268; }

static void activations_init(void) {
    table_fit(&gelu_tail, normal_tail);
    table_fit(&gelu_slope_tail, slope_tail);
}

/* x Phi(x) */
INLINE Vf vf_gelu(Vf x) {
    Vf t = vf_abs(x);
    return vf_fma(-t, table_at(&gelu_tail, t), vf_max(x, vf_set(0.0f)));
}

/* Phi(x) + x phi(x) */
INLINE Vf vf_gelu_slope(Vf x) {
    Vf tail = table_at(&gelu_slope_tail, vf_abs(x));
    return vf_select(x < 0.0f, tail, 1.0f - tail);
}

#else

static void activations_init(void) {}

/* With t = |x|: 1 - Phi(t), the normal distribution's tail (Abramowitz and Stegun 7.1.26, absolute error 7.5e-8), and
 * its density phi(t). */
INLINE void vf_normal_tail(Vf t, Vf *tail, Vf *density) {
    Vf e = vf_exp(t * t * -0.5f);
    Vf k = 1.0f / vf_fma(t, vf_set(0.3275911f * 0.70710678f), vf_set(1.0f));
    Vf p = vf_fma(k, vf_set(1.061405429f), vf_set(-1.453152027f));
    p = vf_fma(p, k, vf_set(1.421413741f));
    p = vf_fma(p, k, vf_set(-0.284496736f));
    p = vf_fma(p, k, vf_set(0.254829592f));
    *tail = p * k * e * 0.5f;
    *density = e * 0.39894228f;
}

/* x Phi(x) */
INLINE Vf vf_gelu(Vf x) {
    Vf tail, density, t = vf_abs(x);
    vf_normal_tail(t, &tail, &density);
    return vf_fma(-t, tail, vf_max(x, vf_set(0.0f)));
}

/* Phi(x) + x phi(x) */
INLINE Vf vf_gelu_slope(Vf x) {
    Vf tail, density;
    vf_normal_tail(vf_abs(x), &tail, &density);
    return vf_fma(x, density, vf_select(x < 0.0f, tail, 1.0f - tail));
}

#endif

INLINE Vf vf_sigmoid(Vf x) { return 1.0f / (1.0f + vf_exp(-x)); }

INLINE Vf vf_silu(Vf x) { return x * vf_sigmoid(x); }

INLINE Vf vf_silu_slope(Vf x) {
    Vf s = vf_sigmoid(x);
    return s * vf_fma(x, 1.0f - s, vf_set(1.0f));
}

#endif
